"""Waveforms: reading, mixing and encoding.

No torch.
"""
