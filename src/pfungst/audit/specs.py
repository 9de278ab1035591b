"""Short texts that name detectors and mitigations: ``d2neighbors:p=1``, ``blur:11,2.0``."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pfungst.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from pfungst.anomaly import Detector

DETECTORS = {"d2neighbors": "D2Neighbors", "kde": "KDE"}
MITIGATIONS = ("none", "blur", "lowpass")


def parse_detector(text: str) -> tuple[type[Detector], dict[str, Any]]:
    """The class and the parameters of ``NAME`` or ``NAME:key=value,key=value``.

    Raises:
        ConfigError: unknown name or parameter, with the nearest right one.
    """
    name, _, options = text.partition(":")
    if name not in DETECTORS:
        raise ConfigError(f"unknown detector {name!r}", _near(name, DETECTORS))
    cls = getattr(import_module("pfungst.anomaly"), DETECTORS[name])
    known = [p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "features")]
    params = {}
    for option in filter(None, options.split(",")):
        key, sign, value = option.partition("=")
        if not sign or key not in known:
            raise ConfigError(
                f"unknown parameter {key!r} of detector {name!r} in {text!r}", _near(key, known)
            )
        params[key] = _value(value)
    return cls, params


def build_detector(text: str, features: nn.Module | None = None, seed: int = 0) -> Detector:
    """An unfitted detector with `features` (a mitigation) in front."""
    cls, params = parse_detector(text)
    accepted = inspect.signature(cls.__init__).parameters
    if "seed" in accepted:
        params.setdefault("seed", seed)
    return cls(features=features, **params)


def parse_mitigation(text: str) -> tuple[str, list[float]]:
    """Name and numbers of ``none``, ``blur``, ``blur:KERNEL,SIGMA``, ``lowpass`` or ``lowpass:CUTOFF``."""
    name, _, options = text.partition(":")
    if name not in MITIGATIONS:
        raise ConfigError(f"unknown mitigation {name!r}", _near(name, MITIGATIONS))
    try:
        numbers = [float(part) for part in options.split(",") if part]
    except ValueError:
        raise ConfigError(
            f"mitigation {text!r} has something else than numbers", "write blur:11,2.0"
        ) from None
    allowed = {"none": (0,), "blur": (0, 2), "lowpass": (0, 1)}[name]
    if len(numbers) not in allowed:
        raise ConfigError(f"mitigation {text!r} has {len(numbers)} numbers", f"{name} takes {allowed[-1]}")
    return name, numbers


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(known)
