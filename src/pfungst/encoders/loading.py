"""`load`: encoders by name, from the libraries and checkpoints that people have."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pfungst.device import choose_device
from pfungst.encoders.checkpoints import State, best_prefix, load_state, read_checkpoint
from pfungst.encoders.edits import apply_edit
from pfungst.encoders.encoder import _FORMAT, Encoder
from pfungst.encoders.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    Preprocessing,
    condition_of,
)
from pfungst.encoders.small import small_cnn
from pfungst.errors import CheckpointError, ConfigError, PfungstWarning
from pfungst.files import read
from pfungst.suggest import suggest

Built = tuple[nn.Module, Preprocessing, tuple[str, ...]]

_SCHEMES = (
    "torchvision:NAME, timm:NAME, open_clip:NAME, vissl:CHECKPOINT, barlowtwins:CHECKPOINT, "
    "pubmedclip:CHECKPOINT, sentence-transformers:PATH, pfungst:FOLDER, small:WIDTH, module:function or file.py:function"
)


def load(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    trust_checkpoint: bool = False,
    size: int | None = None,
    condition: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Any:
    """The encoder that a specification names.

    Nothing is downloaded: without a checkpoint the weights are random (drawn from `seed`), which is a
    baseline and said so by `encoder.trained`.

    Args:
        spec: ``torchvision:resnet50``, ``timm:vit_small_patch16_224``, ``open_clip:RN50``,
            ``vissl:FILE``, ``barlowtwins:FILE``, ``pubmedclip:FILE``, ``sentence-transformers:FOLDER``,
            ``pfungst:FOLDER`` (written by :meth:`Encoder.save`), ``small:32`` (our CNN of that width), or
            ``package.module:function`` (also ``file.py:function``) that returns a module or an Encoder.
        checkpoint: weights for the first three, `small` and functions.
        trust_checkpoint: also read checkpoints that can run code.
        size: image size in pixels, where the architecture allows another than its own.
        condition: how files are brought to that size, instead of what the weights were trained with.
        seed: of random weights.
        device: where to put it.

    Returns:
        An :class:`Encoder`, or a :class:`SentenceEncoder` for text.

    Raises:
        ConfigError: the specification names nothing we can build, or the device does not exist.
        CheckpointError: the checkpoint does not fit or cannot be loaded safely.
    """
    place = choose_device(device)
    scheme, _, rest = spec.partition(":")
    if not rest:
        raise ConfigError(f"{spec!r} names no encoder", f"write one of {_SCHEMES}")
    if scheme == "sentence-transformers":
        from pfungst.encoders.text import SentenceEncoder

        return SentenceEncoder.load(rest, device=device)
    if scheme == "pfungst":
        return _saved(Path(rest)).to(place)
    if scheme in _FROM_CHECKPOINT:
        if checkpoint is not None:
            raise ConfigError(f"{scheme}: takes its checkpoint in the specification", f"write {scheme}:FILE")
        state = read_checkpoint(rest, trust_checkpoint)
        architecture, source = _FROM_CHECKPOINT[scheme](state, rest), rest
    else:
        architecture, source = spec, str(checkpoint)
        state = {} if checkpoint is None else read_checkpoint(checkpoint, trust_checkpoint)
    encoder = build(architecture, size, seed)
    if state:
        head = encoder.info.pop("head", ())
        report = load_state(encoder.features, state, source, head)
        encoder.trained, encoder.info["weights"] = True, str(report)
        if report.unexpected:
            warnings.warn(f"{source}: {report}", PfungstWarning, stacklevel=2)
    encoder.info.pop("head", None)
    if scheme in _FROM_CHECKPOINT:
        encoder.name = f"{scheme}:{Path(rest).name}"
    if condition is not None:
        settings = {**encoder.preprocessing.to_dict(), "condition": condition}
        encoder.preprocessing = Preprocessing.from_dict(settings)
    return encoder.to(place).eval()


def build(spec: str, size: int | None = None, seed: int = 0) -> Encoder:
    """The architecture of a specification, with random weights."""
    scheme, _, rest = spec.partition(":")
    builder = LIBRARIES.get(scheme)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if builder is None:
            made = from_function(spec, "encoder", _SCHEMES)
            if isinstance(made, Encoder):
                made.architecture = {"spec": spec, "size": size}
                return made
            features, preprocessing = made, Preprocessing(size=size or 224)
            head: tuple[str, ...] = ()
        else:
            features, preprocessing, head = builder(rest, size)
    architecture = {"spec": spec, "size": size}
    encoder = Encoder(features, preprocessing, spec, architecture, trained=builder is None)
    encoder.info["head"] = head
    return encoder


def _saved(folder: Path) -> Encoder:
    remedy = "pass a folder that Encoder.save of this version wrote"
    description = read(folder / "encoder.json", remedy, CheckpointError, _FORMAT)
    built = build(description["architecture"]["spec"], description["architecture"]["size"])
    encoder = Encoder(
        built.features,
        Preprocessing.from_dict(description["preprocessing"]),
        description["name"],
        description["architecture"],
        description["trained"],
    )
    for edit in description["edits"]:
        apply_edit(encoder, edit)
    encoder.info = description["info"]
    state = read_checkpoint(folder / "encoder.safetensors")
    load_state(encoder.features, state, folder / "encoder.safetensors")
    return encoder.eval()


# -- architectures ---------------------------------------------------------------------------------------


def _torchvision(name: str, size: int | None) -> Built:
    from torchvision import models

    try:
        weights = models.get_model_weights(name)
    except ValueError:
        raise ConfigError(
            f"torchvision has no model {name!r}", suggest(name, models.list_models(module=models))
        ) from None
    options: dict[str, Any] = {"weights": None}
    if name.startswith("vit_") and size:
        options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    model = models.get_model(name, **options)
    published = next((w for w in weights if w.name == "IMAGENET1K_V1"), weights.DEFAULT)
    t = published.transforms()
    share = min(1.0, t.crop_size[0] / t.resize_size[0])
    condition = condition_of(t.interpolation, share)
    preprocessing = Preprocessing(size or t.crop_size[0], condition, t.mean, t.std)
    return model, preprocessing, _drop_head(model)


def _timm(name: str, size: int | None) -> Built:
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}", suggest(name, timm.list_models()))
    probe: Any = timm.create_model(name, pretrained=False, num_classes=0)
    config = timm.data.resolve_model_data_config(probe)
    if size and size != config["input_size"][-1]:
        with suppress(TypeError):  # convolutional networks have no such option and need none
            probe = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    head = (probe.pretrained_cfg or {}).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    preprocessing = Preprocessing(
        size or config["input_size"][-1],
        condition_of(config["interpolation"], config["crop_pct"]),
        config["mean"],
        config["std"],
    )
    return probe, preprocessing, heads


def _open_clip(name: str, size: int | None) -> Built:
    open_clip = _optional("open_clip", "open_clip_torch")

    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model {name!r}", suggest(name, open_clip.list_models()))
    with _quiet():
        model = open_clip.create_model(name, pretrained=None, force_image_size=size)
    visual = model.visual
    side = visual.image_size
    side = side if isinstance(side, int) else side[0]
    return visual, Preprocessing(side, "crop:1+pillow-bicubic", CLIP_MEAN, CLIP_STD), ()


def _small(rest: str, size: int | None) -> Built:
    try:
        width = int(rest)
    except ValueError:
        raise ConfigError(f"small:{rest} has no width", "write for example small:32") from None
    half = (0.5, 0.5, 0.5)
    return small_cnn(width), Preprocessing(size or 32, "pillow-bilinear", half, half), ()


LIBRARIES: dict[str, Callable[[str, int | None], Built]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "open_clip": _open_clip,
    "small": _small,
}


def _drop_head(model: nn.Module) -> tuple[str, ...]:
    """Replace the last linear layer of a classifier by the identity; returns its name."""
    for name in ("fc", "classifier", "heads", "head"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Linear):
            setattr(model, name, nn.Identity())
            return (name,)
        if isinstance(part, nn.Module):
            found = [n for n, m in part.named_modules() if isinstance(m, nn.Linear)]
            if found:
                *path, last = found[-1].split(".")
                setattr(part.get_submodule(".".join(path)), last, nn.Identity())
                return (f"{name}.{found[-1]}",)
    return ()


def from_function(spec: str, what: str, forms: str) -> nn.Module:
    """The module that ``package.module:function`` or ``file.py:function`` names or returns.

    Raises:
        ConfigError: there is none; it says that this is no `what`, and the forms to write.
    """
    where, _, attribute = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            module = _file(Path(where))
        else:
            module = importlib.import_module(where)
        target = getattr(module, attribute)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise ConfigError(f"{spec!r} names no {what}: {error}", f"write {forms}") from None
    made = target if isinstance(target, nn.Module) else target()
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{spec} returned {type(made).__name__}, not a torch module", f"return the {what}")
    return made


def _file(path: Path) -> Any:
    name = f"_pfungst_{path.stem}"
    location = importlib.util.spec_from_file_location(name, path)
    if location is None or location.loader is None or not path.is_file():
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module
    location.loader.exec_module(module)
    return module


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"the package {package} is not installed", "pip install pfungst[encoders]"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that no pretrained weights were loaded
    try:
        yield
    finally:
        logging.disable(before)


# -- architectures read off a checkpoint -------------------------------------------------------------------


def _resnet_of(state: State, source: str) -> str:
    """The torchvision ResNet to which a state dict belongs, by its shapes."""
    marks = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
    prefix = best_prefix(state, marks)
    names = {k[len(prefix) :]: tuple(v.shape) for k, v in state.items() if k.startswith(prefix)}
    if not all(m in names for m in marks):
        raise CheckpointError(
            f"{source} holds no ResNet: {next((m for m in marks if m not in names), '')} is missing",
            "use torchvision:NAME or timm:NAME with checkpoint=… for other architectures",
        )
    depths = tuple(
        len({m.group(1) for k in names if (m := re.match(rf"layer{i}\.(\d+)\.", k))}) for i in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in names
    stem, width = names["conv1.weight"][0], names["layer1.0.conv1.weight"][0]
    known: dict[tuple[tuple[int, ...], bool, int, int], str] = {
        ((2, 2, 2, 2), False, 64, 64): "resnet18",
        ((3, 4, 6, 3), False, 64, 64): "resnet34",
        ((3, 4, 6, 3), True, 64, 64): "resnet50",
        ((3, 4, 23, 3), True, 64, 64): "resnet101",
        ((3, 8, 36, 3), True, 64, 64): "resnet152",
        ((3, 4, 6, 3), True, 64, 128): "wide_resnet50_2",
        ((3, 4, 23, 3), True, 64, 128): "wide_resnet101_2",
    }
    found = known.get((depths, bottleneck, stem, width))
    if found is None:
        raise CheckpointError(
            f"{source} is a ResNet with {depths} blocks, stem {stem} and width {width}, which torchvision "
            "does not have",
            "write a function that builds it and use module:function with checkpoint=…",
        )
    return f"torchvision:{found}"


def _clip_of(state: State, source: str) -> str:
    """The open_clip model to which the image tower of an OpenAI-style CLIP checkpoint belongs."""
    marks = ("visual.conv1.weight", "visual.positional_embedding", "visual.attnpool.positional_embedding")
    prefix = best_prefix(state, marks)
    shape = {k[len(prefix) :]: tuple(v.shape) for k, v in state.items() if k.startswith(prefix)}
    if "visual.attnpool.positional_embedding" in shape:
        dim = shape["visual.attnpool.c_proj.weight"][0]
        blocks = len({k.split(".")[2] for k in shape if k.startswith("visual.layer3.")})
        known = {(1024, 6): "RN50", (512, 23): "RN101", (640, 10): "RN50x4", (768, 18): "RN50x16"}
        found = known.get((dim, blocks))
        if found:
            return f"open_clip:{found}"
    elif "visual.proj" in shape:
        patch, width = shape["visual.conv1.weight"][-1], shape["visual.conv1.weight"][0]
        known_vit = {(32, 768): "ViT-B-32", (16, 768): "ViT-B-16", (14, 1024): "ViT-L-14"}
        if (patch, width) in known_vit:
            return f"open_clip:{known_vit[patch, width]}-quickgelu"
    raise CheckpointError(
        f"{source} holds no CLIP image encoder that we recognise (its names are like "
        f"{', '.join(list(state)[:3])})",
        "use open_clip:NAME with checkpoint=…",
    )


_FROM_CHECKPOINT: dict[str, Callable[[State, str], str]] = {
    "vissl": _resnet_of,
    "barlowtwins": _resnet_of,
    "pubmedclip": _clip_of,
}
