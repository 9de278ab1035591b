"""Distances of inputs to prototypes: Σ_i |x_i − u_ji|^p, the middle layer of a detector.

For even p the power expands into matrix products, which is what makes scoring fast. The expansion
cancels where a prototype lies close to the input compared with their distance to the origin, so callers
centre both on the training mean, and every pair that still loses more than two digits is measured again
from its difference. Partial sums over blocks of dimensions are accumulated in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK = 8192  # dimensions per partial sum: a block of both operands stays in cache
_CANCELLED = 0.01  # d below this share of the terms' bound, Σ (|x| + |u|)^p ≤ 2^(p−1) Σ (|x|^p + |u|^p),
# is measured again from the differences
_PAIR_ELEMENTS = 1 << 24  # elements of differences held at once


def power_sum(x: Tensor, p: int) -> Tensor:
    """Σ_i |x_i|^p of each row, in float64. x (N, D) → (N,)."""
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part in x.split(_BLOCK, dim=1):
        half = part.pow(p // 2) if p > 2 else part
        out += (part.abs().sum(1) if p == 1 else torch.linalg.vecdot(half, half)).double()
    return out


def _expanded(x: Tensor, u: Tensor, p: int) -> Tensor:
    """Σ over dimensions of the mixed terms of (x − u)^p, p even: Σ_k binom(p, k) x^(p−k) (−u)^k, 0 < k < p."""
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
    parts = [
        power_sum(x[r] - u[c], p) for r, c in zip(rows.split(step), cols.split(step), strict=True) if len(r)
    ]
    return torch.cat(parts)


def power_distances(x: Tensor, u: Tensor, p: int) -> Tensor:
    """d_nj = Σ_i |x_ni − u_ji|^p.

    Args:
        x: inputs (N, D). Centre both on one point near the data for even p.
        u: prototypes (M, D).
        p: 1, or any even power.

    Returns:
        (N, M) in float64.
    """
    if p == 1:
        out = torch.zeros(len(x), len(u), dtype=torch.float64, device=x.device)
        for xs, us in zip(x.split(_BLOCK // 4, dim=1), u.split(_BLOCK // 4, dim=1), strict=True):
            out += torch.cdist(xs, us, p=1.0).double()
        return out
    terms = power_sum(x, p)[:, None] + power_sum(u, p)
    out = terms + _expanded(x, u, p)
    rows, cols = torch.nonzero(out <= _CANCELLED * 2 ** (p - 1) * terms, as_tuple=True)
    if len(rows):
        out[rows, cols] = _pairs(x, u, p, rows, cols)
    return out


def slope(delta: Tensor, p: int) -> Tensor:
    """g with delta · g = |delta|^p: sign(delta)·|delta|^(p−1)."""
    if p == 1:
        return delta.sign()
    return delta if p == 2 else delta.pow(p - 1)
