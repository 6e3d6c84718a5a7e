"""The engine's process and the messages to and from it.

The parent's side imports no torch.
"""
