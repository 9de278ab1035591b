"""anomalib's Patchcore and Padim, explained. Imported only for models that come from anomalib."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.anomaly.base import Detector
from pfungst.anomaly.memory_bank import MemoryBank
from pfungst.anomaly.network import IMAGENET, Chain, NetworkDetector, Normalise, attribute_weighted, slopes
from pfungst.anomaly.own import wrap_fitted
from pfungst.anomaly.patchcore import PatchCore
from pfungst.errors import InputError
from pfungst.relevance import Basis, Relevance


class _Embedding(nn.Module):
    """The model's own feature extractor, pooling and concatenation: normalised images → (N, D, h, w)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.extractor = model.feature_extractor
        self.pooler = getattr(model, "feature_pooler", None)
        self.model = [model]  # not a submodule

    def forward(self, x: Tensor) -> Tensor:
        maps = self.extractor(x)
        if self.pooler is not None:
            maps = {name: self.pooler(part) for name, part in maps.items()}
        return self.model[0].generate_embedding(maps)


def wrap_anomalib(estimator: Any) -> Detector:
    """The detector of a fitted Patchcore or Padim. Images are (N, 3, H, W) in [0, 1], of the size the model
    was trained on; they are normalised as ImageNet's, as the model's own preprocessing does."""
    model = getattr(estimator, "model", estimator)
    model = model.eval().cpu()
    if type(model).__name__ == "PatchcoreModel":
        if model.memory_bank.numel() == 0:
            raise InputError("this Patchcore has no memory bank", "fit it, then wrap it")
        return AnomalibPatchcore(model)._read()
    if type(model).__name__ == "PadimModel":
        if not model.gaussian.mean.numel():
            raise InputError("this Padim is not fitted", "fit it, then wrap it")
        return AnomalibPadim(model)._read()
    return wrap_fitted(model)


class AnomalibPatchcore(PatchCore):
    """Patchcore of anomalib: Euclidean distance to the nearest row, reweighted for num_neighbors > 1."""

    def __init__(self, model: Any, composite: Any = "epsilon_plus", batch_size: int = 8) -> None:
        super().__init__(composite=composite, batch_size=batch_size, device="cpu")
        self.model = model

    def _read(self) -> Self:
        self._on = torch.device("cpu")
        self.chain_ = Chain(Normalise(*IMAGENET), None, _Embedding(self.model)).eval()
        self.neighbours, self.reweight = (
            1,
            0 if self.model.num_neighbors == 1 else int(self.model.num_neighbors),
        )
        self.bank_ = MemoryBank(self.model.memory_bank.detach().float())
        _ready_made(self)
        return self

    def _maps(self, x: Tensor) -> Tensor:
        maps = super()._maps(x)
        self.grid_ = (maps.shape[2], maps.shape[3])
        return maps


class AnomalibPadim(NetworkDetector):
    """Padim of anomalib: Mahalanobis distance of each patch to its position's Gaussian, upsampled, blurred,
    maximum.

    Upsampling and blur are linear, so the score is a weighted sum of patch distances; each passes its part on
    as R_k = a_k (Σ⁻¹a)_k / d, a the patch feature less its mean.
    """

    def __init__(self, model: Any, composite: Any = "epsilon_plus", batch_size: int = 8) -> None:
        self.model = model
        self.composite = composite
        self.batch_size = batch_size

    def _read(self) -> Self:
        self.chain_ = Chain(Normalise(*IMAGENET), None, _Embedding(self.model)).eval()
        _ready_made(self)
        return self

    def _distances(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances (N, P), centred features and Σ⁻¹ times them (P, N, D)."""
        mean, precision = self.model.gaussian.mean, self.model.gaussian.inv_covariance
        delta = (maps.flatten(2) - mean).permute(2, 0, 1)
        pulled = delta @ precision
        return (delta * pulled).sum(2).mT.clamp_min(0).sqrt(), delta, pulled

    def _map(self, distances: Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        maps = F.interpolate(
            distances.unflatten(1, grid)[:, None], size=size, mode="bilinear", align_corners=False
        )
        return self.model.anomaly_map_generator.blur(maps)[:, 0]

    def _score_batch(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.chain_(x.float())
            return (
                self._map(self._distances(maps)[0], tuple(maps.shape[2:]), tuple(x.shape[2:]))
                .flatten(1)
                .amax(1)
            )

    def _explain_batch(self, x: Tensor, basis: Basis) -> Relevance:
        with torch.no_grad():
            maps = self.chain_(x.float())
        grid = tuple(maps.shape[2:])
        distances, delta, pulled = self._distances(maps)
        with torch.enable_grad():
            leaf = distances.detach().requires_grad_()
            score = self._map(leaf, grid, tuple(x.shape[2:])).flatten(1).amax(1)
            (share,) = torch.autograd.grad(score.sum(), leaf)
        near = torch.where(distances > 0, distances, 1.0)
        relevance = (delta * pulled) * (share / near).mT[:, :, None]
        relevance = relevance.permute(1, 2, 0).unflatten(2, grid)
        weights = slopes(relevance, maps)
        return attribute_weighted(
            self.chain_,
            x.float(),
            lambda out: (out * weights).flatten(1).sum(1),
            score.detach(),
            self.composite,
            basis,
        )


def _ready_made(detector: Any) -> None:
    """Fitted state that the library does not tell: any shape is taken, and no threshold is known."""
    detector.sample_shape_ = None
    detector.condition_ = None
    detector.training_scores_ = np.zeros(0)
    detector.threshold_ = float("inf")
