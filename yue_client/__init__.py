"""What the command line client.py is made of; Python alone is enough to run it.

It knows nothing of the server's code: all it speaks is HTTP.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 -- the one place that older ones come to
    sys.exit("client.py: needs Python 3.11 or newer, such as .venv/bin/python, which run_local.sh makes")
