"""Generation: the scheduler, both stages, sampling and CUDA graphs.

Many songs at once on one device.
"""
