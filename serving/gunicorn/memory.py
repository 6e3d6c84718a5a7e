"""Returns freed memory to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BLOCK_BYTES = 256 << 10


def return_large_blocks() -> None:
    """Make glibc return each large block as soon as it is freed. Other C libraries are left alone.

    By default glibc keeps freed blocks of up to 32 MB in each of its arenas: one burst of requests with audio would
    keep a gigabyte.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
