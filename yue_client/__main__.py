"""Runs the command line as `python -m yue_client`."""

import sys

from yue_client.cli import run

sys.exit(run())
