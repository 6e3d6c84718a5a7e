"""Model states: what is loaded, how far an attempt is, what failed last.

The building blocks of `model_manager.py`.
"""
