"""Logs, metrics and traces.

What operators see of the server.
"""
