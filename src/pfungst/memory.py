"""How much memory there is, and what the C library does with freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any


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


def give_back() -> None:
    """Give what is freed back to the system, also between what is held: large arrays that come and go beside
    small ones that stay leave holes, which grow with the work (2 KB an image of a pass). Linux only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, as the system says; None where it does not (macOS)."""
    if sys.platform == "win32":
        return _windows().available
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_memory() -> int:
    """The most bytes that this process has held at a time; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def physical_memory() -> int:
    """Bytes of memory that the machine has."""
    if sys.platform == "win32":
        return _windows().total
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", "pages", "free_pages")),
        *((name, ctypes.c_uint64) for name in ("virtual", "free_virtual", "extended")),
    )


def _windows() -> Any:
    status = _Status(length=ctypes.sizeof(_Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        raise OSError("GlobalMemoryStatusEx failed")
    return status
