"""A model's files: found, fetched, verified.

Runs in a process of its own; no torch.
"""
