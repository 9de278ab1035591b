"""What a result says about where it was computed."""

from __future__ import annotations

import os
import platform


def describe_machine() -> str:
    """Kind of processor, number of usable cores, versions: enough to judge a timing, nothing that names a host."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {cores} cores, {device}, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )
