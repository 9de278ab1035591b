"""The transposed program of many vectors on live units only.

A unit (channel and position of an image) that a ReLU switches off at the explained input passes nothing on,
whatever the cotangent: in a ReLU network a third to nine tenths of all units. The vectors share the input and
so its dead units. A cotangent is therefore kept as a matrix of live units × vectors, sorted by position, and
a convolution becomes one matrix product for each position and row of taps, of the weights between live units
only. That is exact, and pays from some hundred vectors on, over which the selection of weights is amortised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pfungst.relevance.program.ops import Combine, Op, Scale
from pfungst.relevance.program.units import LINE, PASS, Link, Taps, Units
from pfungst.relevance.program.windows import Convolution

MANY = 128  # vectors from which live units pay
MOST = 1024  # vectors at a time, from which on selection costs little

# Costs in multiplications of a matrix product, from timings on two cores.
_TURN = 160  # of a value turned from images into units or back
_CAUTION = 1.3  # by which the costs on live units are taken to be too low

Shapes = Mapping[int, tuple[int, ...]]


@dataclass
class Node:
    """A value of the program on its live units, and where its cotangent goes."""

    units: Units
    edges: list[tuple[Link | Taps, int]] = field(default_factory=list)


class LiveProgram:
    """Ops of a tape between two values through which everything passes, for one of its inputs.

    Args:
        ops: convolutions, products with constants and their sums, in the order of execution.
        bottom: number of the value that they read.
        top: number of the value that they write.
        shapes: of all values, (N, C, H, W).
        sample: which of the N inputs.
        live: (C, H, W), where anything passes through the bottom value; everywhere if None.
        dtype: of cotangents.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        bottom: int,
        top: int,
        shapes: Shapes,
        sample: int,
        live: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.bottom, self.top = bottom, top
        everywhere = torch.ones(shapes[bottom][1:], dtype=torch.bool)
        self.nodes = {bottom: Node(Units(everywhere if live is None else live))}
        scaled = _scaled(ops, top)
        for op in ops:
            out = op.outs[0]
            if out in scaled:
                continue
            shape = shapes[out][1:]
            terms = [
                (i, _of_sample(c, sample).to(dtype).expand(*shape))
                for i, c in zip(op.ins, _constants(op), strict=True)
            ]
            node = self.nodes[out] = Node(Units(torch.stack([c != 0 for _, c in terms]).any(0)))
            for i, c in terms:
                conv = op if isinstance(op, Convolution) else scaled.get(i)
                source = i if conv is None else conv.ins[0]
                units = self.nodes[source].units
                edge = Link(node.units, units, c) if conv is None else Taps(node.units, units, conv, c)
                node.edges.append((edge, source))

    @property
    def width(self) -> int:
        """Most live units of a value."""
        return max(len(node.units) for node in self.nodes.values())

    def cost(self, vectors: int) -> float:
        """Of one of so many vectors, from images to images."""
        turned = sum(len(self.nodes[i].units) for i in (self.bottom, self.top))
        above = [node for i, node in self.nodes.items() if i != self.bottom]
        return turned * _TURN + sum(edge.cost(vectors) for node in above for edge, _ in node.edges)

    def above(self, value: int) -> LiveProgram:
        """The part of the program that reads this value, which must be one through which everything
        passes."""
        part = copy(self)
        part.bottom = value
        numbers = list(self.nodes)
        part.nodes = {i: self.nodes[i] for i in numbers[numbers.index(value) :]}
        return part

    def reverse(self, g: Tensor) -> tuple[Units, Tensor]:
        """Cotangents of the top value (M, C, H, W) → live units of the bottom value and their cotangents (L,
        M')."""
        grads = {self.top: self.nodes[self.top].units.gather(g)}
        for number in reversed(self.nodes):
            if number == self.bottom or number not in grads:
                continue
            mine = grads.pop(number)
            for edge, source in self.nodes[number].edges:
                first = source not in grads
                if first:
                    grads[source] = mine.new_empty(len(self.nodes[source].units), mine.shape[1])
                edge.run(mine, grads[source], first)
        return self.nodes[self.bottom].units, grads.pop(self.bottom)


@dataclass
class Span:
    """Ops `start` … `stop` of a tape, which run on the live units of one input after the other.

    Args:
        ops: of the tape.
        cuts: positions at which one value is live, and that value.
        shapes: of all values.
        dtype: of cotangents.
    """

    ops: Sequence[Op]
    cuts: Mapping[int, int]
    shapes: Shapes
    dtype: torch.dtype
    start: int
    stop: int
    first: LiveProgram | None = None

    def __post_init__(self) -> None:
        self.first = self.first or self._made(0)

    def _made(self, sample: int) -> LiveProgram:
        bottom, top = self.cuts[self.start], self.cuts[self.stop]
        maker = next((op for op in self.ops[: self.start] if bottom in op.outs), None)
        live = _passing(maker, sample)
        return LiveProgram(
            self.ops[self.start : self.stop], bottom, top, self.shapes, sample, live, self.dtype
        )

    def program(self, sample: int) -> LiveProgram:
        """That of one of the inputs; only the first one's is kept, as indices take memory and are made
        quickly."""
        return self.first if sample == 0 and self.first is not None else self._made(sample)

    def above(self, start: int) -> Span | None:
        """The part from another cut on, None where that is inside a convolution and its scale."""
        whole, bottom = self.program(0), self.cuts[start]
        return replace(self, start=start, first=whole.above(bottom)) if bottom in whole.nodes else None

    def saved(self, vectors: int) -> float:
        """Multiplications that one of so many vectors is spared, by the first input."""
        dense = sum(_dense_cost(op, self.shapes) for op in self.ops[self.start : self.stop])
        return dense - _CAUTION * self.program(0).cost(vectors)

    def vectors(self, room: int) -> int:
        """How many vectors fit into so many bytes: a cotangent, what it is made of and a copy, and results
        that wait."""
        first, inputs = self.program(0), self.shapes[self.cuts[self.start]][0]
        values = 3 * first.width + (inputs - 1) * len(first.nodes[first.bottom].units)
        return min(MOST, room // (self.dtype.itemsize * values) // LINE * LINE)

    def reverse(self, g: Tensor) -> Iterator[Tensor]:
        """(M, N, C, H, W) → pieces (m, N, C', H', W') in the order of `g`."""
        found = [self.program(n).reverse(g[:, n]) for n in range(g.shape[1])]
        for parts in zip(*(units.scatter(matrix, len(g)) for units, matrix in found), strict=True):
            yield torch.stack(parts, 1) if len(parts) > 1 else parts[0][:, None]


def best_span(
    ops: Sequence[Op], cuts: Mapping[int, int], shapes: Shapes, dtype: torch.dtype, room: int
) -> Span | None:
    """The span that saves most when its cotangents may take `room` bytes, None where none saves anything."""
    best, most = None, 0.0
    for start, stop in _runs(ops, cuts, shapes, dtype):
        whole = Span(ops, cuts, shapes, dtype, start, stop)
        for span in (whole.above(at) for at in range(start, stop) if at in cuts):
            vectors = span.vectors(room) if span is not None else 0
            if span is not None and vectors >= MANY and span.saved(vectors) > most:
                best, most = span, span.saved(vectors)
    return best


def _runs(
    ops: Sequence[Op], cuts: Mapping[int, int], shapes: Shapes, dtype: torch.dtype
) -> Iterator[tuple[int, int]]:
    """First and last cut of each run of ops that a program on live units can have."""
    inside: list[int] = []
    for at in range(len(ops) + 1):
        if at in cuts and len(shapes[cuts[at]]) == 4:
            inside.append(at)
        if at == len(ops) or not _supported(ops[at], shapes, dtype):
            if len(inside) > 1:
                yield inside[0], inside[-1]
            inside = []


def _supported(op: Op, shapes: Shapes, dtype: torch.dtype) -> bool:
    if not isinstance(op, Convolution | Scale | Combine) or any(
        len(shapes[i]) != 4 for i in (*op.ins, *op.outs)
    ):
        return False
    if isinstance(op, Convolution) and (op.groups != 1 or op.weight.dtype != dtype):
        return False
    return all(c.ndim in (0, 4) and c.dtype == dtype for c in _constants(op))


def _constants(op: Op) -> list[Tensor]:
    """What scales the terms of an op at its output, (N or 1, C, H, W) or scalars; 1 for a convolution."""
    if isinstance(op, Convolution):
        return [op.weight.new_ones(())]
    assert isinstance(op, Scale | Combine)
    given = [op.c] if isinstance(op, Scale) else op.cs
    like = next((c for c in given if isinstance(c, Tensor)), torch.empty(0))
    return [c if isinstance(c, Tensor) else like.new_tensor(c) for c in given]


def _of_sample(c: Tensor, sample: int) -> Tensor:
    return c if c.ndim == 0 else c[sample if len(c) > 1 else 0]


def _passing(maker: Op | None, sample: int) -> Tensor | None:
    """(C, H, W): where anything passes through what an op writes; None where that is not known."""
    if not isinstance(maker, Scale | Combine):
        return None
    constants = _constants(maker)
    if any(c.ndim != 4 for c in constants):
        return None
    parts = torch.broadcast_tensors(*[_of_sample(c, sample) != 0 for c in constants])
    return torch.stack(parts).any(0)


def _dense_cost(op: Op, shapes: Shapes) -> float:
    """Multiplications of an op on whole images, for one vector and one input."""
    values = math.prod(shapes[op.outs[0]][1:])
    if isinstance(op, Convolution):
        return values * op.weight[0].numel()
    return values * PASS * len(op.ins)


def _scaled(ops: Sequence[Op], top: int) -> dict[int, Convolution]:
    """Convolutions that only one product or sum reads, by what they write: its constant scales their
    output."""
    readers: dict[int, list[Op]] = {}
    for op in ops:
        for i in op.ins:
            readers.setdefault(i, []).append(op)
    convolutions = {op.outs[0]: op for op in ops if isinstance(op, Convolution) and op.outs[0] != top}
    return {
        out: op
        for out, op in convolutions.items()
        if [isinstance(reader, Convolution) for reader in readers[out]] == [False]
    }
