"""What detectors on networks share: the backbone, and explanations through the engine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.anomaly.base import Detector
from pfungst.anomaly.features import load_named_weights, named_weights
from pfungst.anomaly.inputs import check_finite
from pfungst.conditions import Size, sides
from pfungst.device import choose_device
from pfungst.encoders import Encoder, load
from pfungst.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Normalise
from pfungst.errors import ConfigError, InputError, PfungstWarning
from pfungst.relevance import Basis, Composite, Gradient, Relevance, attribute, composite

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


class NetworkDetector(Detector):
    """A detector whose features are a network's.

    Subclasses score and explain one batch.
    """

    device: str
    batch_size: int

    def _check_params(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size} is not positive", "for example 16")

    def _score(self, x: Tensor) -> Tensor:
        parts = [self._score_batch(part) for part in x.split(self.batch_size)]
        return check_finite(torch.cat(parts), x.dtype)

    def _score_batch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        parts = [self._explain_batch(part, basis) for part in x.split(self.batch_size)]
        return Relevance(
            torch.cat([p.values for p in parts]),
            torch.cat([p.score for p in parts]),
            basis,
            torch.cat([p.bias for p in parts]),
        )

    def _explain_batch(self, x: Tensor, basis: Basis) -> Relevance:
        raise NotImplementedError


class BackboneDetector(NetworkDetector):
    """A detector on a backbone, which may be named and is written with its weights."""

    backbone: str | nn.Module
    checkpoint: str | Path | None
    features: nn.Module | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None

    def _head(self, network: nn.Module) -> nn.Module:
        """What runs on normalised images."""
        return network

    def _build(self, weights: bool = True) -> None:
        checkpoint = self.checkpoint if weights else None
        network, mean, std = load_backbone(self.backbone, checkpoint, self.seed, weights)
        normalise = Normalise(mean if self.mean is None else self.mean, std if self.std is None else self.std)
        self._on = choose_device(self.device, float64=True)
        self.backbone_ = network
        self.chain_ = Chain(normalise, self.features, self._head(network)).to(self._on).eval()
        for parameter in self.chain_.parameters():
            parameter.requires_grad_(False)

    def check_size(self, size: Size) -> None:
        probe = copy.copy(self)
        probe._build(weights=False)
        with torch.no_grad():
            probe.chain_(torch.zeros(1, 3, *sides(size), device=probe._on))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return named_weights("backbone", self.backbone_) | named_weights("features", self.features), {}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._build(weights=False)
        load_named_weights("backbone", self.backbone_, tensors)
        load_named_weights("features", self.features, tensors)


_TOO_SMALL = ("Output size is too small", "Kernel size can't be greater", "mat1 and mat2 shapes")


class Chain(nn.Module):
    """normalise · front · network: what runs between an image in [0, 1] and its features."""

    def __init__(self, normalise: nn.Module, front: nn.Module | None, network: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.front = front if front is not None else nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        x = self.front(self.normalise(x))
        try:
            return self.network(x)
        except RuntimeError as error:
            if not any(hint in str(error) for hint in _TOO_SMALL):
                raise
            raise InputError(
                f"images of {x.shape[-2]} × {x.shape[-1]} pixels are too small for the backbone: {error}",
                "use larger images (size), or a backbone for small ones, such as letters for 28 pixels",
            ) from error


def chain_composite(rules: str | Composite) -> Composite:
    """The rules, with the linear layers in front of the network passed by plain gradient × input."""
    return composite(rules).assign("front*", Gradient())


def load_backbone(
    backbone: str | nn.Module, checkpoint: str | Path | None, seed: int, weights: bool = True
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """The network, and the mean and standard deviation its input is normalised by.

    Args:
        backbone: a module that reads images normalised as ImageNet's; an `Encoder` (which knows its own
            normalisation); or a name, what `pfungst.encoders.load` understands ("resnet18",
            "efficientnet-lite0") or "letters", the CNN of the digit recipe, trained here and now on rendered
            letters (28 px).
        checkpoint: weights; without them those of a library's network are random, drawn from `seed`.
        weights: False leaves them random where they are to be filled in later.
    """
    if backbone == "letters":
        from pfungst.anomaly.letters import letters_backbone

        return letters_backbone(checkpoint, weights), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if isinstance(backbone, str):
        network: nn.Module = load(backbone, "backbone", checkpoint=checkpoint, seed=seed, weights=weights)
        if weights and not network.trained:
            message = f"{backbone} without a checkpoint has random weights: a baseline"
            warnings.warn(message, PfungstWarning, stacklevel=6)
    elif checkpoint is not None:
        raise ConfigError(
            "a checkpoint for a backbone that is a module", "load the module's weights yourself"
        )
    else:
        network = copy.deepcopy(backbone)
    if isinstance(network, Encoder):
        return network.features.eval(), network.preprocessing.mean, network.preprocessing.std
    return network.eval(), *IMAGENET


def attribute_weighted(
    chain: nn.Module,
    x: Tensor,
    pick: Callable[[Any], Tensor],
    score: Tensor,
    rules: str | Composite,
    basis: Basis,
) -> Relevance:
    """Relevance of a weighted sum of the chain's outputs, compared with the score it stands for.

    Args:
        pick: the chain's output → (N,), the sum Σ_k R_k φ_k / stab(φ_k).
        score: (N,), what is explained; where it differs from the sum, the difference is reported as bias.
    """
    found = attribute(chain, x, output=pick, composite=chain_composite(rules), basis=basis)
    return Relevance(found.values, score, basis, score - found.values.flatten(1).sum(1))


def slopes(relevance: Tensor, features: Tensor, dims: int = 1) -> Tensor:
    """R_k / stab(φ_k): constants that turn features into relevance; zero where a feature is off.

    Args:
        relevance, features: (N, ...) of one shape.
        dims: number of leading axes that number the samples.
    """
    scale = features.abs().flatten(dims).amax(-1)
    tiny = (1e-6 * scale).clamp_min(torch.finfo(features.dtype).tiny)
    tiny = tiny.reshape(*tiny.shape, *([1] * (features.ndim - dims)))
    return relevance / torch.where(features >= 0, features + tiny, features - tiny)
