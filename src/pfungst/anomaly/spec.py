"""Detectors by name, as the command line and configurations write them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from sklearn.base import clone
from torch import nn

from pfungst.anomaly.base import Detector
from pfungst.anomaly.own import OwnDetector, check_scoring, made_by
from pfungst.errors import ConfigError
from pfungst.registry import DETECTORS, read_parameters


def detector_from_spec(spec: str | Detector, **common: Any) -> Detector:
    """The unfitted detector of a specification.

    Args:
        spec: NAME or NAME:parameter=value,parameter=value with the constructor's parameters, for example
            ``patchcore:backbone=resnet18,layers=layer2+layer3,coreset=0.1``. A detector of detectors ends
            with theirs: ``bag:kde+autoencoder``, ``tiled:tile=128:patchcore:coreset=0.1``. ``FILE.py:NAME…``
            runs the file first, which registers NAME, or holds a function (or class, or object) NAME that
            makes a detector, or what :class:`OwnDetector` takes; ``package.module:NAME…`` names such a thing
            too. Or a detector, of which a clone is given its own parameters and, before its own, the
            features.
        common: parameters for every detector that has them, such as features, seed, device or progress.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type.
    """
    if isinstance(spec, Detector):
        return _cloned(spec, common)
    cls, name, rest = DETECTORS.find(spec, anything=True)
    if not (isinstance(cls, type) and issubclass(cls, Detector)):
        return _own(cls, spec.removesuffix(f":{rest}"), rest, common)
    known = inspect.signature(cls).parameters
    params: dict[str, Any] = {k: v for k, v in common.items() if k in known}
    if cls.nested:
        before, colon, inner = rest.partition(":")
        rest, inner = (before, inner) if colon and "=" in before else ("", rest)
        params[cls.nested] = _nested(cls, spec, inner, common)
    own = {k: p.default for k, p in known.items() if k not in ("features", cls.nested)}
    params |= read_parameters(rest, own, f"detector {name!r} in {spec!r}")
    return cls(**params)


def _own(thing: Any, spec: str, rest: str, common: dict[str, Any]) -> Detector:
    """The detector of a function or object of the user's."""
    options = {}
    if rest:
        takes = inspect.signature(thing).parameters if callable(thing) else {}
        options = read_parameters(rest, {k: p.default for k, p in takes.items()}, f"{spec!r}")
    made = made_by(thing, spec, options)
    if isinstance(made, Detector):
        return _cloned(made, common)
    check_scoring(made)
    known = inspect.signature(OwnDetector).parameters
    return OwnDetector(made, **{k: v for k, v in common.items() if k in known})


def _cloned(detector: Detector, common: dict[str, Any]) -> Detector:
    made = clone(detector)
    own = made.get_params(deep=False)
    changed = {k: v for k, v in common.items() if k in own and (k != "features" or v is not None)}
    if changed.get("features") is not None and own["features"] is not None:
        changed["features"] = nn.Sequential(changed["features"], own["features"])
    return made.set_params(**changed)


def detector_table(names: Iterable[str] | None = None) -> str:
    """The registered detectors, or those named, as a Markdown table."""
    rows = ["| name | what it is | parameters |", "|---|---|---|"]
    for name in DETECTORS.names() if names is None else names:
        cls = DETECTORS.get(name)
        summary, _, _ = (inspect.getdoc(cls) or "").partition("\n\n")
        parameters = ", ".join(f"`{key}`" for key in inspect.signature(cls).parameters)
        rows.append(f"| `{name}` | {' '.join(summary.split())} | {parameters} |")
    return "\n".join(rows)


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
