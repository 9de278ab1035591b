"""Autoencoders as anomaly detectors: the squared distance of an input to its reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.anomaly.base import register
from pfungst.anomaly.features import load_named_weights, named_weights
from pfungst.anomaly.network import NetworkDetector, Normalise
from pfungst.anomaly.training import History, train
from pfungst.device import choose_device
from pfungst.errors import InputError
from pfungst.relevance import Basis, Relevance


@register("autoencoder")
@dataclass(eq=False, repr=False)
class Autoencoder(NetworkDetector):
    """Trained autoencoder: identity · squared distance to the reconstruction r(x) · no pooling, o = ‖x −
    r(x)‖².

    The explanation holds the reconstruction constant, R_i = (x_i − r_i)², and conserves exactly
    (Kauffmann et al. 2020, "The Clever Hans effect in anomaly detection"). With a layer in front,
    both are compared, and relevance is read, behind it.

    Args:
        architecture: "lenet", two convolutions with max-pooling and two dense layers, mirrored (the paper's
            for digits); "blocks", four blocks of two 3 × 3 convolutions, mirrored (its for photographs);
            "auto" takes the first up to 32 px.
        code: length of the code, by default 64 and 512.
        likelihood: "squared", the distance as it is; "gaussian", the negative log-probability of x
            under a Gaussian about r(x) up to its constant, o = Σ_i (x_i − r_i)² / 2σ_i², σ_i² the mean
            squared residual of the training images at value i, a tenth of it drawn to the mean of all
            (section 2 of the paper).
        epochs: at most. patience: epochs without a better validation error before training ends.
        learning_rate: of Adam.
        validation: share of the training images held out; they set `threshold_` too.
        checkpoint_dir: where training is kept after each epoch and taken up again.
        features: a layer in front of the network, for example a blur.
        mean, std: by which images are normalised.
        quantile: of the held-out scores, at which the threshold is set.
        batch_size: images at a time.
        seed: of weights, split and order.
        device: "auto" is the GPU where there is one.
        progress: show a bar.

    Attributes:
        history_: validation errors and why training ended.
    """

    architecture: str = "auto"
    code: int | None = None
    likelihood: str = "squared"
    epochs: int = 100
    patience: int = 10
    learning_rate: float = 1e-3
    validation: float = 0.1
    checkpoint_dir: str | Path | None = None
    features: nn.Module | None = None
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    quantile: float = 0.95
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"
    progress: bool = False

    def _build(self) -> None:
        shape = self.sample_shape_
        if len(shape) != 3:
            raise InputError(f"samples of shape {shape} are no images", "pass images (N, C, H, W)")
        kind = self.architecture
        if kind == "auto":
            kind = "lenet" if max(shape[1:]) <= 32 else "blocks"
        if kind not in ("lenet", "blocks"):
            raise InputError(f"unknown architecture {kind!r}", "use auto, lenet or blocks")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            body = _lenet(shape, self.code or 64) if kind == "lenet" else _blocks(shape, self.code or 512)
        self._on = choose_device(self.device, float64=True)
        front = self.features if self.features is not None else nn.Identity()
        self.precision_: Tensor | None = None
        self.normalise_ = nn.Sequential(Normalise(self.mean, self.std), front).to(self._on).eval()
        self.network_ = body.to(self._on)

    def _behind(self, x: Tensor) -> Tensor:
        """Images behind the layers in front."""
        with torch.no_grad():
            z = self.normalise_(x.to(self._on, torch.float32))
        if z.shape[1:] != x.shape[1:]:
            raise InputError(
                f"features turn {tuple(x.shape[1:])} into {tuple(z.shape[1:])}",
                "use a layer that keeps the shape",
            )
        return z

    def _fit(self, x: Tensor) -> Tensor:
        self._check_params()
        if self.likelihood not in ("squared", "gaussian"):
            raise InputError(f"unknown likelihood {self.likelihood!r}", "use squared or gaussian")
        training, held_out = self._split(len(x))
        self._build()
        z = self._behind(x)
        self.history_: History = train(
            self.network_,
            _squared_error,
            z[training],
            z[held_out if len(held_out) else training],
            epochs=self.epochs,
            patience=self.patience,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
            checkpoint_dir=self.checkpoint_dir,
            progress=self.progress,
            name="autoencoder",
        )
        if self.likelihood == "gaussian":
            parts = x[training].split(self.batch_size)
            variance = sum(self._difference(part).square().sum(0) for part in parts) / len(training)
            assert isinstance(variance, Tensor)
            self.precision_ = 1 / (0.9 * variance + 0.1 * variance.mean()).clamp_min(1e-12)
        return self._score(x[held_out]) if len(held_out) else x.new_zeros(0)

    def reconstruct(self, X: Any) -> Tensor:
        """Reconstructions (N, C, H, W), in the normalised range."""
        with torch.no_grad():
            return torch.cat(
                [self.network_(self._behind(part)) for part in self._ready(X).split(self.batch_size)]
            )

    def _difference(self, x: Tensor) -> Tensor:
        z = self._behind(x)
        with torch.no_grad():
            return z - self.network_(z)

    def _weighted(self, delta: Tensor) -> Tensor:
        return delta if self.precision_ is None else delta * self.precision_ / 2

    def _score_batch(self, x: Tensor) -> Tensor:
        delta = self._difference(x)
        return (delta * self._weighted(delta)).flatten(1).sum(1).to(x.device)

    def _explain_batch(self, x: Tensor, basis: Basis) -> Relevance:
        delta = self._difference(x)
        weighted = self._weighted(delta)
        score = (delta * weighted).flatten(1).sum(1)
        values = basis.contract(delta, weighted, ndim=3)
        return Relevance(values, score, basis, score - values.flatten(1).sum(1))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        history = [self.history_.validation, self.history_.best_epoch, self.history_.stopped]
        tensors = named_weights("network", self.network_) | named_weights("features", self.features)
        own = {} if self.precision_ is None else {"precision": self.precision_}
        return tensors | own, {"history": history}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._build()
        load_named_weights("network", self.network_, tensors)
        load_named_weights("features", self.features, tensors)
        self.network_.eval()
        if "precision" in tensors:
            self.precision_ = tensors["precision"].to(self._on)
        self.history_ = History(*facts["history"])


def _squared_error(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).flatten(1).square().sum(1)


class _Padded(nn.Module):
    """Pads images to a multiple of `step` by repeating the edge, and crops the output."""

    def __init__(self, body: nn.Module, step: int) -> None:
        super().__init__()
        self.body, self.step = body, step

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        padded = F.pad(x, (0, -w % self.step, 0, -h % self.step), mode="replicate")
        return self.body(padded)[..., :h, :w]


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _lenet(shape: tuple[int, ...], code: int) -> nn.Module:
    c, h, w = shape
    rows, cols = _ceil(h, 4), _ceil(w, 4)
    encoder = [
        nn.Conv2d(c, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * rows * cols, 256), nn.ReLU(), nn.Linear(256, code),
    ]  # fmt: skip
    decoder = [
        nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, 32 * rows * cols), nn.ReLU(),
        nn.Unflatten(1, (32, rows, cols)),
        nn.Upsample(scale_factor=2), nn.ConvTranspose2d(32, 16, 5, padding=2), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.ConvTranspose2d(16, c, 5, padding=2),
    ]  # fmt: skip
    return _Padded(nn.Sequential(*encoder, *decoder), 4)


def _blocks(shape: tuple[int, ...], code: int, widths: Sequence[int] = (16, 32, 64, 128)) -> nn.Module:
    c, h, w = shape
    rows, cols = _ceil(h, 16), _ceil(w, 16)

    def block(a: int, b: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i in (a, b):
            layers += [nn.Conv2d(i, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        return layers

    layers: list[nn.Module] = []
    for a, b in zip((c, *widths[:-1]), widths, strict=True):
        layers += [*block(a, b), nn.MaxPool2d(2)]
    inner = widths[-1] * rows * cols
    layers += [
        nn.Flatten(),
        nn.Linear(inner, code),
        nn.Linear(code, inner),
        nn.Unflatten(1, (widths[-1], rows, cols)),
    ]
    for a, b in zip(widths[::-1], (*widths[-2::-1], widths[0]), strict=True):
        layers += [nn.Upsample(scale_factor=2), *block(a, b)]
    layers.append(nn.Conv2d(widths[0], c, 3, padding=1))
    return _Padded(nn.Sequential(*layers), 16)
