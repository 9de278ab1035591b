"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of giving it back after each operation.

    By default every array above 32 MB is mapped and unmapped anew; the page faults cost as much as the
    arithmetic (measured: a third of the demo's CPU time). A decision for a whole process, so the command line
    makes it and the library leaves it to you. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
