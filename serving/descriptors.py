"""How many files, and among them connections, this process may have open at once.

It knows nothing of who opens them.
"""

from __future__ import annotations

import resource

MOST_FILES = 65_536  # that are opened at once, where the system allows it
RESERVED_FILES = 256  # for the storage, the engine and the logs; half of all files where there are few


def most_files() -> int:
    """How many files may be open at once, after `allow_most_files`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    return MOST_FILES if soft == resource.RLIM_INFINITY else max(soft, raised)


def most_connections() -> int:
    """How many of them may be connections."""
    files = most_files()
    return max(files - RESERVED_FILES, files // 2)


def allow_most_files() -> None:
    """Raise the soft limit of this process to what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < most_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files(), hard))
