"""Greedy k-center selection: a few rows such that every row lies close to one of them.

Farthest-first traversal (Gonzalez 1985): starting from one row, always take the row farthest from those
taken; its covering radius is at most twice the best possible. The result here is exactly that of the
textbook loop, up to rounding, but the work is done in matrix products:

- *Batches.* Distances to the selected rows only fall. Among the B farthest rows, selection may go on as long
  as the farthest of them is no nearer than every row outside; only then all rows are compared with the whole
  batch.
- *Bounds.* An orthogonal map to the leading principal components plus the norm of the residual never
  lengthens a distance, so rows whose bound exceeds their present distance are not compared in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import InputError

_ROWS = 8192  # rows compared at once
_COLUMNS = 64  # selected rows compared at once: few enough for the bounds to rule rows out
_COMPONENTS = 64  # principal components of the bounds
_SAMPLE = 4096  # rows that the principal components are estimated from
_CANDIDATES = (64, 1024)  # least and largest batch of farthest rows


@dataclass
class Coreset:
    """Selected rows.

    Attributes:
        indices: (K,) in order of selection.
        radius: largest Euclidean distance of any row to the nearest selected one.
    """

    indices: Tensor
    radius: float


class _Rows:
    """Rows centred on their mean, with cheap lower bounds of their distances."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.mean = torch.zeros_like(x[0])
        for part in x.split(_ROWS):
            self.mean += part.sum(0) / len(x)
        rank = min(_COMPONENTS, x.shape[1])
        step = max(1, len(x) // _SAMPLE)
        axes = _leading_axes(x[::step][:_SAMPLE] - self.mean, rank)
        self.reduced = x.new_empty(len(x), rank + 1)
        self.norms = x.new_empty(len(x))
        for start in range(0, len(x), _ROWS):
            part, stop = x[start : start + _ROWS] - self.mean, start + _ROWS
            projected = part @ axes
            norms = torch.linalg.vecdot(part, part)
            residual = (norms - torch.linalg.vecdot(projected, projected)).clamp_(min=0)
            self.reduced[start:stop, :rank] = projected
            self.reduced[start:stop, rank] = residual.sqrt_()
            self.norms[start:stop] = norms
        self.rounding = 32 * torch.finfo(x.dtype).eps

    def centred(self, rows: Tensor) -> Tensor:
        return self.x[rows] - self.mean

    def lower(self, distances: Tensor, new: Tensor) -> None:
        """Squared distances (N,) of all rows, lowered in place to those to the rows `new` where these are
        nearer."""
        for columns in new.split(_COLUMNS):
            full, norms = self.centred(columns).T, self.norms[columns]
            reduced = self.reduced[columns].T
            for start in range(0, len(distances), _ROWS):
                part = slice(start, start + _ROWS)
                bound = torch.addmm(norms, self.reduced[part], reduced, alpha=-2).amin(1) + self.norms[part]
                rows = (
                    bound < distances[part] + self.rounding * self.norms[part]
                ).nonzero().flatten() + start
                if not len(rows):
                    continue
                near = torch.addmm(norms, self.centred(rows), full, alpha=-2).amin(1).add_(self.norms[rows])
                distances[rows] = torch.minimum(distances[rows], near.clamp_(min=0))


def _leading_axes(x: Tensor, rank: int) -> Tensor:
    """Orthonormal (D, rank), close to the leading principal axes of centred x: two subspace iterations."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    axes = torch.randn(x.shape[1], rank, generator=generator).to(x)
    for _ in range(3):
        axes = torch.linalg.qr(x.T @ (x @ axes)).Q
    return axes


def greedy_coreset(
    x: Tensor, size: int, progress: Callable[[int, int], None] | None = None, start: int | None = None
) -> Coreset:
    """Rows of `x` chosen farthest-first.

    Args:
        x: (N, D) float32 or float64.
        size: number K of rows to choose. Where fewer are distinct, fewer come back and the radius is zero.
        progress: called with the number of rows chosen and K.
        start: the first row; by default the one farthest from the mean.

    Returns:
        The coreset and its covering radius in the space of `x`.

    Raises:
        InputError: `x` is no finite matrix, or `size` is not between 1 and N.
    """
    _check(x, size)
    rows = _Rows(x)
    first = int(rows.norms.argmax()) if start is None else start
    chosen = torch.empty(size, dtype=torch.long)
    chosen[0] = first
    count = 1
    distances = x.new_full((len(x),), torch.inf)
    rows.lower(distances, torch.tensor([first], device=x.device))
    distances[first] = 0
    batch = _CANDIDATES[0]
    while count < size:
        if progress is not None:
            progress(count, size)
        batch = min(batch, len(x))
        farthest, index = distances.topk(batch)
        outside = float(farthest[-1]) if batch < len(x) else 0.0
        own = rows.centred(index)
        norms = rows.norms[index]
        mutual = torch.addmm(norms, own, own.T, alpha=-2).add_(norms[:, None])
        taken = _take(farthest, mutual, outside, size - count)
        if not taken:
            return Coreset(chosen[:count], 0.0)
        new = index[torch.tensor(taken, device=index.device)]
        chosen[count : count + len(taken)] = new.cpu()
        count += len(taken)
        rows.lower(distances, new)
        distances[new] = 0
        share = len(taken) / batch
        if share > 0.2:
            batch = min(2 * batch, _CANDIDATES[1])
        elif share < 0.05:
            batch = max(batch // 2, _CANDIDATES[0])
    if progress is not None:
        progress(size, size)
    return Coreset(chosen, float(distances.max().sqrt()))


def _take(distances: Tensor, mutual: Tensor, outside: float, limit: int) -> list[int]:
    """Farthest-first among the candidates, until one outside them might be farther."""
    left, between = distances.cpu().numpy().copy(), mutual.cpu().numpy()
    taken: list[int] = []
    while len(taken) < limit:
        i = int(left.argmax())
        if left[i] <= 0 or left[i] < outside:
            break
        taken.append(i)
        np.minimum(left, between[i], out=left)
        left[i] = 0
    return taken


def random_coreset(x: Tensor, size: int, seed: int = 0) -> Coreset:
    """`size` rows of `x` at random, without repetition: the baseline of any selection."""
    _check(x, size)
    indices = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:size]
    return Coreset(indices, covering_radius(x, indices))


def covering_radius(x: Tensor, indices: Tensor) -> float:
    """Largest Euclidean distance of a row of `x` (N, D) to the nearest of the rows `indices`."""
    rows = _Rows(x)
    distances = x.new_full((len(x),), torch.inf)
    index = torch.as_tensor(indices, device=x.device)
    rows.lower(distances, index)
    distances[index] = 0
    return float(distances.max().sqrt())


def _check(x: Tensor, size: int) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(
            f"data of shape {tuple(x.shape)} and dtype {x.dtype}", "pass a matrix of patches (N, D)"
        )
    if not 1 <= size <= len(x):
        raise InputError(f"{size} of {len(x)} rows asked for", "ask for at least one and at most all")
    if not all(torch.isfinite(part.sum()) for part in x.split(_ROWS)):
        raise InputError("the patches contain NaN or infinity", "repair or leave out these images")
