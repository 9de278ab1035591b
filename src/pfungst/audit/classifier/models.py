"""Classifiers by name, with their weights from a checkpoint; nothing is downloaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.encoders import Preprocessing, read_checkpoint
from pfungst.encoders.checkpoints import State, best_prefix, load_state
from pfungst.encoders.loading import from_function
from pfungst.encoders.preprocessing import condition_of
from pfungst.errors import ConfigError
from pfungst.suggest import suggest

_FORMS = "timm:NAME, torchvision:NAME, package.module:function or file.py:function"


@dataclass
class Classifier:
    """A classifier that takes images in [0, 1].

    Attributes:
        model: in evaluation mode, normalisation inside.
        preprocessing: how files become its images.
        name: the specification.
        weights: what was loaded.
    """

    model: nn.Module
    preprocessing: Preprocessing
    name: str
    weights: str


class Normalize(nn.Module):
    """(x − mean) / std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def load_classifier(
    spec: str,
    checkpoint: str | Path | None = None,
    *,
    trust_checkpoint: bool = False,
    size: int | None = None,
    condition: str | None = None,
) -> Classifier:
    """The classifier that a specification names, with the weights of a checkpoint.

    Args:
        spec: ``timm:resnet50``, ``torchvision:resnet50``, or ``package.module:function`` (also ``file.py:function``)
            that returns a module which takes images (N, 3, H, W) in [0, 1] and returns logits.
        checkpoint: safetensors or a state dict; a function may bring its own weights instead. The number of classes
            is read from it.
        trust_checkpoint: also read checkpoints that can run code.
        size: side of the images, by default that of the published weights, 224 for functions.
        condition: how files are brought to that size, by default as for the published weights.

    Raises:
        ConfigError: the specification names nothing, or a library's architecture comes without a checkpoint.
        CheckpointError: the checkpoint does not fit or cannot be loaded safely.
    """
    scheme, _, name = spec.partition(":")
    if not name:
        raise ConfigError(f"{spec!r} names no classifier", f"write {_FORMS}")
    if scheme in _LIBRARIES:
        if checkpoint is None:
            raise ConfigError(
                f"{spec} comes without weights: Pfungst downloads nothing",
                "give --checkpoint FILE (safetensors or a state dict)",
            )
        make, preprocessing = _LIBRARIES[scheme](name)
        state = read_checkpoint(checkpoint, trust_checkpoint)
        model = make(None)
        classes = _classes(model, state)
        if classes is not None:
            model = make(classes)
        weights = str(load_state(model, state, str(checkpoint)))
        norm = Normalize(preprocessing.mean, preprocessing.std)
        model = nn.Sequential(OrderedDict(normalize=norm, model=model))
    else:
        model, preprocessing = (
            from_function(spec, "classifier", _FORMS),
            Preprocessing(condition="pillow-bilinear"),
        )
        weights = "as the function returned it"
        if checkpoint is not None:
            state = read_checkpoint(checkpoint, trust_checkpoint)
            weights = str(load_state(model, state, str(checkpoint)))
    settings = preprocessing.to_dict()
    settings |= {"size": size} if size else {}
    settings |= {"condition": condition} if condition else {}
    return Classifier(model.eval(), Preprocessing.from_dict(settings), spec, weights)


def short_name(spec: str) -> str:
    """A specification for people to read: without the folder of a file or the package of a module."""
    where, separator, attribute = spec.rpartition(":")
    name = Path(where).name if where.endswith(".py") else where.rpartition(".")[2]
    return f"{name}{separator}{attribute}"


def _classes(model: nn.Module, state: State) -> int | None:
    """The checkpoint's number of classes where it is another than the architecture's default."""
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    prefix = best_prefix(state, wanted)
    rows = {
        int(v.shape[0])
        for k, v in state.items()
        if k.startswith(prefix)
        and (shape := wanted.get(k[len(prefix) :])) is not None
        and tuple(v.shape) != shape
        and tuple(v.shape[1:]) == shape[1:]
    }
    return rows.pop() if len(rows) == 1 else None


Made = tuple[Callable[[int | None], nn.Module], Preprocessing]


def _timm(name: str) -> Made:
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}", suggest(name, timm.list_models()))

    def make(classes: int | None) -> nn.Module:
        options: Any = {} if classes is None else {"num_classes": classes}
        return timm.create_model(name, pretrained=False, **options)

    config = timm.data.resolve_data_config({}, model=make(None))
    condition = condition_of(config["interpolation"], config["crop_pct"])
    return make, Preprocessing(config["input_size"][-1], condition, config["mean"], config["std"])


def _torchvision(name: str) -> Made:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(
            f"torchvision has no classifier {name!r}", suggest(name, models.list_models(module=models))
        )
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}

    def make(classes: int | None) -> nn.Module:
        return models.get_model(name, **options, **({} if classes is None else {"num_classes": classes}))

    weights = models.get_model_weights(name)
    published = next((w for w in weights if w.name == "IMAGENET1K_V1"), weights.DEFAULT)
    t = published.transforms()
    condition = condition_of(t.interpolation, min(1.0, t.crop_size[0] / t.resize_size[0]))
    return make, Preprocessing(t.crop_size[0], condition, t.mean, t.std)


_LIBRARIES: dict[str, Callable[[str], Made]] = {"timm": _timm, "torchvision": _torchvision}
