"""`build`: the network of a specification with random weights, with or without its classification head."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pfungst.encoders.encoder import Encoder
from pfungst.encoders.packages import PACKAGES, optional
from pfungst.encoders.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, condition_of
from pfungst.encoders.small import small_cnn
from pfungst.encoders.specification import SCHEMES, Role, Spec, forms, parse
from pfungst.errors import ConfigError
from pfungst.registry import anybodys, called
from pfungst.suggest import suggest


class Built(NamedTuple):
    """A network, its preprocessing, and names (or their leading parts) of the tensors of a head it lacks."""

    network: nn.Module
    preprocessing: Preprocessing
    head: tuple[str, ...] = ()


def build(
    spec: Spec, role: Role = "encoder", size: int | None = None, seed: int = 0, classes: int | None = None
) -> Built:
    """The architecture of a specification, with random weights; those of a function are the function's.

    Args:
        spec: as in :func:`pfungst.encoders.load`, without published checkpoints, folders and text.
        role: only "classifier" has a head.
        size: image size in pixels.
        seed: of the weights.
        classes: of the head; None is the architecture's own number.

    Raises:
        ConfigError: nothing has that name.
    """
    scheme, name = parse(spec, role)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if scheme == "package":
            package = PACKAGES[name]
            built = build(package.architecture, role, size, seed, classes)
            mean, std = package.mean or built.preprocessing.mean, package.std or built.preprocessing.std
            return built._replace(preprocessing=replace(built.preprocessing, mean=mean, std=std))
        if scheme in _LIBRARIES:
            return _LIBRARIES[scheme](name, size, classes if role == "classifier" else 0)
        network = _from_function(spec, role)
    if isinstance(network, Encoder):
        return Built(network, network.preprocessing)
    condition = "pillow-bilinear" if role == "classifier" else Preprocessing().condition
    return Built(network, Preprocessing(size or 224, condition))


def _torchvision(name: str, size: int | None, classes: int | None) -> Built:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}", suggest(name, [*PACKAGES, *known]))
    options: dict[str, Any] = {"num_classes": classes} if classes else {}
    if name.startswith("vit_") and size:
        options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": classes == 0, "aux_logits": False}
    network = models.get_model(name, weights=None, **options)
    weights = models.get_model_weights(name)
    published = next((w for w in weights if w.name == "IMAGENET1K_V1"), weights.DEFAULT)
    t = published.transforms()
    condition = condition_of(t.interpolation, min(1.0, t.crop_size[0] / t.resize_size[0]))
    preprocessing = Preprocessing(size or t.crop_size[0], condition, t.mean, t.std)
    return Built(network, preprocessing, _drop_head(network) if classes == 0 else ())


def _timm(name: str, size: int | None, classes: int | None) -> Built:
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}", suggest(name, timm.list_models()))
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    network: Any = timm.create_model(name, pretrained=False, **options)
    config = timm.data.resolve_model_data_config(network)
    own = config["input_size"][-1]
    if size and size != own:
        with suppress(TypeError):  # convolutional networks have no such option and need none
            network = timm.create_model(name, pretrained=False, img_size=size, **options)
    head = (network.pretrained_cfg or {}).get("classifier") or ()
    condition = condition_of(config["interpolation"], config["crop_pct"])
    preprocessing = Preprocessing(size or own, condition, config["mean"], config["std"])
    return Built(network, preprocessing, (head,) if isinstance(head, str) else tuple(head))


def _open_clip(name: str, size: int | None, classes: int | None) -> Built:
    open_clip = optional("open_clip", "open_clip_torch")
    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model {name!r}", suggest(name, open_clip.list_models()))
    with _quiet():
        visual = open_clip.create_model(name, pretrained=None, force_image_size=size).visual
    side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return Built(visual, Preprocessing(side, "crop:1+pillow-bicubic", CLIP_MEAN, CLIP_STD))


def _small(width: str, size: int | None, classes: int | None) -> Built:
    if not width.isdecimal():
        raise ConfigError(f"small:{width} has no width", "write for example small:32")
    half = (0.5, 0.5, 0.5)
    return Built(small_cnn(int(width)), Preprocessing(size or 32, "pillow-bilinear", half, half))


# Name, size and number of classes (0: no head, None: the architecture's own) → the network.
_LIBRARIES: dict[str, Callable[[str, int | None, int | None], Built]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "open_clip": _open_clip,
    "small": _small,
}


def _drop_head(model: nn.Module) -> tuple[str, ...]:
    """Replace the last linear layer of a classifier by the identity; returns its name."""
    for name in ("fc", "classifier", "heads", "head"):
        layers = [n for n, m in model.named_modules() if n.split(".")[0] == name and isinstance(m, nn.Linear)]
        if layers:
            parent, _, last = layers[-1].rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Identity())
            return (layers[-1],)
    return ()


def _from_function(spec: Spec, role: Role) -> nn.Module:
    target: Any = spec
    if isinstance(spec, str):
        where, _, attribute = spec.rpartition(":")
        try:
            with anybodys(f"{where} cannot be run:") if Path(where).is_file() else nullcontext():
                module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
            target = getattr(module, attribute)
        except (ImportError, AttributeError, OSError, ValueError) as error:
            near = difflib.get_close_matches(where, SCHEMES, 1)
            hint = f"did you mean {near[0]}:{attribute}? " if near else ""
            raise ConfigError(
                f"{spec!r} names no {role}: {error}", f"{hint}write one of {forms(role)}"
            ) from None
    made = target if isinstance(target, nn.Module) else called(target, str(spec))
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{spec} returned {type(made).__name__}, not a torch module", "return the network")
    return made


class _AsItIs(importlib.machinery.SourceFileLoader):
    """Compiles what the file says now; cached bytecode is known by size and second, maybe of another text."""

    def get_code(self, fullname: str) -> Any:
        """The code of the file, never of the cache."""
        self.text = self.get_data(self.path)
        return self.source_to_code(self.text, self.path)

    def get_source(self, fullname: str) -> str:
        """What ran, whatever became of the file since then."""
        return importlib.util.decode_source(self.text)


def _file(path: Path) -> Any:
    name = f"_pfungst_{path.stem}"
    location = importlib.util.spec_from_file_location(name, path, loader=_AsItIs(name, str(path)))
    if location is None or location.loader is None or not path.is_file():
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module
    location.loader.exec_module(module)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that no pretrained weights were loaded
    try:
        yield
    finally:
        logging.disable(before)
