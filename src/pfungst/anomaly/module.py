"""A fitted detector as a plain torch module, images in, score and map out: what leaves for deployment.

The detectors compute in NumPy, in batches and with branches that depend on the data, which no exporter can
trace; the modules here are the same formulas in tensor operations of fixed shapes.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.anomaly.autoencoder import Autoencoder
from pfungst.anomaly.bag import Bag
from pfungst.anomaly.base import Detector
from pfungst.anomaly.one_class import DeepOneClass
from pfungst.anomaly.patchcore import PatchCore, gaussian_smooth
from pfungst.anomaly.prototypes import PrototypeDetector
from pfungst.anomaly.tiled import Tiled
from pfungst.encoders.preprocessing import Normalise
from pfungst.errors import InputError
from pfungst.mitigate import Layer


class DetectorModule(nn.Module):
    """Images (N, C, H, W) in [0, 1] → score (N,) float64 and, where it has one, map (N, H, W).

    Attributes:
        outputs: "score", and "map" where there is one: relevance of the pixels, whose sum is the score up to
            constants, for distances to prototypes and reconstructions; distances of patches for PatchCore.
    """

    outputs: tuple[str, ...] = ("score", "map")


@singledispatch
def as_module(detector: Detector) -> DetectorModule:
    """The module of a fitted detector.

    Raises:
        InputError: this kind of detector, or its layer in front, has no such form.
    """
    raise InputError(
        f"{type(detector).__name__} has no form that torch can export",
        "load it with Detector.load, or register yours: pfungst.anomaly.module.as_module.register",
    )


class _Prototypes(DetectorModule):
    """Pooled powers of distances to training points; relevance by the same expansion as the explanation.

    The mixed terms are summed in float64, so that they may cancel.
    """

    def __init__(self, detector: PrototypeDetector) -> None:
        super().__init__()
        images = len(detector.sample_shape_) == 3
        if not images:
            raise InputError(f"samples of shape {detector.sample_shape_} are no images", "fit it on images")
        self.p, self.pooling, self.epsilon = detector._power, detector.pooling_, detector.epsilon_
        self.affine = detector.affine_
        self.front = detector.features_
        self.normalise = Normalise(detector.mean, detector.std)
        self.register_buffer("centre", detector._centre.float())
        self.register_buffer("origin", detector._origin.float())
        self.register_buffer("v", detector._embedded.float())
        u = detector._centred.float()
        layers = list(self.front) if isinstance(self.front, nn.Sequential) else [self.front]
        self.layers = layers
        if self.front is None:
            return
        if self.p != 2 or not self.affine or not all(isinstance(layer, Layer) for layer in layers):
            self.outputs = ("score",)
            return
        self.register_buffer("u", u.flatten(1))
        with torch.no_grad():
            parts = detector._embedded.float().unflatten(1, u.shape[1:]).split(32)
            su = torch.cat([self._symmetric(part) for part in parts])
        self.register_buffer("usu", u.flatten(1) * su.flatten(1))

    def _symmetric(self, y: Tensor) -> Tensor:
        """Kᵀy."""
        for layer in reversed(self.layers):
            y = layer.adjoint(y)  # type: ignore[union-attr, operator]
        return y

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        z = self.normalise(images)
        x: Any = z - self.centre
        if self.front is None:
            phi = x.flatten(1)
        else:
            phi = self.front(x if self.affine else z).flatten(1) - self.origin
        a, b = phi.double(), self.get_buffer("v").double()
        distances = self._distances(a, b)
        score = self.pooling.pool(distances)
        if "map" not in self.outputs:
            return (score,)
        constant = self.pooling.offset + self.epsilon
        weights = self.pooling.shares(distances) * score[:, None] / (constant + distances)
        weights = torch.where(distances > 1e-3 * self.epsilon, weights, 0.0)  # equal inputs get nothing
        relevance = self._local(a, b, weights) if self.front is None else self._behind(x, phi, weights)
        return score, relevance.unflatten(1, images.shape[1:]).sum(1).to(images)

    def _distances(self, a: Tensor, b: Tensor) -> Tensor:
        if self.p == 1:
            return torch.stack([(a - row).abs().sum(1) for row in b], 1)
        total = a.pow(self.p).sum(1, keepdim=True) + b.pow(self.p).sum(1)
        for k in range(1, self.p):
            total = total + (-1) ** k * math.comb(self.p, k) * (a.pow(self.p - k) @ b.pow(k).T)
        return total.clamp_min(0)

    def _local(self, a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
        """Σ_j w_j |x − u_j|^p of each pixel and channel."""
        if self.p == 1:
            parts = [weights[:, j, None] * (a - row).abs() for j, row in enumerate(b)]
            return torch.stack(parts).sum(0)
        value = weights.sum(1, keepdim=True).expand_as(a)
        for k in range(1, self.p + 1):
            value = value * a + (-1) ** k * math.comb(self.p, k) * (weights @ b.pow(k))
        return value

    def _behind(self, x: Tensor, phi: Tensor, weights: Tensor) -> Tensor:
        """Σ_j w_j (x − u_j) ⊙ S(x − u_j) for S = KᵀK, p = 2."""
        u, usu, v = (self.get_buffer(name).double() for name in ("u", "usu", "v"))
        sx = self._symmetric(phi.unflatten(1, x.shape[1:])).flatten(1).double()
        mean = weights @ v
        smean = self._symmetric(mean.to(x).unflatten(1, x.shape[1:])).flatten(1).double()
        x = x.flatten(1).double()
        return weights.sum(1, keepdim=True) * x * sx - x * smean - sx * (weights @ u) + weights @ usu


as_module.register(PrototypeDetector, _Prototypes)


@as_module.register(PatchCore)
class _Patches(DetectorModule):
    """Distance of the most unusual patch to the memory bank; the map of these distances."""

    def __init__(self, detector: PatchCore) -> None:
        super().__init__()
        self.chain = detector.chain_
        for axis, cells, pixels in zip("yx", detector.grid_, detector.sample_shape_[-2:], strict=True):
            self.register_buffer(f"grown_{axis}", _grown(cells, pixels, detector.smoothing))
        self.tap = getattr(self.chain.network, "tap", None)
        self.neighbours, self.reweight = detector.neighbours, min(detector.reweight, len(detector.bank_))
        self.euclidean = detector.distance == "euclidean"
        self.register_buffer("bank", detector.bank_.rows)
        self.register_buffer("middle", detector.bank_.mean)
        self.register_buffer("norms", detector.bank_.norms)

    def _maps(self, images: Tensor) -> Tensor:
        """Patch features (N, D, h, w); the network runs to its end, as a trace cannot leave it on the way."""
        if self.tap is None:
            return self.chain(images)
        seen: dict[str, Tensor] = {}
        hook = lambda name: lambda module, args, out: seen.__setitem__(name, out)
        network: Any = self.chain.network
        handles = [self.tap.network.get_submodule(n).register_forward_hook(hook(n)) for n in self.tap.layers]
        try:
            self.tap.network(self.chain.front(self.chain.normalise(images)))
        finally:
            for handle in handles:
                handle.remove()
        return network.embed([seen[name] for name in self.tap.layers])

    def _nearest(self, queries: Tensor, k: int) -> Tensor:
        """Rows (Q, k) of the bank nearest to queries (Q, D)."""
        bank, middle, norms = self.bank, self.middle, self.norms
        products = norms - 2 * ((queries - middle) @ bank.T)  # type: ignore[operator]
        return products.topk(k, dim=1, largest=False).indices

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self._maps(images)
        queries = maps.movedim(1, -1).flatten(1, 2)
        flat = queries.flatten(0, 1)
        bank: Any = self.bank
        index = self._nearest(flat, self.neighbours)
        squares = (flat[:, None] - bank[index]).square().sum(2)
        distances = (squares.sqrt() if self.euclidean else squares).mean(1).unflatten(0, queries.shape[:2])
        score, patch = distances.max(1)
        if self.reweight:
            at = patch[:, None, None].expand(-1, 1, queries.shape[2])
            query = queries.gather(1, at)[:, 0]
            nearest = bank[self._nearest(query, 1)[:, 0]]
            around = bank[self._nearest(nearest, self.reweight)]
            near = (query - nearest).norm(dim=1)
            others = (query[:, None] - around).norm(dim=2)
            score = score * (1 - torch.exp(near - others.logsumexp(1)))
        grid = distances.unflatten(1, maps.shape[-2:])
        return score.double(), self.get_buffer("grown_y").mT @ grid @ self.get_buffer("grown_x")


def _grown(cells: int, pixels: int, sigma: float) -> Tensor:
    """Bilinear interpolation and smoothing along one axis as a matrix (cells, pixels)."""
    lines = F.interpolate(torch.eye(cells)[:, None], size=pixels, mode="linear", align_corners=False)
    return gaussian_smooth(lines[:, :, None], sigma)[:, 0, 0]


@as_module.register(Autoencoder)
class _Reconstruction(DetectorModule):
    """Squared distance to the reconstruction."""

    def __init__(self, detector: Autoencoder) -> None:
        super().__init__()
        self.normalise, self.network = detector.normalise_, detector.network_

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        z = self.normalise(images)
        squares = (z - self.network(z)).square()
        return squares.flatten(1).sum(1).double(), squares.sum(1)


@as_module.register(DeepOneClass)
class _Whitened(DetectorModule):
    """Squared norm of whitened features; its explanation goes through the network by rules, so it has no
    map here."""

    outputs = ("score",)

    def __init__(self, detector: DeepOneClass) -> None:
        super().__init__()
        self.chain, white = detector.chain_, detector.whitening_
        self.ridge = white.ridge
        for name in ("mean", "axes", "variances"):
            self.register_buffer(name, getattr(white, name).double())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        mean, axes, variances = (self.get_buffer(n) for n in ("mean", "axes", "variances"))
        centred = self.chain(images).flatten(1).double() - mean
        inside = (centred @ axes).square()
        rest = (centred.square().sum(1) - inside.sum(1)).clamp_min(0)
        return ((inside / (variances + self.ridge)).sum(1) + rest / self.ridge,)


@as_module.register(Bag)
class _Members(DetectorModule):
    """Mean of the members' standardised scores; the map where all have one of the same kind."""

    def __init__(self, detector: Bag) -> None:
        super().__init__()
        members = detector.members_
        self.members = nn.ModuleList(as_module(m) for m in members.values())
        self.means = [detector.means_[name] for name in members]
        self.factors = [1 / (detector.stds_[name] * len(members)) for name in members]
        kinds = {isinstance(m, PatchCore) for m in members.values()}
        if len(kinds) > 1 or any(m.outputs == ("score",) for m in self.members):
            self.outputs = ("score",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = [member(images) for member in self.members]
        score = sum((f[0] - m) * c for f, m, c in zip(found, self.means, self.factors, strict=True))
        if "map" not in self.outputs:
            return (torch.as_tensor(score),)
        return torch.as_tensor(score), torch.as_tensor(
            sum(f[1] * c for f, c in zip(found, self.factors, strict=True))
        )


@as_module.register(Tiled)
class _Tiles(DetectorModule):
    """The highest score of the tiles; the mean of their maps, where they have one."""

    def __init__(self, detector: Tiled) -> None:
        super().__init__()
        self.inner, self.tile, self.corners = as_module(detector.detector_), detector.tile, detector.corners
        self.outputs = self.inner.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[-2:]
        side = (max(height, self.tile), max(width, self.tile))
        padded = F.pad(images, (0, side[1] - width, 0, side[0] - height), mode="replicate")
        scores, total, count = [], torch.zeros_like(padded[:, 0]), torch.zeros(side, device=images.device)
        for top, left in self.corners(height, width):
            area = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            found = self.inner(padded[area])
            scores.append(found[0])
            if "map" in self.outputs:
                edges = (left, side[1] - left - self.tile, top, side[0] - top - self.tile)
                total = total + F.pad(found[1], edges)
                count = count + F.pad(torch.ones_like(found[1][0]), edges)
        score = torch.stack(scores, 1).amax(1)
        return (score, (total / count)[..., :height, :width]) if "map" in self.outputs else (score,)
