"""Jobs: queued, run, stored, recovered and deleted.

Independent of HTTP.
"""
