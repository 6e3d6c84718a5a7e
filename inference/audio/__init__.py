"""Waveforms: reading, mixing and encoding.

Independent of torch.
"""
