"""PatchCore: the distance of an image's most unusual patch to a memory bank of normal ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.anomaly.base import register
from pfungst.anomaly.coreset import greedy_coreset
from pfungst.anomaly.memory_bank import MemoryBank
from pfungst.anomaly.network import (
    BackboneDetector,
    attribute_weighted,
    slopes,
)
from pfungst.anomaly.patch_features import PatchFeatures, middle_layers
from pfungst.errors import InputError, PfungstWarning
from pfungst.memory import available_memory, physical_memory
from pfungst.progress import progress_bar
from pfungst.relevance import Basis, Composite, Relevance

_SHARE = 0.6  # of the memory that is free, what the bank may take
_OVERHEAD = 1.15  # what selection needs beside the patches: bounds and blocks


@register("patchcore")
@dataclass(eq=False, repr=False)
class PatchCore(BackboneDetector):
    """Patch features · Euclidean distance to a memory bank · minimum over the bank, maximum over patches.

    Roth et al. 2022, "Towards total recall in industrial anomaly detection". The score is the distance as
    in that paper; its published code and some others report the squared distance (distance="squared").

    The explanation gives all relevance to the most unusual patch and, in it, R_k = (φ_k − u_k)² / d · o
    for its nearest row u of the bank; R then goes through the network by layer-wise relevance propagation.
    Features that are off in that patch (φ_k = 0) but on in u have no way back to the input: their part is
    reported as bias.

    Args:
        backbone: what `pfungst.encoders.load` understands ("efficientnet-lite0" is trained, "resnet18" random
            without a checkpoint), an `Encoder`, or a module that reads images normalised as ImageNet's.
        layers: names of layers, as a sequence or joined by "+". The first sets the grid of patches. By
            default the last that divide the image by 8 and by 16: layer2 and layer3 of ResNets, blocks.2 and
            blocks.4 of efficientnet-lite0.
        checkpoint: weights of a named backbone. Without them they are random: a baseline.
        coreset: share of the training patches kept in the bank, chosen farthest-first; 1 keeps all.
        neighbours: nearest rows of the bank whose distances are averaged.
        reweight: size b of the bank's neighbourhood by which the paper (its equation 7) lowers the image
            score where the nearest row is itself unusual; 0 leaves it out, as the published code does; 9 is
            usual.
        distance: "euclidean" or "squared".
        patch, stride: neighbourhoods, in cells of a layer's map.
        layer_dim, dim: length that each layer and each patch is pooled to.
        features: a layer in front of the network, for example a blur.
        mean, std: normalisation of images; by default the backbone's.
        composite: rules of the network's explanation.
        smoothing: standard deviation of the Gaussian over :meth:`anomaly_map`, in pixels.
        calibration: number of training images, evenly spaced, that are scored without their own patches;
            `threshold_` is set by their scores.
        quantile: of these scores, at which the threshold is set.
        batch_size: images at a time.
        memory_limit: bytes that the bank may take while fitting; by default 60 % of what is free. Where all
            patches do not fit, they are selected in blocks of images.
        seed: of random weights.
        device: "auto" is the GPU where there is one.
        progress: show bars.

    Attributes:
        bank_: the memory bank. bank_images_: training image of each of its rows.
        coreset_radius_: largest distance of a training patch to the bank; zero with all patches.
        grid_: rows and columns of patches.
        backbone_: the network. chain_: what runs between an image and its patch features.
    """

    backbone: str | nn.Module = "resnet18"
    layers: str | Sequence[str] | None = None
    checkpoint: str | Path | None = None
    coreset: float = 0.1
    neighbours: int = 1
    reweight: int = 0
    distance: str = "euclidean"
    patch: int = 3
    stride: int = 1
    layer_dim: int = 1024
    dim: int = 1024
    features: nn.Module | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    composite: str | Composite = "epsilon_plus"
    smoothing: float = 4.0
    calibration: int = 100
    quantile: float = 0.95
    batch_size: int = 16
    memory_limit: int | None = None
    seed: int = 0
    device: str = "auto"
    progress: bool = False

    def _check_params(self) -> None:
        super()._check_params()
        if not 0 < self.coreset <= 1:
            raise InputError(
                f"coreset {self.coreset} is not in (0, 1]", "give the share of patches to keep, e.g. 0.1"
            )
        if self.distance not in ("euclidean", "squared"):
            raise InputError(f"unknown distance {self.distance!r}", "use euclidean or squared")
        if self.neighbours < 1 or self.reweight < 0:
            raise InputError(
                f"neighbours {self.neighbours}, reweight {self.reweight}", "neighbours ≥ 1 and reweight ≥ 0"
            )

    # features

    def _head(self, network: nn.Module) -> nn.Module:
        given = self.layers or middle_layers(network)
        names = given.split("+") if isinstance(given, str) else list(given)
        return PatchFeatures(network, names, self.patch, self.stride, self.layer_dim, self.dim)

    def _maps(self, x: Tensor) -> Tensor:
        """Patch features (N, D, h, w) of images."""
        if x.ndim != 4:
            raise InputError(f"data of shape {tuple(x.shape)} are no images", "pass images (N, C, H, W)")
        with torch.no_grad():
            return self.chain_(x.to(self._on, torch.float32))

    def embed(self, X: Any) -> Tensor:
        """Patch features of images (N, C, H, W), as (N, patches, D) in row-major order of the grid."""
        return torch.cat([self._maps(part).flatten(2).mT for part in self._ready(X).split(self.batch_size)])

    # fitting

    def _fit(self, x: Tensor) -> Tensor:
        self._check_params()
        self._build()
        first = self._maps(x[:1])
        self.grid_ = (first.shape[2], first.shape[3])
        self._select(x)
        return self._calibrate(x)

    def _block(self, count: int) -> int:
        """Images whose patches fit into memory at once."""
        patches = self.grid_[0] * self.grid_[1]
        image = 4 * self.dim * patches
        limit = (
            _SHARE * (available_memory() or physical_memory())
            if self.memory_limit is None
            else self.memory_limit
        )
        keep = count * image * self.coreset
        if keep + image * _OVERHEAD > limit:
            raise InputError(
                f"the memory bank of {round(count * patches * self.coreset)} patches of dimension "
                f"{self.dim} needs "
                f"{keep / 1e9:.3g} GB, {limit / 1e9:.3g} GB may be used",
                "lower coreset or dim, use smaller images or a deeper first layer, or raise memory_limit",
            )
        if count * image * (_OVERHEAD if self.coreset < 1 else 1) <= limit:
            return count
        block = max(1, int((limit - keep) / (image * _OVERHEAD)))
        blocks = -(-count // block)
        warnings.warn(
            f"the {count * patches} training patches need {count * image / 1e9:.3g} GB and "
            f"{limit / 1e9:.3g} GB may "
            f"be used: they are selected in {blocks} blocks of images, which covers as well with somewhat "
            "more "
            "redundancy",
            PfungstWarning,
            stacklevel=6,
        )
        return -(-count // blocks)

    def _select(self, x: Tensor) -> None:
        patches = self.grid_[0] * self.grid_[1]
        size = self._block(len(x))
        rows, images, radius = [], [], 0.0
        with progress_bar("patches", len(x), show=self.progress) as embedded:
            for start in range(0, len(x), size):
                block = x[start : start + size]
                bank = torch.empty(len(block) * patches, self.dim, device=self._on)
                for i in range(0, len(block), self.batch_size):
                    part = self._maps(block[i : i + self.batch_size])
                    bank[i * patches : (i + len(part)) * patches] = part.movedim(1, -1).flatten(0, -2)
                    embedded.advance(len(part))
                if self.coreset < 1:
                    keep = max(1, int(self.coreset * len(bank)))
                    with progress_bar("coreset", keep, show=self.progress) as chosen:
                        core = greedy_coreset(bank, keep, chosen.reach)
                    index = core.indices.sort().values.to(bank.device)
                    radius = max(radius, core.radius)
                    rows.append(bank[index])
                    images.append(index // patches + start)
                else:
                    rows.append(bank)
                    images.append(torch.arange(len(bank), device=bank.device) // patches + start)
                del bank
        self.bank_images_ = torch.cat(images) if len(images) > 1 else images[0]
        self.coreset_radius_ = radius
        self._set_bank(torch.cat(rows) if len(rows) > 1 else rows[0])

    def _set_bank(self, rows: Tensor) -> None:
        self.bank_ = MemoryBank(rows)
        if self.neighbours > len(rows):
            raise InputError(
                f"{self.neighbours} neighbours asked of a bank of {len(rows)} patches",
                "lower neighbours, raise coreset or fit on more images",
            )

    def _calibrate(self, x: Tensor) -> Tensor:
        """Scores of training images against the patches of the others."""
        if len(x) < 2 or self.calibration < 1:
            return torch.zeros(0)
        chosen = torch.linspace(0, len(x) - 1, min(len(x), self.calibration)).round().long()
        starts = torch.searchsorted(self.bank_images_, chosen.to(self.bank_images_)).tolist()
        ends = torch.searchsorted(self.bank_images_, chosen.to(self.bank_images_), right=True).tolist()
        scores = []
        for i, lo, hi in zip(chosen.tolist(), starts, ends, strict=True):
            if len(self.bank_) - (hi - lo) >= self.neighbours:
                maps = self._maps(x[i : i + 1])
                scores.append(self._image_scores(*self._patches(maps, (lo, hi)))[0])
        return torch.cat(scores).cpu() if scores else torch.zeros(0)

    # scoring

    def _patches(self, maps: Tensor, exclude: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, P, D), their distances (N, P, k) in the metric of the score, and rows (N, P, k)."""
        queries = maps.movedim(1, -1).flatten(1, 2)
        found = self.bank_.nearest(queries.flatten(0, 1), self.neighbours, exclude)
        shape = (*queries.shape[:2], self.neighbours)
        distances = found.distances.sqrt() if self.distance == "euclidean" else found.distances
        return queries, distances.reshape(shape), found.indices.reshape(shape)

    def _image_scores(self, queries: Tensor, distances: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N,) and the patch that won (N,)."""
        best, patch = distances.mean(2).max(1)
        if self.reweight:
            each = torch.arange(len(queries), device=queries.device)
            best = best * self._weight(queries[each, patch], indices[each, patch, 0])
        return best, patch

    def _weight(self, queries: Tensor, nearest: Tensor) -> Tensor:
        """1 − exp(‖q − m*‖) / Σ_{m ∈ N_b(m*)} exp(‖q − m‖), m* the nearest row (Roth et al. 2022, eq. 7)."""
        around = self.bank_.nearest(self.bank_.rows[nearest], min(self.reweight, len(self.bank_))).indices
        near = (queries - self.bank_.rows[nearest]).norm(dim=1, keepdim=True)
        others = (queries[:, None] - self.bank_.rows[around]).norm(dim=2)
        return 1 - torch.exp(near - others.logsumexp(1, keepdim=True)).squeeze(1)

    def _score_batch(self, x: Tensor) -> Tensor:
        return self._image_scores(*self._patches(self._maps(x)))[0].to(x.device)

    def patch_scores(self, X: Any) -> Tensor:
        """Distance of every patch to the bank, (N, h, w)."""
        parts = self._ready(X).split(self.batch_size)
        return torch.cat([self._patches(self._maps(part))[1].mean(2) for part in parts]).unflatten(
            1, self.grid_
        )

    def anomaly_map(self, X: Any) -> Tensor:
        """Patch scores at the size of the images, (N, H, W): bilinear, then smoothed by a Gaussian."""
        maps = F.interpolate(
            self.patch_scores(X)[:, None], size=self.sample_shape_[-2:], mode="bilinear", align_corners=False
        )
        return gaussian_smooth(maps, self.smoothing)[:, 0]

    # explaining

    def _explain_batch(self, x: Tensor, basis: Basis) -> Relevance:
        maps = self._maps(x)
        queries, distances, indices = self._patches(maps)
        score, patch = self._image_scores(queries, distances, indices)
        each = torch.arange(len(x), device=maps.device)
        query, rows = queries[each, patch], self.bank_.rows[indices[each, patch]]
        squares = (query[:, None] - rows).square()
        total = squares.sum(2)
        part = distances[each, patch] / torch.where(total > 0, total, 1.0)
        relevance = (squares * part[:, :, None]).mean(1)
        own = relevance.sum(1)
        relevance *= (score / torch.where(own > 0, own, 1.0))[:, None]
        weights = torch.zeros_like(queries)
        weights[each, patch] = slopes(relevance, query)
        weights = weights.mT.unflatten(2, self.grid_)
        return attribute_weighted(
            self.chain_,
            x.to(maps.device, torch.float32),
            lambda out: (out * weights).flatten(1).sum(1),
            score,
            self.composite,
            basis,
        )

    # files

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"bank": self.bank_.rows, "bank_images": self.bank_images_} | super()._state()[0]
        return tensors, {"grid": self.grid_, "coreset_radius": self.coreset_radius_}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super()._restore(tensors, facts)
        self.grid_, self.coreset_radius_ = facts["grid"], facts["coreset_radius"]
        self.bank_images_ = tensors["bank_images"]
        self._set_bank(tensors["bank"])


def gaussian_smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (N, C, H, W), truncated at 4 σ, the edge repeated by reflection (d c b a | a b c
    d)."""
    if sigma <= 0:
        return x
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    for axis in (2, 3):
        n = x.shape[axis]
        at = torch.arange(-radius, n + radius, device=x.device) % (2 * n)
        at = torch.where(at < n, at, 2 * n - 1 - at)
        x = x.index_select(axis, at).unfold(axis, 2 * radius + 1, 1) @ kernel
    return x
