"""Frequency bands over time: the DCT or Fourier basis of series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.bases import Basis, Shape
from pfungst.relevance.dct import dct_matrix


class TimeBands(Basis):
    """One value per band of frequencies over time, channels summed, for series (T,) or (C, T).

    Args:
        count: bands of about equal width, the lowest frequencies first.
        transform: "dct" (DCT-II, frequency k has k half periods) or "fourier" (k whole periods; sine and
            cosine of one frequency share a band). Both are orthonormal, so that the bands of x sum to x.
    """

    name = "time-bands"

    def __init__(self, count: int = 16, transform: str = "dct") -> None:
        if count < 1 or transform not in ("dct", "fourier"):
            raise InputError(f"{count} bands by {transform!r}", "give a positive number, and dct or fourier")
        self.count, self.transform = count, transform

    def params(self) -> dict[str, Any]:
        return {"count": self.count, "transform": self.transform}

    def shape(self, sample: Shape) -> Shape:
        if len(sample) not in (1, 2):
            raise InputError(f"{self!r} reads series, not inputs of shape {sample}", "pass (T,) or (C, T)")
        return (self.count,)

    def edges(self, length: int) -> list[int]:
        """First frequency of each band, and one past the last; empty bands where there are too few."""
        n = length if self.transform == "dct" else length // 2 + 1
        return [round(i * n / self.count) for i in range(self.count + 1)]

    def matrix(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the orthonormal basis (T, T), and the band of each row (T,)."""
        if self.transform == "dct":
            basis, frequency = dct_matrix(length, like), torch.arange(length)
        else:
            t = torch.arange(length, dtype=torch.float64)
            rows, of = [], []
            for k in range(length // 2 + 1):
                angle = 2 * torch.pi * k * t / length
                alone = k == 0 or 2 * k == length
                scale = (1 if alone else 2) / length
                rows.append(scale**0.5 * angle.cos())
                of.append(k)
                if not alone:
                    rows.append(scale**0.5 * angle.sin())
                    of.append(k)
            basis, frequency = torch.stack(rows).to(like), torch.tensor(of)
        inner = torch.tensor(self.edges(length)[1:-1])
        return basis, torch.bucketize(frequency, inner, right=True).to(like.device)

    def contract(self, x: Tensor, g: Tensor, ndim: int = 1) -> Tensor:
        basis, band = self.matrix(x.shape[-1], x)
        r = (x @ basis.T) * (g @ basis.T)
        r = r.sum(-2) if ndim == 2 else r
        return torch.zeros(*r.shape[:-1], self.count, dtype=r.dtype, device=r.device).index_add_(-1, band, r)

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        basis, band = self.matrix(x.shape[-1], x)
        stop = self.count if stop is None else stop
        c = x @ basis.T
        return torch.stack([(c * (band == b).to(c)) @ basis for b in range(start, stop)])
