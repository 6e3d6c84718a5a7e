"""The gunicorn worker: sockets, draining, refusals.

Independent of routes and songs.
"""
