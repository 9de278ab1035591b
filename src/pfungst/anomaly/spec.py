"""Detectors by name, as the command line and configurations write them."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

from pfungst.anomaly.base import Detector
from pfungst.errors import ConfigError
from pfungst.suggest import suggest

KINDS = ("patchcore", "autoencoder", "one-class", "kde", "d2neighbors", "bag")


def detector_from_spec(spec: str, **common: Any) -> Detector:
    """The unfitted detector of a specification.

    Args:
        spec: NAME or NAME:parameter=value,parameter=value with the constructor's parameters, for example
            ``patchcore:backbone=resnet18,layers=layer2+layer3,coreset=0.1``; ``bag:kde+autoencoder`` for a bag of
            detectors with their defaults.
        common: parameters for every detector that has them, such as features, seed, device or progress.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type.
    """
    from pfungst import anomaly

    name, _, rest = spec.partition(":")
    if name == "bag":
        members = [m for m in rest.split("+") if m]
        if not members:
            raise ConfigError(f"{spec!r} names no members", "for example bag:kde+autoencoder+one-class")
        named = [(m, detector_from_spec(m, **common)) for m in members]
        return anomaly.Bag(named, **{k: v for k, v in common.items() if k == "seed"})
    classes: dict[str, type[Detector]] = {
        "patchcore": anomaly.PatchCore,
        "autoencoder": anomaly.Autoencoder,
        "one-class": anomaly.DeepOneClass,
        "kde": anomaly.KDE,
        "d2neighbors": anomaly.D2Neighbors,
    }
    if name not in classes:
        raise ConfigError(f"unknown detector {name!r}", suggest(name, KINDS))
    known = inspect.signature(classes[name]).parameters
    params: dict[str, Any] = {k: v for k, v in common.items() if k in known}
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if not equals or key not in known or key == "features":
            names = [k for k in known if k != "features"]
            raise ConfigError(
                f"unknown parameter {key!r} of detector {name!r} in {spec!r}", suggest(key, names)
            )
        params[key] = _value(text, known[key].default, part)
    return classes[name](**params)


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
