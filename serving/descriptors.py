"""Limits on open files and connections of this process."""

from __future__ import annotations

import resource

MOST_FILES = 65_536  # open at once, if the system allows it
RESERVED_FILES = 256  # for the storage, the engine and the logs; at most half of all files


def most_files() -> int:
    """Return how many files may be open at once, after `allow_most_files`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    return MOST_FILES if soft == resource.RLIM_INFINITY else max(soft, raised)


def most_connections() -> int:
    """Return how many of the open files may be connections."""
    files = most_files()
    return max(files - RESERVED_FILES, files // 2)


def allow_most_files() -> None:
    """Raise the soft limit of this process as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < most_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files(), hard))
