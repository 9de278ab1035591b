"""The orthonormal DCT-II as matrix products, and the zigzag order of its coefficients.

Exact against ``scipy.fft.dctn(norm="ortho")``; differentiable, batched, on any device. At the sizes of
images (up to a few hundred pixels a side) two matrix products are as fast as an FFT and keep every
``torch.func`` transform working.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=64)
def _dct_matrix(n: int) -> np.ndarray:
    k = np.arange(n)[:, None]
    i = np.arange(n)[None, :]
    matrix = np.cos(np.pi * (2 * i + 1) * k / (2 * n)) * np.sqrt(2.0 / n)
    matrix[0] /= np.sqrt(2.0)
    return matrix


@lru_cache(maxsize=64)
def _dct_tensor(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.as_tensor(_dct_matrix(n), dtype=dtype, device=device)


def dct_matrix(n: int, like: Tensor) -> Tensor:
    """The n × n orthonormal DCT-II matrix D (row k is frequency k), in the dtype and device of `like`."""
    return _dct_tensor(n, like.dtype, like.device)


def dct2(x: Tensor) -> Tensor:
    """2-D DCT-II over the last two axes, orthonormal. x (..., H, W) → coefficients (..., H, W)."""
    return dct_matrix(x.shape[-2], x) @ x @ dct_matrix(x.shape[-1], x).T


def idct2(c: Tensor) -> Tensor:
    """Inverse of :func:`dct2`."""
    return dct_matrix(c.shape[-2], c).T @ c @ dct_matrix(c.shape[-1], c)


@lru_cache(maxsize=64)
def zigzag_rank(height: int, width: int) -> np.ndarray:
    """Position of every DCT coefficient in the JPEG zigzag order.

    Returns an integer array (height, width); entry (u, v) is the index k of the coefficient with
    vertical frequency u and horizontal frequency v. The walk starts (0, 0), (0, 1), (1, 0), (2, 0), …
    """
    u, v = np.indices((height, width))
    diagonal = u + v
    along = np.where(diagonal % 2 == 1, u, v)  # odd diagonals run downwards, even ones upwards
    order = np.lexsort((along.ravel(), diagonal.ravel()))
    rank = np.empty(height * width, dtype=np.int64)
    rank[order] = np.arange(height * width)
    return rank.reshape(height, width)


@lru_cache(maxsize=64)
def _band_masks(edges: tuple[int, ...], height: int, width: int) -> np.ndarray:
    rank = zigzag_rank(height, width)
    lo, hi = np.array(edges[:-1]), np.array(edges[1:])
    return (rank[None] >= lo[:, None, None]) & (rank[None] < hi[:, None, None])


def band_periods(edges: tuple[int, ...], height: int, width: int) -> list[float]:
    """Of the waves of each band their mean period (harmonic mean, so that it is that of the mean frequency),
    in pixels; infinite for a band of the constant alone, NaN for one without waves.

    The wave (u, v) has u / 2H and v / 2W cycles per pixel.
    """
    u, v = np.indices((height, width))
    frequency = np.hypot(u / (2 * height), v / (2 * width))
    bands = [frequency[mask] for mask in _band_masks(tuple(edges), height, width)]
    return [len(b) / float(b.sum()) if b.any() else math.inf if len(b) else math.nan for b in bands]


def band_masks(edges: tuple[int, ...], height: int, width: int, like: Tensor) -> Tensor:
    """Indicator (B, height, width) of the coefficients in each half-open zigzag interval, as `like`'s
    type."""
    return torch.as_tensor(_band_masks(edges, height, width), dtype=like.dtype, device=like.device)


def power_law_edges(count: int, height: int, width: int, exponent: float = 3.47) -> tuple[int, ...]:
    """Edges of `count` bands over the zigzag index, finer at low frequencies.

    Edge i is round(H·W·(i/count)^exponent); band i covers e_{i-1}+1 … e_i and the first starts at 0.
    With 20 bands at 224 px these are those of Kauffmann et al. (arXiv 2408.08041, note C), who print 19:
    the edge near 14,553 is missing in their list.
    On small images neighbouring edges can coincide: such a band is empty and its relevance zero.
    """
    total = height * width
    inner = [min(total, int(np.rint(total * (i / count) ** exponent)) + 1) for i in range(1, count)]
    return (0, *inner, total)
