"""`load`: models by name, as encoders, as classifiers and as backbones of detectors."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pfungst.device import choose_device
from pfungst.encoders.architectures import Built, build
from pfungst.encoders.checkpoints import State, best_prefix, load_state, read_checkpoint
from pfungst.encoders.edits import apply_edit
from pfungst.encoders.encoder import _FORMAT, Encoder
from pfungst.encoders.packages import PACKAGES
from pfungst.encoders.preprocessing import Normalise, Preprocessing
from pfungst.encoders.published import ARCHITECTURE_OF
from pfungst.encoders.specification import STORED, Role, Spec, parse, short_name
from pfungst.errors import CheckpointError, ConfigError, PfungstWarning
from pfungst.files import read


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


def load(
    spec: Spec,
    role: Role = "encoder",
    *,
    checkpoint: str | Path | None = None,
    trust_checkpoint: bool = False,
    size: int | None = None,
    condition: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    weights: bool = True,
) -> Any:
    """The model that a specification names, in the role it is to have.

    Nothing is downloaded. Without a checkpoint the weights of an encoder or a backbone are random (drawn from
    `seed`), which is a baseline and said so by `encoder.trained`; a classifier needs its weights.

    Args:
        spec: ``efficientnet-lite0`` (``1``, ``2``) or ``mobilenetv2``, whose weights are in installed
            packages; ``torchvision:resnet50`` (``resnet50`` is the same), ``timm:vit_small_patch16_224``,
            ``open_clip:RN50``, ``small:32`` (our CNN of that width); ``vissl:FILE``, ``barlowtwins:FILE``,
            ``pubmedclip:FILE``, ``sentence-transformers:FOLDER``, ``pfungst:FOLDER`` (written by
            :meth:`Encoder.save`); or ``package.module:function``, ``file.py:function`` or a function. It
            returns a module: a classifier of images in [0, 1], else an `Encoder` or what reads images
            normalised as ImageNet's.
        role: "encoder" and "backbone" have no classification head, "classifier" has one; a backbone reads no
            text.
        checkpoint: weights of libraries' architectures, `small` and functions. A classifier's number of
            classes is read from it.
        trust_checkpoint: also read checkpoints that can run code.
        size: image size in pixels, where the architecture allows another than its own.
        condition: how files are brought to that size, instead of what the weights were trained with.
        seed: of random weights.
        device: where to put it.
        weights: False leaves the weights of a package random; it need not be installed.

    Returns:
        A :class:`Classifier`; else an :class:`Encoder`, or a :class:`SentenceEncoder` for text.

    Raises:
        ConfigError: the specification names nothing we can build, a package is not installed, a classifier
            comes without weights, or the device does not exist.
        CheckpointError: the checkpoint does not fit or cannot be loaded safely.
    """
    place = choose_device(device)
    scheme, rest = parse(spec, role)
    if checkpoint is not None and scheme in STORED:
        raise ConfigError(f"{spec} brings its weights, and {checkpoint} others", "leave one of them out")
    if scheme == "sentence-transformers":
        from pfungst.encoders.text import SentenceEncoder

        return SentenceEncoder.load(rest, device=device)
    if role == "classifier" and checkpoint is None and scheme in ("torchvision", "timm"):
        raise ConfigError(
            f"{spec} comes without weights: Pfungst downloads nothing",
            f"give --checkpoint FILE (safetensors or a state dict), or use {' or '.join(PACKAGES)}",
        )
    made: Encoder | Classifier
    if scheme == "pfungst":
        made = _saved(Path(rest))
    else:
        architecture, state, source = spec, None, str(checkpoint)
        if scheme in ARCHITECTURE_OF:
            state, source = read_checkpoint(rest, trust_checkpoint), rest
            architecture = ARCHITECTURE_OF[scheme](state, rest)
        built = build(architecture, role, size, seed)
        if scheme == "package" and weights:
            state, source = PACKAGES[rest].tensors(build(spec, "classifier").network.state_dict()), rest
        elif checkpoint is not None:
            state = read_checkpoint(checkpoint, trust_checkpoint)
        finish = _classifier if role == "classifier" else _encoder
        made = finish(built, architecture, state, source, size)
    if scheme in ARCHITECTURE_OF:
        made.name = f"{scheme}:{Path(rest).name}"
    own = made.preprocessing
    made.preprocessing = replace(own, size=size or own.size, condition=condition or own.condition)
    (made if isinstance(made, Encoder) else made.model).to(place).eval()
    return made


def _encoder(built: Built, spec: Spec, state: State | None, source: str, size: int | None) -> Encoder:
    architecture = {"spec": spec, "size": size} if isinstance(spec, str) else None
    if isinstance(built.network, Encoder):
        encoder, encoder.architecture = built.network, architecture
    else:
        scheme, name = parse(spec)
        name = short_name(spec) if isinstance(spec, str) else name
        encoder = Encoder(built.network, built.preprocessing, name, architecture, scheme == "function")
    if state:
        encoder.info["weights"] = _fill(encoder.features, state, source, built.head)
        encoder.trained = True
    return encoder


def _classifier(built: Built, spec: Spec, state: State | None, source: str, size: int | None) -> Classifier:
    network, weights = built.network, "as the function returned it"
    scheme, name = parse(spec)
    if state is not None:
        classes = None if scheme == "function" else _classes(network, state)
        if classes is not None:
            network = build(spec, "classifier", size, classes=classes).network
        weights = _fill(network, state, source)
    if scheme != "function":
        norm = Normalise(built.preprocessing.mean, built.preprocessing.std)
        network = nn.Sequential(OrderedDict(normalize=norm, model=network))
    return Classifier(network, built.preprocessing, name if callable(spec) else spec, weights)


def _fill(network: nn.Module, state: State, source: str, head: tuple[str, ...] = ()) -> str:
    report = load_state(network, state, source, head)
    if report.unexpected:
        warnings.warn(f"{source}: {report}", PfungstWarning, stacklevel=4)
    return str(report)


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


def _saved(folder: Path) -> Encoder:
    remedy = "pass a folder that Encoder.save of this version wrote"
    description = read(folder / "encoder.json", remedy, CheckpointError, _FORMAT)
    architecture = description["architecture"]
    network = build(architecture["spec"], size=architecture["size"]).network
    encoder = Encoder(
        network.features if isinstance(network, Encoder) else network,
        Preprocessing.from_dict(description["preprocessing"]),
        description["name"],
        architecture,
        description["trained"],
    )
    for edit in description["edits"]:
        apply_edit(encoder, edit)
    encoder.info = description["info"]
    weights = folder / "encoder.safetensors"
    load_state(encoder.features, read_checkpoint(weights), weights)
    return encoder
