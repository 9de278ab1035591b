"""Detectors by name, as the command line and configurations write them."""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pfungst.anomaly.base import Detector
from pfungst.errors import ConfigError
from pfungst.registry import DETECTORS
from pfungst.suggest import suggest


def detector_from_spec(spec: str, **common: Any) -> Detector:
    """The unfitted detector of a specification.

    Args:
        spec: NAME or NAME:parameter=value,parameter=value with the constructor's parameters, for example
            ``patchcore:backbone=resnet18,layers=layer2+layer3,coreset=0.1``. A detector of detectors ends with
            theirs: ``bag:kde+autoencoder``, ``tiled:tile=128:patchcore:coreset=0.1``. ``FILE.py:NAME…`` runs the file
            first, which registers NAME.
        common: parameters for every detector that has them, such as features, seed, device or progress.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type.
    """
    name, _, rest = spec.partition(":")
    if name.endswith(".py"):
        _run(Path(name).resolve())
        name, _, rest = rest.partition(":")
    cls = DETECTORS.get(name)
    known = inspect.signature(cls).parameters
    params: dict[str, Any] = {k: v for k, v in common.items() if k in known}
    if cls.nested:
        own, colon, inner = rest.partition(":")
        rest, inner = (own, inner) if colon and "=" in own else ("", rest)
        params[cls.nested] = _nested(cls, spec, inner, common)
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if not equals or key not in known or key in ("features", cls.nested):
            names = [k for k in known if k not in ("features", cls.nested)]
            raise ConfigError(
                f"unknown parameter {key!r} of detector {name!r} in {spec!r}", suggest(key, names)
            )
        params[key] = _value(text, known[key].default, part)
    return cls(**params)


def detector_table(names: Iterable[str] | None = None) -> str:
    """The registered detectors, or those named, as a Markdown table."""
    rows = ["| name | what it is | parameters |", "|---|---|---|"]
    for name in DETECTORS.names() if names is None else names:
        cls = DETECTORS.get(name)
        summary, _, _ = (inspect.getdoc(cls) or "").partition("\n\n")
        parameters = ", ".join(f"`{key}`" for key in inspect.signature(cls).parameters)
        rows.append(f"| `{name}` | {' '.join(summary.split())} | {parameters} |")
    return "\n".join(rows)


@cache
def _run(file: Path) -> None:
    if not file.is_file():
        raise ConfigError(f"there is no file {file}", "write FILE.py:NAME, where the file registers NAME")
    runpy.run_path(str(file))


def _nested(cls: type[Detector], spec: str, text: str, common: dict[str, Any]) -> Any:
    members = [(m, detector_from_spec(m, **common)) for m in text.split("+") if m]
    one = inspect.signature(cls).parameters[str(cls.nested)].default is None
    if not members or (one and len(members) > 1):
        wanted = "one detector" if one else "members"
        raise ConfigError(
            f"{spec!r} names {len(members)} detectors, not {wanted}",
            "for example bag:kde+autoencoder or tiled:kde",
        )
    return members[0][1] if one else members


def _value(text: str, default: Any, part: str) -> Any:
    if text.lower() in ("none", ""):
        return None
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ConfigError(f"{part!r} is not yes or no", "write true or false")
        return text.lower() in ("true", "yes", "1")
    for kind in (float,) if isinstance(default, float) else (int, float):
        with suppress(ValueError):
            return kind(text)
    if isinstance(default, int | float):
        raise ConfigError(f"{part!r} is not a number", f"for example {part.partition('=')[0]}={default}")
    return text
