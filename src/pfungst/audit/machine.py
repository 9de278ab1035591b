"""What a result says about when, where and how it was computed."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from typing import Any

from pfungst import __version__
from pfungst.audit.config import AuditConfig
from pfungst.threads import cores


def circumstances(config: AuditConfig | dict[str, Any], started: float, inputs: str = "") -> dict[str, Any]:
    """The fields that every result fills alike; `started` is of ``time.monotonic``."""
    return {
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.monotonic() - started,
        "machine": describe_machine(),
        "config": config if isinstance(config, dict) else config.model_dump(mode="json"),
        "inputs": inputs,
    }


def describe_machine() -> str:
    """Processor, number of usable cores, versions: enough to judge a timing, nothing that names a host."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {cores()} cores, {device}, "
        f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    )
