"""Jobs: queued, run, stored, recovered and deleted.

Nothing here knows HTTP.
"""
