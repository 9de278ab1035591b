"""Relevance of distances: Σ_j w_j ⟨x − u_j, Kᵀg_j⟩ read in a basis, without a loop over prototypes.

w_j = R_j / (ε + d_j) are the weights of the prototypes and g_j = sign(Δ_j)|Δ_j|^(p−1), Δ_j = K(x − u_j).
Reading relevance in a basis is a bilinear form B(Δ, g). For p = 2 the sum over prototypes is therefore a
weighted covariance, with m = Σ_j w_j u_j / Σ_j w_j and S = KᵀK,

    Σ_j w_j B(x − u_j, S(x − u_j)) = Σ_j w_j · [B(x − m, S(x − m)) − B(m, Sm)] + Σ_j w_j B(u_j, S u_j),

where the last term is one matrix product with products of the training points alone. For p = 4 the power
expands likewise. Where these expansions would cancel (an input close to its prototypes compared with the
spread of the data) the row is computed pair by pair instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfungst.anomaly.bands import pixel_band_covariance, pixel_band_pairs
from pfungst.anomaly.distance import power_sum, slope
from pfungst.relevance import Basis, DCTBands, Patches, PixelBands, Pixels, Tokens

_NEGLIGIBLE = 1e-9  # share of the relevance below which a pair is left out of the loops
_PRECISION = 2e-5  # relative error above which an expansion is not used
_ELEMENTS = 1 << 24  # elements of one intermediate tensor
_LOCAL = (Pixels, Patches, Tokens)  # bases whose reading depends on the product x ⊙ g alone


@dataclass
class Terms:
    """What an explanation of distances is made of.

    Attributes:
        z, u: inputs (N, *sample) and prototypes (M, *sample), both less the centre of the prototypes.
        phi, v: their features Kz (N, D) and Ku (M, D); without features the same, flattened.
        weights: w (N, M). distances: d (N, M). Both float64.
        p: power of the distance.
        pull: Kᵀ, (n, D) → (n, *sample); None without features.
    """

    z: Tensor
    u: Tensor
    phi: Tensor
    v: Tensor
    weights: Tensor
    distances: Tensor
    p: int
    pull: Callable[[Tensor], Tensor] | None

    @property
    def ndim(self) -> int:
        return self.z.ndim - 1

    def gradients(self, g: Tensor) -> Tensor:
        """Kᵀg in the shape of samples."""
        return g.unflatten(1, self.z.shape[1:]) if self.pull is None else self.pull(g)

    def rows(self, index: Tensor) -> Terms:
        own = {k: getattr(self, k)[index] for k in ("z", "phi", "weights", "distances")}
        return replace(self, **own)


def distance_relevance(terms: Terms, basis: Basis) -> Tensor:
    """Values (N, *basis.shape(sample)) whose sum is Σ_j w_j d_j."""
    basis.shape(tuple(terms.z.shape[1:]))  # refuses inputs that the basis cannot read
    bands = isinstance(basis, (PixelBands, DCTBands))
    if terms.p == 2:
        return _covariance(terms, basis)
    if terms.pull is None and isinstance(basis, _LOCAL):
        r = feature_relevance(terms.phi, terms.v, terms.weights, terms.distances, terms.p)
        r = r.unflatten(1, terms.z.shape[1:])
        return basis.contract(r, torch.ones_like(r), ndim=terms.ndim)
    if terms.pull is None and bands:
        joint = PixelBands(**basis.params())
        values = pixel_band_pairs(terms.z, terms.u, terms.weights, terms.p, joint)
        return values if isinstance(basis, PixelBands) else values.flatten(2).sum(2)
    return _pair_by_pair(terms, basis)


def _pair_by_pair(terms: Terms, basis: Basis) -> Tensor:
    """The definition: every pair of input and prototype is read in the basis."""
    sample = tuple(terms.z.shape[1:])
    step = max(
        1, _ELEMENTS // max(terms.v.shape[1], terms.z[0].numel(), basis.size(sample) * _depth(basis, sample))
    )
    out = terms.z.new_zeros(len(terms.z), *basis.shape(sample))
    parts = terms.weights * terms.distances
    keep = parts > _NEGLIGIBLE * parts.sum(1, keepdim=True)
    for n in range(len(terms.z)):
        for cols in keep[n].nonzero().flatten().split(step):
            delta = terms.z[n] - terms.u[cols]
            g = terms.gradients(slope(terms.phi[n] - terms.v[cols], terms.p))
            own = torch.linalg.vecdot(delta.flatten(1), g.flatten(1)).double()
            share = torch.where(own > 0, parts[n, cols] / own, 0.0).to(g)  # w_j d_j / ⟨Δ, g⟩, which is w_j
            g = g * share.view(-1, *[1] * terms.ndim)
            out[n] += basis.contract(delta, g, ndim=terms.ndim).sum(0)
    return out


def _depth(basis: Basis, sample: tuple[int, ...]) -> int:
    """Channels that a basis holds beside its values while it reads."""
    return sample[0] if isinstance(basis, (PixelBands, DCTBands)) else 1


def _ill_conditioned(terms: Terms, x_terms: Tensor, u_terms: Tensor) -> Tensor:
    """Rows whose expansion would lose more than the precision asked for.

    Args:
        x_terms: (N,) and u_terms (M,): summed magnitude of what the expansion adds and subtracts.
    """
    w = terms.weights
    added = w.sum(1) * x_terms + w @ u_terms
    left = (w * terms.distances).sum(1)
    return added * torch.finfo(terms.z.dtype).eps > _PRECISION * left


def _covariance(terms: Terms, basis: Basis) -> Tensor:
    """p = 2 as a weighted covariance, for any basis and affine features."""
    sample = tuple(terms.z.shape[1:])
    x, u = terms.z, terms.u
    sx, su = (x, u) if terms.pull is None else (terms.pull(terms.phi), terms.pull(terms.v))
    size = [_magnitude(x, sx), _magnitude(u, su)]
    poor = _ill_conditioned(terms, *size)
    w = terms.weights.to(x)
    total = w.sum(1)
    whole = terms.weights.sum(1, keepdim=True)  # may lie below what float32 can hold
    mean = torch.where(whole > 1e-300, terms.weights / whole, 0.0).to(x)
    m = (mean @ u.flatten(1)).unflatten(1, sample)
    sm = m if terms.pull is None else (mean @ su.flatten(1)).unflatten(1, sample)
    if isinstance(basis, PixelBands):
        values = pixel_band_covariance(x, sx, u, su, m, sm, w, basis)
    else:
        values = w @ _products(u, su, basis)
        own = basis.contract(x - m, sx - sm, ndim=terms.ndim) - basis.contract(m, sm, ndim=terms.ndim)
        values = (values + total[:, None] * own.flatten(1)).unflatten(1, basis.shape(sample))
    if poor.any():
        values[poor] = _pair_by_pair(terms.rows(poor.nonzero().flatten()), basis)
    return values


def _magnitude(a: Tensor, b: Tensor) -> Tensor:
    """Σ |a_i b_i| of each row, in float64."""
    if a is b:
        return power_sum(a.flatten(1), 2)
    return torch.linalg.vecdot(a.flatten(1).abs(), b.flatten(1).abs()).double()


def _products(u: Tensor, su: Tensor, basis: Basis) -> Tensor:
    """B(u_j, S u_j) of each prototype, flattened (M, size)."""
    sample = tuple(u.shape[1:])
    step = max(1, _ELEMENTS // max(u[0].numel(), basis.size(sample) * _depth(basis, sample)))
    parts = [
        basis.contract(a, b, ndim=u.ndim - 1).flatten(1)
        for a, b in zip(u.split(step), su.split(step), strict=True)
    ]
    return torch.cat(parts)


def feature_relevance(phi: Tensor, v: Tensor, weights: Tensor, distances: Tensor, p: int) -> Tensor:
    """Σ_j w_j |φ_i − v_ji|^p for every feature i.

    Args:
        phi: inputs (N, D), centred. v: prototypes (M, D), centred.
        weights, distances: (N, M), float64.

    Returns:
        (N, D), in the dtype of `phi`.
    """
    w = weights.to(phi)
    if p == 1:
        return _absolute(phi, v, w)
    out = torch.empty_like(phi)
    for cols in torch.arange(phi.shape[1], device=phi.device).split(1 << 14):
        lo, hi = int(cols[0]), int(cols[-1]) + 1
        x, u = phi[:, lo:hi], v[:, lo:hi]
        term = w.sum(1, keepdim=True).expand_as(x)
        power = torch.ones_like(u)
        moments = [term]
        for _ in range(p):
            power = power * u
            moments.append(w @ power)
        value = moments[0]
        for k in range(1, p + 1):  # Horner: Σ_k binom(p, k) (−1)^k x^(p−k) (W u^k)
            value = value * x + (-1) ** k * math.comb(p, k) * moments[k]
        out[:, lo:hi] = value
    u_terms, x_terms = power_sum(v, p), power_sum(phi, p)
    added = 2 ** (p - 1) * (weights.sum(1) * x_terms + weights @ u_terms)
    left = (weights * distances).sum(1)
    poor = added * torch.finfo(phi.dtype).eps > _PRECISION * left
    for n in poor.nonzero().flatten().tolist():
        keep = (weights[n] * distances[n] > _NEGLIGIBLE * left[n]).nonzero().flatten()
        out[n] = 0
        for part in keep.split(max(1, _ELEMENTS // phi.shape[1])):
            out[n] += w[n, part] @ (phi[n] - v[part]).abs().pow(p)
    return out


def _absolute(phi: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Σ_j w_j |φ_i − v_ji|, in blocks that stay in cache."""
    out = torch.empty_like(phi)
    step = max(64, (1 << 18) // len(v))
    for lo in range(0, phi.shape[1], step):
        u = v[:, lo : lo + step].contiguous()
        for n in range(len(phi)):
            out[n, lo : lo + step] = w[n] @ torch.sub(u, phi[n, lo : lo + step]).abs_()
    return out
