"""The transposed program of many vectors on live units only.

A unit (channel and position of an image) that a ReLU switches off at the explained input passes nothing on, whatever the
cotangent: in a ReLU network a third to nine tenths of all units. The vectors share the input and so its dead
units. A cotangent is therefore kept as a matrix of live units × vectors, sorted by position, and a convolution becomes
one matrix product for each position and row of taps, of the weights between live units only. That is exact, and pays
from some hundred vectors on, over which the selection of weights is amortised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.program.kernels import Combine, Convolution, Op, Scale

MANY = 128  # vectors from which live units pay
MOST = 1024  # vectors at a time, from which on selection costs little
_ROWS = 4096  # of a matrix that is combined with another at a time
LINE = 16  # values in a line of the cache: products are fastest for multiples of it

# Costs in multiplications of a matrix product, from timings on two cores.
_CALL = 2.4e6  # of one more matrix product
_SELECT = 52  # of a selected weight
_PASS = 60  # of a value that is scaled or added
_TURN = 160  # of a value turned from images into units or back
_WINOGRAD = 0.7  # of a product in a 3 × 3 convolution of stride 1
_CAUTION = 1.3  # by which the costs on live units are taken to be too low

Shapes = Mapping[int, tuple[int, ...]]


class Units:
    """Live units of an image of shape (C, H, W), by position and then channel.

    Attributes:
        index: (L,) position · C + channel.
        channel, column: (L,) of each unit.
        start: first unit of each position, row by row, and L.
    """

    def __init__(self, live: Tensor) -> None:
        """`live` (C, H, W): whether anything passes through."""
        channels, height, width = self.shape = tuple(live.shape)
        self.index = live.permute(1, 2, 0).flatten().nonzero()[:, 0]
        self.channel = self.index % channels
        self.column = self.index // channels % width
        ends = torch.arange(height * width + 1) * channels
        self.start: list[int] = torch.searchsorted(self.index, ends).tolist()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def counts(self) -> Tensor:
        """(H, W) live units of each position."""
        return torch.tensor(self.start).diff().view(self.shape[1:]).double()

    def select(self, c: Tensor) -> Tensor:
        """Values (L, 1) of a constant (C, H, W)."""
        return c.permute(1, 2, 0).flatten()[self.index, None]

    def rows_in(self, other: Units) -> tuple[Tensor, Tensor]:
        """For each unit its row in `other` (0 where it has none), and whether it has one."""
        place = torch.searchsorted(other.index, self.index)
        known = torch.cat([other.index, other.index.new_tensor([-1])])
        found = known[place] == self.index
        return torch.where(found, place, 0), found

    def gather(self, images: Tensor) -> Tensor:
        """Images (M, C, H, W) → (L, M'), filled up with zeros to a multiple of `LINE`."""
        g = images.permute(2, 3, 1, 0).reshape(-1, len(images)).index_select(0, self.index)
        return F.pad(g, (0, -len(images) % LINE))

    def scatter(self, g: Tensor, vectors: int) -> Iterator[Tensor]:
        """(L, M') → pieces of M images (M, C, H, W), channels last in memory, zero where nothing is live."""
        channels, height, width = self.shape
        rows = torch.full((channels * height * width,), len(self))
        rows[self.index] = torch.arange(len(self))
        for part in g[:, :vectors].split(LINE, 1):
            part = torch.cat([part, part.new_zeros(1, part.shape[1])])
            images = part.index_select(0, rows).T.contiguous()
            yield images.view(-1, height, width, channels).permute(0, 3, 1, 2)


class Link:
    """A term of a sum, or a product with a constant: the same units on both sides.

    Args:
        source: units whose cotangent is known, at the output.
        target: units of the input.
        c: the constant (C, H, W).
    """

    def __init__(self, source: Units, target: Units, c: Tensor) -> None:
        self.rows, found = target.rows_in(source)
        self.c = target.select(c) * found[:, None]
        self.empty = len(source) == 0

    def cost(self, vectors: int) -> float:
        """Of one of so many vectors."""
        return _PASS * len(self.c)

    def run(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write, if it is the first, or add to `out` (L', M) what the cotangent (L, M) of the source makes of it."""
        if self.empty:
            if first:
                out.zero_()
            return
        for a in range(0, len(out), _ROWS):
            part, c = g.index_select(0, self.rows[a : a + _ROWS]), self.c[a : a + _ROWS]
            if first:
                torch.mul(part, c, out=out[a : a + _ROWS])
            else:
                out[a : a + _ROWS].addcmul_(part, c)


class Taps:
    """A convolution whose output is multiplied by a constant.

    Args:
        source: units whose cotangent is known, at the output.
        target: units of the input.
        conv: the convolution, in one group.
        c: the constant (O, H', W').
    """

    def __init__(self, source: Units, target: Units, conv: Convolution, c: Tensor) -> None:
        self.source, self.target, self.conv = source, target, conv
        self.c = source.select(c)
        outs, _, *self.kernel = conv.weight.shape
        self.outs = outs
        self.weight = conv.taps
        # Taps of one row of the kernel see neighbours, which lie one after the other.
        self.joined = conv.stride[1] == 1 and conv.dilation[1] == 1
        self.row = source.channel - source.column * outs if self.joined else source.channel

    def cost(self, vectors: int) -> float:
        """Of one of so many vectors."""
        conv, taps = self.conv, self.kernel[0] * self.kernel[1]
        seen = F.conv2d(
            self.target.counts[None, None],
            torch.ones(1, 1, *self.kernel, dtype=torch.float64),
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
        )[0, 0]
        products = float((seen * self.source.counts).sum())
        selected = products + len(self.source) * taps * self.weight.shape[1]
        places = self.target.shape[1] * self.target.shape[2]
        calls = places * (self.kernel[0] if self.joined else taps / conv.stride[1]) / conv.stride[0]
        return products + (selected * _SELECT + calls * _CALL) / vectors

    def _blocks(self, row: int, column: int) -> Iterator[tuple[int, int, int]]:
        """Source units that see a position of the target: first, last + 1, and offset of their rows of weights."""
        (_, height, width), start = self.source.shape, self.source.start
        (sh, sw), (ph, pw), (dh, dw) = self.conv.stride, self.conv.padding, self.conv.dilation
        for a in range(self.kernel[0]):
            y, between = divmod(row + ph - a * dh, sh)
            if between or not 0 <= y < height:
                continue
            if self.joined:
                low, high = max(0, column + pw - self.kernel[1] + 1), min(width - 1, column + pw)
                if low <= high:
                    offset = (a * self.kernel[1] + column + pw) * self.outs
                    yield start[y * width + low], start[y * width + high + 1], offset
                continue
            for b in range(self.kernel[1]):
                x, between = divmod(column + pw - b * dw, sw)
                if not between and 0 <= x < width:
                    place = y * width + x
                    yield start[place], start[place + 1], (a * self.kernel[1] + b) * self.outs

    def run(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write, if it is the first, or add to `out` (L', M) what the cotangent (L, M) of the source makes of it."""
        width = self.target.shape[2]
        for place, (low, high) in enumerate(pairwise(self.target.start)):
            if low == high:
                continue
            into, channels, fresh = out[low:high], self.target.channel[low:high], first
            for a, b, offset in self._blocks(*divmod(place, width)):
                if a == b:
                    continue
                weight = self.weight.index_select(0, self.row[a:b] + offset)
                weight = weight.index_select(1, channels).mul_(self.c[a:b])
                if fresh:
                    torch.mm(weight.T, g[a:b], out=into)
                    fresh = False
                else:
                    into.addmm_(weight.T, g[a:b])
            if fresh:
                into.zero_()


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
        """The part of the program that reads this value, which must be one through which everything passes."""
        part = copy(self)
        part.bottom = value
        numbers = list(self.nodes)
        part.nodes = {i: self.nodes[i] for i in numbers[numbers.index(value) :]}
        return part

    def reverse(self, g: Tensor) -> tuple[Units, Tensor]:
        """Cotangents of the top value (M, C, H, W) → live units of the bottom value and their cotangents (L, M')."""
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
        """That of one of the inputs; only the first one's is kept, as indices take memory and are made quickly."""
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
        """How many vectors fit into so many bytes: a cotangent, what it is made of and a copy, and results that wait."""
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
        per_value = op.weight[0].numel()
        fast = op.same and tuple(op.weight.shape[2:]) == (3, 3)
        return values * per_value * (_WINOGRAD if fast else 1)
    return values * _PASS * len(op.ins)


def _scaled(ops: Sequence[Op], top: int) -> dict[int, Convolution]:
    """Convolutions that only one product or sum reads, by what they write: its constant scales their output."""
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
