#!/usr/bin/env python3
"""The command line of a checkout: `yue_client/`, which lies beside this file, under the name client.py.

Where the package is installed, the same program is called `yue`.
"""

from __future__ import annotations

import sys

from yue_client.cli import main, run

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(run("client.py"))
