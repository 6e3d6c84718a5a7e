"""The gunicorn worker: sockets, draining, refusals.

Nothing here knows routes or songs.
"""
