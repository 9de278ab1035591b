"""Distances of inputs to prototypes: Σ_i |x_i − u_ji|^p, the middle layer of a detector.

For even p the power expands into matrix products, which is what makes scoring fast. The expansion
cancels where a prototype lies close to the input compared with their distance to the origin, so callers
centre both (:func:`centre`), and every pair that still loses more than two digits, or whose powers underflow,
is measured again from its difference, in float64. Partial sums over blocks of dimensions are accumulated in
float64; where float32 overflows everything is computed in float64, and what that cannot hold either is
refused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfungst.errors import InputError

_BLOCK = 8192  # dimensions per partial sum: a block of both operands stays in cache
_CANCELLED = 0.01  # d below this share of the terms' bound, Σ (|x| + |u|)^p ≤ 2^(p−1) Σ (|x|^p + |u|^p),
# is measured again from the differences
_PAIR_ELEMENTS = 1 << 23  # elements of differences held at once
_UNDERFLOW = 5e-324  # in place of a distance that is not 0 but would be in float64
_SMALLEST, _LARGEST = 1e-250, 1e250  # distances between: bandwidths and poolings compute with their inverses


def centre(rows: Tensor) -> Tensor:
    """A point (*sample) amid rows (N, *sample): the median in each dimension of up to 15 of them.

    Far outliers do not move it, which would cost the differences of all others their digits.
    """
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), 15)).round().long()
    return rows[chosen.to(rows.device)].median(0).values


def power_sum(x: Tensor, p: int) -> Tensor:
    """Σ_i |x_i|^p of each row, in float64. x (N, D) → (N,)."""
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part in x.split(_BLOCK, dim=1):
        half = part.pow(p // 2) if p > 2 else part
        out += (part.abs().sum(1) if p == 1 else torch.linalg.vecdot(half, half)).double()
    return out


def _expanded(x: Tensor, u: Tensor, p: int) -> Tensor:
    """Σ over dimensions of the mixed terms of (x − u)^p, p even: Σ_k binom(p, k) x^(p−k) (−u)^k, 0 < k <
    p."""
    out = torch.zeros(len(x), len(u), dtype=torch.float64, device=x.device)
    for xs, us in zip(x.split(_BLOCK, dim=1), u.split(_BLOCK, dim=1), strict=True):
        if p == 2:
            out.add_((xs @ us.T).double(), alpha=-2)
            continue
        x_powers, u_powers = [xs], [us]
        for _ in range(p - 2):
            x_powers.append(x_powers[-1] * xs)
            u_powers.append(u_powers[-1] * us)
        for k in range(1, p):
            term = x_powers[p - k - 1] @ u_powers[k - 1].T
            out.add_(term.double(), alpha=(-1) ** k * math.comb(p, k))
    return out


def _pairs(x: Tensor, u: Tensor, p: int, rows: Tensor, cols: Tensor) -> Tensor:
    """Distances of the pairs (rows[k], cols[k]) from their differences."""
    step = max(1, _PAIR_ELEMENTS // max(1, x.shape[1]))
    parts = []
    for r, c in zip(rows.split(step), cols.split(step), strict=True):
        delta = x[r].double() - u[c].double()
        total = power_sum(delta, p)
        parts.append(total.masked_fill_((total == 0) & (delta != 0).any(1), _UNDERFLOW))
    return torch.cat(parts)


def power_distances(x: Tensor, u: Tensor, p: int) -> Tensor:
    """d_nj = Σ_i |x_ni − u_ji|^p.

    Args:
        x: inputs (N, D), less the centre of the prototypes.
        u: prototypes (M, D), less the same.
        p: 1, or any even power.

    Returns:
        (N, M) in float64: 0, or from 1e-250 to 1e250.

    Raises:
        InputError: a distance is larger, or smaller without being 0, or not a number.
    """
    out = _power_distances(x, u, p)
    if x.dtype != torch.float64 and not bool(torch.isfinite(out).all()):
        out = _power_distances(x.double(), u.double(), p)
    if not bool(((out == 0) | ((out >= _SMALLEST) & (out <= _LARGEST))).all()):
        size = max(v.abs().max().item() for v in (x, u))
        raise InputError(
            f"the distances of values up to {size:.3g} from the centre of the training data, to the power "
            f"{p}, lie outside "
            f"{_SMALLEST:g} to {_LARGEST:g}",
            "scale the data, for example to unit variance, pass float64, and see that features are finite",
        )
    return out


def _power_distances(x: Tensor, u: Tensor, p: int) -> Tensor:
    if p == 1:
        out = torch.zeros(len(x), len(u), dtype=torch.float64, device=x.device)
        for xs, us in zip(x.split(_BLOCK // 4, dim=1), u.split(_BLOCK // 4, dim=1), strict=True):
            out += torch.cdist(xs, us, p=1.0).double()
        return out
    terms = power_sum(x, p)[:, None] + power_sum(u, p)
    if not bool(torch.isfinite(terms).all()):
        return terms
    out = terms + _expanded(x, u, p)
    info = torch.finfo(x.dtype)
    limit = (_CANCELLED * 2 ** (p - 1) * terms).clamp_min_(x.shape[1] * info.tiny / info.eps)
    rows, cols = torch.nonzero(out <= limit, as_tuple=True)
    if len(rows):
        out[rows, cols] = _pairs(x, u, p, rows, cols)
    return out


def slope(delta: Tensor, p: int) -> Tensor:
    """g with delta · g = |delta|^p: sign(delta)·|delta|^(p−1)."""
    if p == 1:
        return delta.sign()
    return delta if p == 2 else delta.pow(p - 1)
