"""A model's files: finds, downloads and verifies them.

Downloads run in a process of their own. Independent of torch.
"""
