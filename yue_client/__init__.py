"""What the command line client.py is made of; Python alone is enough to run it.

It knows nothing of the server's code: all it speaks is HTTP.
"""
