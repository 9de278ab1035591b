"""Detectors on disk: a folder with detector.json and weights.safetensors, never a pickle.

A detector is written as its registered name, its parameters, and what `_state` gives: tensors, and facts in
which further detectors may stand. Its place among them, such as ``detectors/kde``, goes before the names of
its tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.device import choose_device
from pfungst.errors import CheckpointError, ConfigError, InputError
from pfungst.files import read, whole, write_json, write_tensors
from pfungst.registry import DETECTORS

Detector = Any  # a pfungst.anomaly.base.Detector: base stands on this module

_FORMAT = "pfungst.detector/2"


def save(detector: Detector, folder: Path) -> None:
    """Write a fitted detector. The folder appears whole or not at all; an older one is replaced."""
    tensors: dict[str, Tensor] = {}
    header = {"format": _FORMAT, **_pack(detector, (), tensors)}
    if folder.exists() and any(folder.iterdir()) and not (folder / "detector.json").exists():
        raise InputError(f"{folder} exists and is not a saved detector", "choose another folder")
    with whole(folder) as work:
        write_tensors(work / "weights.safetensors", tensors)
        write_json(work / "detector.json", header, 2)


def load(cls: type, folder: Path, modules: dict[str, nn.Module]) -> Any:
    """Read what :func:`save` wrote; `cls` is the class saved, or a base of it."""
    remedy = (
        "pass the folder of a saved detector; one of an earlier version: fit the detector again and save it"
    )
    header = read(folder / "detector.json", remedy, CheckpointError, _FORMAT)
    tensors = read(folder / "weights.safetensors", remedy, CheckpointError)
    reader = _Reader(folder, tensors, modules)
    detector = reader.detector(header, (), cls)
    if spare := modules.keys() - reader.used:
        raise CheckpointError(f"{folder} was saved without {', '.join(sorted(spare))}", "leave them out")
    return detector


def _pack(detector: Detector, at: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The header of a fitted detector, its tensors added to `tensors`."""
    name = DETECTORS.name_of(type(detector))
    if name is None:
        raise InputError(
            f"{type(detector).__name__} has no name under which it could be saved",
            'write @register("name") above the class; what wrap() made belongs to its library: save it '
            "there, load it and wrap it again",
        )
    own, facts = detector._state()
    own = own | {"training_scores": torch.as_tensor(detector.training_scores_)}
    tensors |= {"/".join((*at, key)): tensor for key, tensor in own.items()}
    params = {k: v for k, v in detector.get_params(deep=False).items() if k != detector.nested}
    return {
        "detector": name,
        "params": {k: _plain(v, (*at, k), tensors) for k, v in params.items()},
        "facts": {k: _plain(v, (*at, k), tensors) for k, v in facts.items()},
        "sample_shape": list(detector.sample_shape_),
        "feature_names": _plain(getattr(detector, "feature_names_in_", None), at, tensors),
        "condition": None if detector.condition_ is None else str(detector.condition_),
        "threshold": float(detector.threshold_),
    }


def _plain(value: Any, at: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; tuples, modules and detectors as objects with one key that says so."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "_state"):
        return {"$detector": _pack(value, at, tensors)}
    if isinstance(value, nn.Module):
        return {"$module": _describe(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_plain(v, at, tensors) for v in value]}
    if isinstance(value, list):
        return [_plain(v, at, tensors) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v, (*at, k), tensors) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise InputError(
        f"{'.'.join(at)} = {value!r} cannot be written to a file", "give it by name, or as a number"
    )


class _Reader:
    """Rebuilds detectors from the headers and tensors of one folder."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor], modules: dict[str, nn.Module]) -> None:
        self.folder, self.tensors, self.modules = folder, tensors, modules
        self.used: set[str] = set()

    def detector(self, header: dict[str, Any], at: tuple[str, ...], cls: type = object) -> Any:
        """The detector at that place, an instance of `cls`."""
        try:
            kind: Any = DETECTORS.get(header["detector"])
        except ConfigError as error:
            raise CheckpointError(
                f"{self.folder}: {error.message}", "import the module that registers it"
            ) from None
        if not issubclass(kind, cls):
            raise CheckpointError(
                f"{self.folder} holds a {kind.__name__}, not a {cls.__name__}", "load it as that"
            )
        try:
            detector = kind(**{k: self._value(v, (*at, k)) for k, v in header["params"].items()})
            shape = detector.sample_shape_ = tuple(header["sample_shape"])
            detector.n_features_in_ = math.prod(shape)
            if header["feature_names"] is not None:
                detector.feature_names_in_ = np.asarray(header["feature_names"], dtype=object)
            detector.condition_, detector.threshold_ = header["condition"], header["threshold"]
            where = choose_device(getattr(detector, "device", "cpu"), float64=True)
            parted = ((*k.rpartition("/"), t) for k, t in self.tensors.items())
            own = {name: t for place, _, name, t in parted if place == "/".join(at)}
            detector.training_scores_ = own.pop("training_scores").numpy()
            facts = {k: self._value(v, (*at, k)) for k, v in header["facts"].items()}
            detector._restore({k: t.to(where) for k, t in own.items()}, facts)
        except (RuntimeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the weights of {self.folder} do not fit: {error}",
                "pass the same modules, or fit and save again",
            ) from None
        return detector

    def _value(self, value: Any, at: tuple[str, ...]) -> Any:
        """What :func:`_plain` wrote."""
        if isinstance(value, list):
            return [self._value(v, at) for v in value]
        if not isinstance(value, dict):
            return value
        if "$tuple" in value:
            return tuple(self._value(v, at) for v in value["$tuple"])
        if "$module" in value:
            return self._module(value["$module"], "__".join(at))
        if "$detector" in value:
            return self.detector(value["$detector"], at)
        return {k: self._value(v, (*at, k)) for k, v in value.items()}

    def _module(self, described: dict[str, Any], name: str) -> nn.Module:
        """The module given by that name, else one of our own layers."""
        if name in self.modules:
            self.used.add(name)
            given = _describe(self.modules[name])
            if given != described and "unknown" not in described:
                raise CheckpointError(
                    f"{name}: {given} given, {described} saved do not fit",
                    "leave it out: it comes from the folder",
                )
            return self.modules[name]
        if "unknown" in described:
            raise CheckpointError(
                f"{self.folder} was saved with a {described['unknown']}",
                f"pass the module: load(path, {name}=...); its weights come from the folder",
            )
        if described["name"] == "sequential":
            return nn.Sequential(*(self._module(layer, name) for layer in described["layers"]))
        from pfungst.mitigate import layer_from_dict

        return layer_from_dict(described)


def _describe(module: Any) -> dict[str, Any]:
    """Our own layers and sequences of them by name; any other module by its class only."""
    if isinstance(module, nn.Sequential):
        parts = [_describe(layer) for layer in module]
        if not any("unknown" in part for part in parts):
            return {"name": "sequential", "layers": parts}
    elif hasattr(module, "to_dict"):
        return module.to_dict()
    return {"unknown": f"{type(module).__module__}.{type(module).__qualname__}"}
