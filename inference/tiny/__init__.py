"""The demo model, whose weights are generated from a fixed seed.

It runs anywhere and needs no network.
"""
