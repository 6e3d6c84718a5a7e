"""The states that a model goes through.

`model_manager.py` is made of these.
"""
