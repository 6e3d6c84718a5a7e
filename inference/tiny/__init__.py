"""The demo model, which plays a tune: every weight is computed by a formula.

It runs anywhere and needs no network.
"""
