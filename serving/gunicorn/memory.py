"""How this process gives freed memory back to the system.

It knows nothing of who uses it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BLOCK_BYTES = 256 << 10


def return_large_blocks() -> None:
    """Have each large block go back to the system as soon as it is freed, where the C library is glibc.

    By default glibc keeps blocks of up to 32 MB once it has seen some of them freed, separately for each group of
    threads: one burst of requests with audio would leave a gigabyte behind.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
