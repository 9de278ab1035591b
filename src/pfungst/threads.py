"""How PyTorch's threads wait and how many there are, set before PyTorch is imported.

OpenMP threads spin at every barrier. On a machine that does anything else they take the cores from the work
they wait for: a small training loop took 15 times as long. Passive waiting costs little where nothing else
runs (``benchmarks/threads.py``). Users of the library get the same from the environment:
``OMP_WAIT_POLICY=PASSIVE``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
}  # GNU and LLVM read the first, Intel's library the second
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


def share_the_machine() -> None:
    """Let threads sleep while they wait, and start no more than the CPU quota of the container allows.

    What the user has set in the environment stays. Without effect once PyTorch is imported.
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    allowed = quota()
    if allowed is not None and allowed < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed))


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
