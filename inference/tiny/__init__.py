"""The demo model, whose weights are made by formula.

It runs anywhere and needs no network.
"""
