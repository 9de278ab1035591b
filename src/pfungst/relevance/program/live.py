"""The program and the transposed one for many vectors, on live units only.

A unit (channel and position of an image) that a ReLU switches off at the explained input passes nothing on,
whatever the vector: in a ReLU network a third to nine tenths of all units. The vectors share the input and
so its dead units. A cotangent or tangent is therefore kept as a matrix of live units × vectors, sorted by
position, and a convolution becomes one matrix product for each position and row of taps, of the weights
between live units only. That is exact, and pays from some hundred vectors on, over which the selection of
weights is amortised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from pfungst.relevance.program.ops import Combine, Op, Scale
from pfungst.relevance.program.units import LINE, PASS, Link, Reach, Taps, Units
from pfungst.relevance.program.windows import Convolution

MANY = 128  # cotangents from which live units pay
SOME = 64  # tangents from which they may pay; costs decide
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
        scaled = _scaled(ops, top)
        terms: dict[int, list[_Term]] = {}
        for op in ops:
            if (out := op.outs[0]) in scaled:
                continue
            given = [
                (i, _of_sample(c, sample).to(dtype).expand(*shapes[out][1:]))
                for i, c in zip(op.ins, _constants(op), strict=True)
            ]
            convs = [op if isinstance(op, Convolution) else scaled.get(i) for i, _ in given]
            terms[out] = _joined(
                _Term(i, c) if conv is None else _Term(conv.ins[0], c, [conv])
                for (i, c), conv in zip(given, convs, strict=True)
            )
        passing = _alive(terms, bottom, top, live, shapes)
        self.nodes = {number: Node(Units(mask)) for number, mask in passing.items()}
        for value, parts in terms.items():
            node = self.nodes[value]
            for term in sorted(parts, key=lambda term: len(term.convs)):  # products add at no cost
                units, c = self.nodes[term.source].units, term.c
                edge: Link | Taps = Link(node.units, units, c)
                if term.convs:
                    edge = Taps(node.units, units, term.convs, c, term.which)
                node.edges.append((edge, term.source))

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
        grads = {self.top: self.nodes[self.top].units.gather([g])}
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

    def forward(self, t: Tensor, reach: Callable[[int], Reach | None]) -> tuple[Units, Tensor]:
        """Tangents (L, M) of live units of the bottom value → live units of the top value and their tangents
        (L', M).

        Args:
            reach: of the vectors in the value of a number; None where that is not known.
        """
        last = {source: number for number, node in self.nodes.items() for _, source in node.edges}
        tangents, spare = {self.bottom: t}, list[Tensor]()
        for number, node in self.nodes.items():
            if number == self.bottom:
                continue
            out, seen = _matrix(spare, t, len(node.units)), reach(number)
            ends = node.units.start[:: node.units.shape[2]]
            for (low, high), (begin, end) in zip(pairwise(ends), seen or (), strict=seen is not None):
                out[low:high, :begin] = 0
                out[low:high, end:] = 0
            for k, (edge, source) in enumerate(node.edges):
                edge.forward(tangents[source], out, k == 0, seen)
            done = [tangents.pop(s) for s in {s for _, s in node.edges if last[s] == number}]
            spare += [d if d._base is None else d._base for d in done]
            tangents[number] = out
        return self.nodes[self.top].units, tangents[self.top]


@dataclass
class _Term:
    """Of a value: c · source, or c · a convolution of it, `which` of several for each unit (C, H, W)."""

    source: int
    c: Tensor
    convs: list[Convolution] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.which = torch.zeros_like(self.c, dtype=torch.long)

    def takes(self, other: _Term) -> bool:
        """Take over another term of convolutions alike where no unit needs both: the two of a rule that
        treats positive and negative outputs differently."""
        if not (
            self.source == other.source
            and self.convs
            and other.convs
            and self.convs[0].geometry == other.convs[0].geometry
        ):
            return False
        mine, theirs = self.c != 0, other.c != 0
        if bool((mine & theirs).any()):
            return False
        self.which = torch.where(theirs, len(self.convs), self.which)
        self.c = torch.where(theirs, other.c, self.c)
        self.convs = [*self.convs, *other.convs]
        return True


def _joined(terms: Iterable[_Term]) -> list[_Term]:
    found: list[_Term] = []
    for term in terms:
        if not any(known.takes(term) for known in found):
            found.append(term)
    return found


def _alive(
    terms: dict[int, list[_Term]],
    bottom: int,
    top: int,
    live: Tensor | None,
    shapes: Shapes,
) -> dict[int, Tensor]:
    """Units (C, H, W) of each value through which anything passes: from below, and on to what reads it.

    Args:
        terms: of each value in the order of execution.
        live: of the bottom value, all if None.
    """
    masks = {i: torch.zeros(shapes[i][1:], dtype=torch.bool) for i in (bottom, *terms)}
    masks[bottom] |= True if live is None else live
    for out, parts in terms.items():
        for term in parts:
            masks[out] |= term.c != 0 if term.convs else (term.c != 0) & masks[term.source]
    read = {i: torch.zeros_like(mask) for i, mask in masks.items()}
    read[top] |= True
    for out, parts in reversed(terms.items()):
        masks[out] &= read[out]
        for term in parts:
            read[term.source] |= True if term.convs else (term.c != 0) & masks[out]
    masks[bottom] &= read[bottom]
    return masks


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

    def forward(
        self,
        pieces: Iterable[Tensor],
        most: int,
        windows: Windows | None = None,
    ) -> Iterator[Tensor]:
        """(m, N, C, H, W) → pieces (m', N, C', H', W') of the top value, in the same order.

        Args:
            pieces: tangents of the bottom value.
            most: how many vectors to run at once.
            windows: all of them, in place of pieces.
        """
        if windows is not None:
            inputs, count = windows.values.shape[1], windows.sources.shape[1]
            collect = lambda units, n: units.collect(windows.values[:, n], windows.sources)
            yield from self._passed(inputs, count, collect, windows.reach)
            return
        for group in _groups(pieces, most):
            gather = lambda units, n, group=group: units.gather(piece[:, n] for piece in group)
            count = sum(map(len, group))
            yield from self._passed(group[0].shape[1], count, gather, lambda value: None)

    def _passed(
        self,
        inputs: int,
        count: int,
        take: Callable[[Units, int], Tensor],
        reach: Callable[[int], Reach | None],
    ) -> Iterator[Tensor]:
        """What becomes of so many vectors, taken on units for each input."""
        found = []
        for n in range(inputs):
            program = self.program(n)
            found.append(program.forward(take(program.nodes[program.bottom].units, n), reach))
        for parts in zip(*(units.scatter(matrix, count) for units, matrix in found), strict=True):
            yield torch.stack(parts, 1) if len(parts) > 1 else parts[0][:, None]


@dataclass(frozen=True)
class Windows:
    """Many tangents of a value, each of which is one of few at each position.

    Args:
        values: (G, N, C, H, W) the few.
        sources: (H · W, M) which of them, G for zero.
        reach: number of a value → of the many there, in each row of the image.
    """

    values: Tensor
    sources: Tensor
    reach: Callable[[int], Reach | None]


def _matrix(spare: list[Tensor], like: Tensor, rows: int) -> Tensor:
    """So many rows as those of another, in memory that is no longer needed where there is enough: fresh pages
    cost as much as the values that are written on them."""
    fitting = [k for k, t in enumerate(spare) if len(t) >= rows]
    if fitting:
        return spare.pop(min(fitting, key=lambda k: len(spare[k])))[:rows]
    return like.new_empty(rows, like.shape[1])


def _groups(pieces: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Consecutive pieces of no more than so many rows together; a longer piece stands alone."""
    group: list[Tensor] = []
    for piece in pieces:
        if group and sum(map(len, group)) + len(piece) > most:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def span_of_many(
    ops: Sequence[Op], cuts: Mapping[int, int], shapes: Shapes, dtype: torch.dtype, part: range, vectors: int
) -> Span | None:
    """The span within a part of the ops that saves most for so many vectors, None where none saves
    anything."""
    best, most = None, 0.0
    for start, stop in _runs(ops, cuts, shapes, dtype):
        start, stop = max(start, part.start), min(stop, part.stop)
        if start < stop and start in cuts and stop in cuts:
            span = Span(ops, cuts, shapes, dtype, start, stop)
            if span.saved(vectors) > most:
                best, most = span, span.saved(vectors)
    return best


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
