"""The client of a YuE server: a command line, and what it consists of. Python alone is enough to run it.

It does not import the server's code: it speaks HTTP.
"""

import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036 -- the one place that older ones come to
    sys.exit("client.py: needs Python 3.11 or newer, such as .venv/bin/python, which run_local.sh makes")
