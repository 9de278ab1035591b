"""``pfungst demo``: the main job on data that Pfungst makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pfungst.audit.config import AnomalyConfig
from pfungst.audit.result import Result
from pfungst.errors import ConfigError


def _anomaly(folder: Path) -> Result:
    from pfungst.audit.anomaly import run

    return run(AnomalyConfig.build(data="synthetic", seed=1907, out=folder, overwrite=True))


PARTS = {"anomaly": _anomaly}


def run_demo(folder: Path, only: str | None = None) -> Iterator[tuple[Result, Path]]:
    """Run the parts of the demo, yielding each result with its folder.

    Raises:
        ConfigError: there is no part of that name.
    """
    if only is not None and only not in PARTS:
        raise ConfigError(f"the demo has no part {only!r}", f"parts: {', '.join(PARTS)}")
    for name, part in PARTS.items():
        if only in (None, name):
            yield part(folder / name), folder / name
