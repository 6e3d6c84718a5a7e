"""The networks and how their weights are loaded.

LLaMA, X-Codec, Vocos; checkpoints and quantization.
"""
