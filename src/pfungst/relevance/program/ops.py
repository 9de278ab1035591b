"""Linear maps on many vectors at once, forward and transposed: products with constants, sums, reshapes,
means.

Vectors are tensors (M, N, ...): M of them for each of N inputs; images are channels last in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pfungst.relevance.program.parts import Part, Product

Box = tuple[int, int, int, int]  # first and last row, first and last column, of an image's support


def layout(c: Tensor) -> Tensor:
    """Images channels last in memory, other constants as they are."""
    return c.contiguous(memory_format=torch.channels_last) if c.ndim == 4 else c


class Op(ABC):
    """One linear map: `ins` and `outs` number the values that it reads and writes."""

    def __init__(self, ins: list[int], outs: list[int]) -> None:
        self.ins, self.outs = ins, outs

    @abstractmethod
    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        """Transposed map: (M, N, *out) of each output → of each input, with whether it may be overwritten."""

    @abstractmethod
    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        """The map itself: (M, N, *in) of each input, which may be overwritten if `owned`, → of each
        output."""

    #: What :meth:`forward` returns is memory of its own, or one of its inputs.
    fresh = False

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        """Support of the output from the supports of the inputs; None where it is unknown."""
        return None


class Scale(Op):
    """Product with a constant."""

    fresh = True

    def __init__(self, ins: list[int], outs: list[int], c: Tensor) -> None:
        super().__init__(ins, outs)
        self.c = c

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g.mul_(self.c) if owned and g.dtype == self.c.dtype else g * self.c, True)]

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        t = tangents[0]
        if t is None:
            return [None]
        return [t.mul_(self.c) if owned and t.dtype == self.c.dtype else t * self.c]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return boxes[0]


class Combine(Op):
    """Σ c · input: the sum of a residual block, the terms of a rule."""

    fresh = True

    def __init__(self, ins: list[int], outs: list[int], cs: list[Tensor | float]) -> None:
        super().__init__(ins, outs)
        self.cs = cs

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        parts: list[tuple[Part | None, bool]] = []
        for c in self.cs:
            if isinstance(c, Tensor):
                parts.append((Product(g, c) if c.dtype == g.dtype else g * c, True))
            else:
                parts.append((g, False) if c == 1 else (g * c, True))
        return parts

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        total: Tensor | None = None
        mine = False  # whether the total may be overwritten
        for t, c in zip(tangents, self.cs, strict=True):
            if t is None:
                continue
            if mine and total is not None and isinstance(c, Tensor) and c.dtype == t.dtype == total.dtype:
                total.addcmul_(t, c)
                continue
            part = t if isinstance(c, float) and c == 1 else t.mul_(c) if owned and _fits(t, c) else t * c
            if total is None:
                total, mine = part, owned or part is not t
            elif mine:
                total.add_(part)
            else:
                total, mine = total + part, True
        return [total]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return union(boxes)


def _fits(t: Tensor, c: Tensor | float) -> bool:
    return not isinstance(c, Tensor) or c.dtype == t.dtype


def union(boxes: Sequence[Box | None]) -> Box | None:
    """The smallest box that holds all of them; None where one is the whole."""
    if any(b is None for b in boxes):
        return None
    known = [b for b in boxes if b is not None]
    return (
        min(b[0] for b in known),
        max(b[1] for b in known),
        min(b[2] for b in known),
        max(b[3] for b in known),
    )


class Reshape(Op):
    """A change of shape that keeps the order of elements."""

    def __init__(
        self, ins: list[int], outs: list[int], before: tuple[int, ...], after: tuple[int, ...]
    ) -> None:
        super().__init__(ins, outs)
        self.before, self.after = before, after

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g.reshape(g.shape[0], *self.before), owned)]

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.reshape(t.shape[0], *self.after)]


class Spread(Op):
    """One channel copied to all."""

    def __init__(self, ins: list[int], outs: list[int], channels: int) -> None:
        super().__init__(ins, outs)
        self.channels = channels

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g.sum(2, keepdim=True), True)]

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.expand(-1, -1, self.channels, -1, -1)]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return boxes[0]


class GlobalMean(Op):
    """Mean over both image axes."""

    def __init__(self, ins: list[int], outs: list[int], shape: tuple[int, ...], keep: bool) -> None:
        super().__init__(ins, outs)
        self.shape, self.keep = shape, keep

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        g = g if self.keep else g[..., None, None]
        h, w = self.shape[-2:]
        return [((g / (h * w)).expand(g.shape[0], *self.shape), False)]

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.mean((-2, -1), keepdim=self.keep)]
