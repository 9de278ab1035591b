"""How PyTorch's threads wait and how many there are, set before PyTorch is imported.

OpenMP threads spin at every barrier. On a machine that does anything else they take the cores from the work
they wait for: a small training loop took 15 times as long. So they sleep, after a short spin: a longer one
costs less where nothing else runs, and most of the gain where something does (``benchmarks/threads.py``).
Users of the library set the same themselves.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

# GNU and LLVM read the first, GNU alone the second, Intel's library the third
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


def share_the_machine() -> None:
    """Let threads sleep while they wait, and start no more than the CPU quota of the container allows.

    Who has set how threads wait, or how many there are, in the environment has decided. Without effect once
    PyTorch is imported.
    """
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)
    allowed = quota()
    if allowed is not None and allowed < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed))


def spinning() -> list[str]:
    """What in the environment lets threads spin longer than the command would, as ``NAME=VALUE``."""

    def longer(value: str, ours: str) -> bool:
        if ours.isdigit() and value.isdigit():
            return int(value) > int(ours)
        return value.upper() != ours

    found = {name: os.environ[name] for name in WAITING if name in os.environ}
    return [f"{name}={value}" for name, value in found.items() if longer(value, WAITING[name])]


def cores() -> int:
    """How many processor cores this process may use; all where the system does not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota() -> int | None:
    """Whole CPUs that the control group allows (at least 1); None where there is no limit."""
    try:
        if _QUOTA.exists():
            limit, period = _QUOTA.read_text(encoding="ascii").split()
        else:
            limit = _OLD_QUOTA.read_text(encoding="ascii").strip()
            period = _OLD_QUOTA.with_name("cpu.cfs_period_us").read_text(encoding="ascii").strip()
        cpus = float(limit) / float(period)
    except (OSError, ValueError):  # no control group, or "max"
        return None
    return max(1, math.ceil(cpus)) if cpus > 0 else None
