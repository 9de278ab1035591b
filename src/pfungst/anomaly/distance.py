"""Distances of inputs to prototypes: Σ_i |x_i − u_ji|^p, the middle layer of a detector.

For even p the power expands into matrix products, which is what makes scoring fast. The expansion
cancels where a prototype lies close to the input compared with their distance to the origin, so callers
centre both (:func:`centre`), and every pair that still loses more than two digits, or whose powers underflow,
is measured again from its difference, in float64. Partial sums over blocks of dimensions are accumulated in
float64; where float32 overflows everything is computed in float64, and what that cannot hold either is
refused.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from pfungst.errors import InputError

_BLOCK = 8192  # dimensions per partial sum of products
_NARROW = 512  # the same of absolute differences: some hundred rows of them stay in the second-level cache
_PARTS = 4  # of the rows, of whose products with each other only those below the diagonal are computed
_CANCELLED = 0.01  # d below this share of the terms' bound, Σ (|x| + |u|)^p ≤ 2^(p−1) Σ (|x|^p + |u|^p),
# is measured again from the differences
_PAIR_ELEMENTS = 1 << 23  # elements of differences held at once
_UNDERFLOW = 5e-324  # in place of a distance that is not 0 but would be in float64
_SMALLEST, _LARGEST = 1e-250, 1e250  # distances between: bandwidths and poolings compute with their inverses


def centre(rows: Tensor) -> Tensor:
    """A point (*sample) amid rows (N, *sample): the median in each dimension of up to 15 of them.

    Far outliers do not move it, which would cost the differences of all others their digits.
    """
    ranked = [rows[i] for i in torch.linspace(0, len(rows) - 1, min(len(rows), 15)).round().long().tolist()]
    for turn in range(len(ranked)):  # odd-even transposition sort: whole rows at a time
        for i in range(turn % 2, len(ranked) - 1, 2):
            a, b = ranked[i : i + 2]
            ranked[i : i + 2] = torch.minimum(a, b), torch.maximum(a, b)
    return ranked[(len(ranked) - 1) // 2]


def power_sum(x: Tensor, p: int) -> Tensor:
    """Σ_i |x_i|^p of each row, in float64. x (N, D) → (N,)."""
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part in x.split(_BLOCK, dim=1):
        half = part.pow(p // 2) if p > 2 else part
        out += (part.abs().sum(1) if p == 1 else torch.linalg.vecdot(half, half)).double()
    return out


def _expanded(x: Tensor, u: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Σ (x − u)^p, p even, as Σ_k binom(p, k) Σ x^(p−k) (−u)^k, and Σ x^p + Σ u^p: its terms without a sign.

    One pass over both. Of rows among themselves a product and its transpose are computed once.
    """
    own = u is x
    out = torch.zeros(len(x), len(u), dtype=torch.float64, device=x.device)
    x_sum, u_sum = out.new_zeros(len(x)), out.new_zeros(len(u))
    for xs, us in zip(x.split(_BLOCK, dim=1), u.split(_BLOCK, dim=1), strict=True):
        x_powers = _powers(xs, p)
        u_powers = x_powers if own else _powers(us, p)
        for k in range(1, p // 2 + 1 if own else p):
            left, right = x_powers[p - k - 1], u_powers[k - 1]
            step = -(-len(x) // _PARTS) if own and 2 * k == p else len(x)
            for low in range(0, len(x), step):
                high = min(low + step, len(x))
                seen = high if own else len(u)
                term = (left[low:high] @ right[:seen].T).double()
                out[low:high, :seen].add_(term, alpha=(-1) ** k * math.comb(p, k))
                if own and 2 * k != p:
                    out.add_(term.T, alpha=(-1) ** k * math.comb(p, k))
        if not own:
            for total, powers in ((x_sum, x_powers), (u_sum, u_powers)):
                total += torch.linalg.vecdot(powers[p // 2 - 1], powers[p // 2 - 1]).double()
    if own:  # mixed terms and the others are 0 together where x = u
        x_sum = u_sum = -0.5 * out.diagonal()
    terms = x_sum[:, None] + u_sum
    out += terms
    return (out.tril(-1) + out.tril(-1).T if own else out), terms


def _powers(x: Tensor, p: int) -> list[Tensor]:
    """x, x², … x^(p−1)."""
    return list(itertools.accumulate([x] * (p - 1), torch.mul))


def _absolute(x: Tensor, u: Tensor) -> Tensor:
    """Σ |x − u|, in blocks that stay in cache: torch.cdist takes five times as long."""
    out = torch.zeros(len(x), len(u), dtype=torch.float64, device=x.device)
    if u is x:
        upper = tuple(torch.triu_indices(len(x), len(x), 1, device=x.device))
        out[upper] = sum(torch.pdist(part, 1.0).double() for part in x.split(_NARROW, dim=1))
        return out + out.T
    if len(x) > len(u):
        return _absolute(u, x).T
    for cols in range(0, x.shape[1], _NARROW):
        xs = x[:, cols : cols + _NARROW]
        for rows in range(0, len(u), _NARROW):
            us = u[rows : rows + _NARROW, cols : cols + _NARROW].contiguous()
            delta = torch.empty_like(us)
            sums = [torch.sub(us, row, out=delta).abs_().sum(1) for row in xs]
            out[:, rows : rows + _NARROW] += torch.stack(sums)
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
        u: prototypes (M, D), less the same; `x` itself for the distances of its rows among themselves, which
            take half the time.
        p: 1, or any even power.

    Returns:
        (N, M) in float64: 0, or from 1e-250 to 1e250.

    Raises:
        InputError: a distance is larger, or smaller without being 0, or not a number.
    """
    out = _power_distances(x, u, p)
    if x.dtype != torch.float64 and not bool(torch.isfinite(out).all()):
        wide = x.double()
        out = _power_distances(wide, wide if u is x else u.double(), p)
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
        return _absolute(x, u)
    out, terms = _expanded(x, u, p)
    if not bool(torch.isfinite(terms).all()):
        return terms
    info = torch.finfo(x.dtype)
    poor = out <= (_CANCELLED * 2 ** (p - 1) * terms).clamp_min_(x.shape[1] * info.tiny / info.eps)
    rows, cols = torch.nonzero(poor.tril(-1) if u is x else poor, as_tuple=True)
    if len(rows):
        out[rows, cols] = _pairs(x, u, p, rows, cols)
        if u is x:
            out[cols, rows] = out[rows, cols]
    return out


def slope(delta: Tensor, p: int) -> Tensor:
    """g with delta · g = |delta|^p: sign(delta)·|delta|^(p−1)."""
    if p == 1:
        return delta.sign()
    return delta if p == 2 else delta.pow(p - 1)
