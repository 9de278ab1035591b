"""Where the positions are in a layer's output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.responses import SPATIAL


@dataclass(frozen=True)
class Part:
    """An axis of the output that holds positions: after `prefix` tokens the sides of a grid, slowest
    first."""

    axis: int
    sides: tuple[int, ...]
    prefix: int = 0


@dataclass(frozen=True)
class Layout:
    """Where the positions are in a layer's output.

    Attributes:
        batch: axis of the output that counts the inputs.
        inputs: axes of the input along which the grid lies.
        grid: number of positions along each of them; 1 where the layer has none.
        parts: axes of the output without `batch`; what they do not name are channels.
    """

    batch: int
    inputs: tuple[int, ...]
    grid: tuple[int, ...]
    parts: tuple[Part, ...]

    def __call__(self, t: Tensor) -> Tensor:
        """A layer's output as (N, C, *grid)."""
        t = t.movedim(self.batch, 0)
        axes = [p.axis + 1 for p in self.parts]
        t = t.permute(0, *(a for a in range(1, t.ndim) if a not in axes), *axes)
        t = t.flatten(1, -len(axes) - 1) if t.ndim > len(axes) + 1 else t.unsqueeze(1)
        order: list[int] = []
        for part in self.parts:
            sizes = [self.grid[s] for s in part.sides]
            where = 2 + len(order)
            t = t.narrow(where, part.prefix, math.prod(sizes)).unflatten(where, sizes)
            order += part.sides
        for side in range(len(self.grid)):
            if side not in order:
                t = t.unsqueeze(-1)
                order.append(side)
        return t.permute(0, 1, *(2 + order.index(side) for side in range(len(self.grid))))


@dataclass(frozen=True)
class Wish:
    """What the caller says about a layout; None is unknown."""

    channels_last: bool | None = None
    grid: tuple[int, ...] | None = None
    prefix: int | None = None


def stated(shape: Sequence[int], x: Tensor, wish: Wish, resize: bool) -> Layout | None:
    """The layout of an output of `shape` where the caller has said everything, else None."""
    sample, last = tuple(shape[1:]), wish.channels_last
    inputs = SPATIAL[x.ndim][0]
    if shape[0] != len(x) or (x.ndim == 3 and resize):
        return None
    if last is not None and len(sample) == len(inputs) + 1 and x.ndim > 3:
        sides = sample[:-1] if last else sample[1:]
        if wish.grid not in (None, sides) or wish.prefix:
            raise InputError(
                f"an output {tuple(shape)} with channels {'last' if last else 'first'} has the grid {sides}",
                f"leave out grid= and prefix=, or pass channels_last={not last}",
            )
        return Layout(0, inputs, sides, tuple(Part(k + (not last), (k,)) for k in range(len(inputs))))
    if (
        len(sample) == 2
        and wish.grid is not None
        and wish.prefix is not None
        and len(wish.grid) == len(inputs)
    ):
        need = wish.prefix + math.prod(wish.grid)
        fits = [a for a in (0, 1) if sample[a] >= need and last in (None, a == 0)]
        if not fits:
            raise InputError(
                f"{wish.prefix} tokens and a grid {wish.grid} do not fit into an output {tuple(shape)}",
                "correct prefix=, grid= or channels_last=",
            )
        if len(fits) == 1:
            return Layout(0, inputs, wish.grid, (Part(fits[0], tuple(range(len(inputs))), wish.prefix),))
    return None
