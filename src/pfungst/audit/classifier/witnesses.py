"""Other models that know the classes: asked whether they read the same, and whether the object is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.config import check_file, with_checkpoint
from pfungst.data.outputs import Outputs, match_outputs
from pfungst.encoders import load
from pfungst.encoders.packages import PACKAGES, installed
from pfungst.encoders.specification import parse, short_name
from pfungst.errors import ConfigError, InputError
from pfungst.features.folded import folded
from pfungst.measure import limits
from pfungst.spurious import Witness
from pfungst.spurious.heads import logits_of

_COMMON = ("efficientnet-lite0", "mobilenetv2", "efficientnet-lite1")


@dataclass(frozen=True)
class Other:
    """Another model; `classes` are its indices by those of the audited model."""

    name: str
    model: nn.Module
    classes: dict[int, int]

    def of(self, class_: int) -> Witness:
        return Witness(self.model, self.classes[class_])


class _Resized(nn.Module):
    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.model(x)


def check_witnesses(config: ClassifierConfig) -> None:
    """Find what is wrong with ``--witness`` before anything is loaded."""
    if "none" in config.witness and len(config.witness) > 1:
        raise ConfigError("--witness none and another", "leave one of them out")
    for text in config.witness:
        if text != "none":
            spec, checkpoint = with_checkpoint(text, "--witness")
            parse(spec, "classifier")
            check_file(checkpoint, "--witness")


def load_witnesses(
    config: ClassifierConfig, outputs: Outputs, n_outputs: int, size: int, device: torch.device
) -> list[Other]:
    """The witnesses of an audit, on its device.

    Args:
        config: with ``--witness``, or without: then the first two other networks with weights that are
            installed, where all labels are classes of ImageNet.
        outputs, n_outputs, size, device: of the audited model and its images.

    Raises:
        ConfigError, InputError, CheckpointError: one cannot be loaded, or does not know the classes.
    """
    given = [text for text in config.witness if text != "none"]
    if not config.witness:
        given = _common(config, outputs, n_outputs)
    found = []
    for text in given:
        spec, checkpoint = with_checkpoint(text, "--witness")
        own = (
            size if parse(spec, "classifier")[0] == "function" else None
        )  # a function says no size of its own
        trust = config.trust_checkpoint
        loaded = load(spec, "classifier", checkpoint=checkpoint, trust_checkpoint=trust, size=own)
        side = loaded.preprocessing.size
        example = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        model = _Resized(folded(loaded.model.to(device).eval(), example), side)
        with torch.no_grad():
            n = logits_of(model(example)).shape[1]
        try:
            classes = _classes(outputs, n_outputs, n)
        except InputError as error:
            raise InputError(f"--witness {text} does not know the classes: {error}", error.remedy) from None
        found.append(Other(short_name(spec), model, classes))
    return found


def _common(config: ClassifierConfig, outputs: Outputs, n_outputs: int) -> list[str]:
    try:
        _classes(outputs, n_outputs, 1000)
    except InputError:
        return []
    there = [n for n in _COMMON if installed(PACKAGES[n].distribution.replace("-", "_"))]
    return [n for n in there if n != config.model][: int(limits.WITNESSES)]


def _classes(outputs: Outputs, ours: int, theirs: int) -> dict[int, int]:
    """{class of the audited model: class of one with so many outputs}, by labels, or the names of indices."""
    labels = dict(outputs.index)
    if all(label.isdecimal() for label in labels):  # an index means something in models of its order only
        if ours == theirs:
            return {k: k for k in labels.values()}
        labels = {outputs.names[k]: k for k in labels.values()}
        if all(name.isdecimal() for name in labels):
            raise InputError(f"the labels are indices of {ours} outputs, it has {theirs}", "name the classes")
    found = match_outputs(labels, theirs).index
    return {k: found[label] for label, k in labels.items()}
