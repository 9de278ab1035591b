"""Detectors on disk: a folder with detector.json and weights.safetensors, never a pickle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfungst.errors import CheckpointError, InputError
from pfungst.files import read, whole, write_json, write_tensors

_FORMAT = "pfungst.detector/1"
_FITTED = ("gamma_", "epsilon_", "threshold_")


def save(detector: Any, folder: Path) -> None:
    """Write a fitted detector. The folder appears whole or not at all; an older one is replaced."""
    params = {k: v for k, v in detector.get_params(deep=False).items() if k != "features"}
    described = describe(detector.features)
    tensors = {
        "prototypes": detector.prototypes_,
        "training_scores": torch.as_tensor(detector.training_scores_),
    }
    if described is not None and "unknown" in described:
        tensors |= {f"features.{k}": v for k, v in detector.features_.state_dict().items()}
    header = {
        "format": _FORMAT,
        "class": type(detector).__name__,
        "params": params,
        "features": described,
        "sample_shape": list(detector.sample_shape_),
        "feature_names": getattr(detector, "feature_names_in_", None),
        "condition": None if detector.condition_ is None else str(detector.condition_),
        "fitted": {k: getattr(detector, k) for k in _FITTED},
    }
    write_folder(Path(folder), header, tensors)


def write_folder(folder: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write detector.json and weights.safetensors. The folder appears whole or not at all."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "detector.json").exists():
        raise InputError(f"{folder} exists and is not a saved detector", "choose another folder")
    with whole(folder) as work:
        write_tensors(work / "weights.safetensors", tensors)
        write_json(work / "detector.json", header, 2, _plain)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors that :func:`write_folder` wrote."""
    remedy = "pass the folder of a saved detector, or save it again"
    header = read(folder / "detector.json", remedy, CheckpointError, _FORMAT)
    return header, read(folder / "weights.safetensors", remedy, CheckpointError)


def load(cls: Any, folder: Path, features: nn.Module | None = None) -> Any:
    """Read what :func:`save` wrote; `cls` is the class saved, or a base of it."""
    header, tensors = read_folder(folder)
    kind = _find(cls, header["class"])
    if kind is None:
        raise CheckpointError(f"{folder} holds a {header['class']}, not a {cls.__name__}", "load it as that")
    if hasattr(kind, "_from_folder"):
        return kind._from_folder(folder, header, tensors, {} if features is None else {"features": features})
    module = rebuild(header["features"], features, folder)
    weights = {k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features.")}
    if module is not None and weights:
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"the features given do not fit {folder}: {error}", "pass the same module"
            ) from None
    detector = kind(**header["params"], features=module)
    detector.sample_shape_ = tuple(header["sample_shape"])
    detector.n_features_in_ = math.prod(detector.sample_shape_)
    if header["feature_names"] is not None:
        import numpy as np

        detector.feature_names_in_ = np.asarray(header["feature_names"], dtype=object)
    detector.condition_ = header["condition"]
    for name, value in header["fitted"].items():
        setattr(detector, name, value)
    detector.training_scores_ = tensors["training_scores"].numpy()
    from pfungst.device import choose_device

    detector._restore(tensors["prototypes"].to(choose_device(detector.device)))
    detector.pooling_ = detector._load_pooling()
    return detector


def describe(features: Any) -> dict[str, Any] | None:
    """Features by name: our own layers and sequences of them; any other module by its class only."""
    if features is None:
        return None
    if isinstance(features, nn.Sequential):
        parts = [describe(layer) for layer in features]
        if not any(part and "unknown" in part for part in parts):
            return {"name": "sequential", "layers": parts}
    elif hasattr(features, "to_dict"):
        return features.to_dict()
    return {"unknown": f"{type(features).__module__}.{type(features).__qualname__}"}


def rebuild(described: dict[str, Any] | None, given: nn.Module | None, folder: Path) -> nn.Module | None:
    """The module that :func:`describe` described, or the one given for it."""
    if described is None or given is not None:
        return given
    if "unknown" in described:
        raise CheckpointError(
            f"{folder} was saved with features of class {described['unknown']}",
            "pass the module: load(path, features=...); its weights come from the folder",
        )
    if described["name"] == "sequential":
        layers = [rebuild(part, None, folder) for part in described["layers"]]
        return nn.Sequential(*(layer for layer in layers if layer is not None))
    from pfungst.mitigate import layer_from_dict

    return layer_from_dict(described)


def _find(cls: Any, name: str) -> Any:
    if cls.__name__ == name:
        return cls
    return next((found for sub in cls.__subclasses__() if (found := _find(sub, name))), None)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value)
