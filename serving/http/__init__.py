"""HTTP: requests in, responses out.

Everything that knows Flask, status codes or headers.
"""
