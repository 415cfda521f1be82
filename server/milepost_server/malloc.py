"""The C library's allocator, told what suits these processes. Does nothing where there is none that can be told."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_ARENA_MAX: Final = -8
"""glibc's number for `mallopt`."""


def share_arena() -> None:
    """Have all threads allocate from one arena.

    Large messages are allocated and freed by several threads. With an arena for each, what one freed another does not
    find: the peak under large saves was a tenth higher.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give unused memory back to the system, such as what the start needed: 2 MiB of each process."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    # Linux has other C libraries too.
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
