"""Relevance of pairs of features: what BiLRP returns, and how it is drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.device import double
from pfungst.errors import InputError
from pfungst.relevance import Basis, Relevance


class Pairs(Basis):
    """Components of one input times components of another, (P, Q).

    Args:
        inner: the basis of each input, or its dictionary.
    """

    name = "pairs"

    def __init__(self, inner: Basis | dict[str, Any]) -> None:
        self.inner = inner if isinstance(inner, Basis) else Basis.from_dict(inner)

    def params(self) -> dict[str, Any]:
        return {"inner": self.inner.to_dict()}

    def shape(self, sample: tuple[int, ...]) -> tuple[int, ...]:
        size = self.inner.size(sample)
        return (size, size)

    def contract(self, x: Tensor, g: Tensor, ndim: int = 3) -> Tensor:
        raise InputError("relevance of pairs is no function of one input", "use SimilarityExplainer.pair")

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        raise InputError("pairs are no components of one input", "use SimilarityExplainer.pair")


class PairRelevance(Relevance):
    """BiLRP of one pair: values (1, P, Q), from component p of the first to component q of the second input.

    Attributes:
        grids: shapes of the components of the two inputs, for example ((28, 28), (28, 28)).
        error: (1, P, Q) half-width of the 95 % interval of each value when a sketch was used, else None.
        remainder: size of what a decomposition leaves out, relative to that of the values (Frobenius).
    """

    def __init__(
        self,
        values: Tensor,
        score: Tensor,
        basis: Basis,
        bias: Tensor | None,
        grids: tuple[tuple[int, ...], tuple[int, ...]],
        error: Tensor | None = None,
        remainder: float = 0.0,
    ) -> None:
        super().__init__(values, score, basis, bias)
        self.grids = grids
        self.error = error
        self.remainder = remainder

    def marginals(self, magnitude: bool = False) -> tuple[Tensor, Tensor]:
        """What each component of the first and of the second input contributes, in the shape of its grid.

        Args:
            magnitude: of |values|; otherwise support and contradiction cancel.
        """
        v = self.values[0].abs() if magnitude else self.values[0]
        return v.sum(1).reshape(self.grids[0]), v.sum(0).reshape(self.grids[1])

    def on(self, first: Tensor, second: Tensor) -> float:
        """Share of |relevance| on regions of the two inputs, boolean in the shape of their grids; 0 where all
        is 0."""
        left, right = self.marginals(magnitude=True)
        total = float(left.sum() + right.sum())
        return float(left[first].sum() + right[second].sum()) / total if total > 0 else 0.0


def line_strength(values: Tensor) -> Tensor:
    """How strongly each pair is drawn, in [−1, 1]; the line's opacity is the square.

    As in BiLRP's published drawing code: divided by mean(R⁴)^¼, what lies within ±2 removed, clipped to ±18,
    divided by 18. Positive values support the similarity, negative ones contradict it.
    """
    wide = double(values)
    scale = wide.pow(4).mean().pow(0.25)
    r = wide / scale if scale > 0 else torch.zeros_like(wide)
    return ((r - r.clamp(-2, 2)).clamp(-18, 18) / 18).to(values)


def strongest(values: Tensor, count: int) -> list[tuple[int, int, float]]:
    """The pairs of largest magnitude: (p, q, value), strongest first.

    Args:
        values: (P, Q).
        count: how many.
    """
    flat = values.flatten()
    index = flat.abs().topk(min(count, len(flat))).indices
    return [(int(i) // values.shape[1], int(i) % values.shape[1], float(flat[i])) for i in index]
