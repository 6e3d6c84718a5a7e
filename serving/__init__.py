"""The HTTP side of the server: settings, HTTP, jobs, model states, the gunicorn worker, observability.

Nothing in here imports torch.
"""
