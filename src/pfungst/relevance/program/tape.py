"""A rewritten network as a program of linear maps, run forward or backward on many vectors at once.

Convolutions, products with constants, ReLU masks, sums and poolings have their own batched kernels; every
other node is run by its own derivative under ``vmap`` (backward) or by the derivative of that derivative
(forward), so that the program is exact whatever the network contains. Vectors are tensors (M, N, ...): M of
them for each of N inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pfungst.relevance.program.fuse import fuse
from pfungst.relevance.program.live import MANY, SOME, Span, Windows, best_span, span_of_many
from pfungst.relevance.program.ops import Box
from pfungst.relevance.program.parts import Part, Pending, dense
from pfungst.relevance.program.read import Graph
from pfungst.relevance.program.units import LINE


@dataclass(frozen=True)
class Segment:
    """Ops `start` … `stop`, which `rows` vectors go through at once (0: all); on live units, if there is a
    span."""

    start: int
    stop: int
    rows: int
    span: Span | None = None


class Tape:
    """The linear program from the input streams to the output of a rewritten forward pass.

    Args:
        output: (N, K) with its graph.
        streams: leaves, (N, *sample) each.
    """

    def __init__(self, output: Tensor, streams: list[Tensor]) -> None:
        graph = Graph(output, streams)
        self.shapes, self.streams, self.output = graph.shapes, graph.streams, graph.output
        self.ops = fuse(graph.ops, graph.output)
        self.device = output.device
        self._keep = output
        self._cuts: dict[int, int] | None = None
        self._span: tuple[Span | None] | None = None  # in a tuple once it has been looked for
        self._found: tuple[tuple[int, int, int], Span | None] | None = None  # that of tangents, the last one

    def reverse(
        self, cotangents: Tensor, limit: int | None = None, room: int = 0
    ) -> Iterator[list[Tensor | None]]:
        """Modified gradients of the streams, in pieces: (M, N, K) → (m, N, *sample) each, Σ m = M.

        Args:
            cotangents: (M, N, K).
            limit: bytes that one value may take; the vectors are split further where values grow, so that
                late layers see many vectors at once and early ones stay in the cache.
            room: bytes that cotangents on live units may take; 0 does without.

        Yields:
            A gradient for each stream, None where there is none; pieces are in the order of `cotangents`.
        """
        segments = self._segments(limit, room, cotangents)
        yield from self._descend(segments, 0, cotangents)

    def _descend(
        self, segments: list[Segment], level: int, cotangents: Tensor
    ) -> Iterator[list[Tensor | None]]:
        segment = segments[level]
        last = level + 1 == len(segments)
        for g in cotangents.split(segment.rows or len(cotangents)):
            if segment.span is None:
                pieces: Iterable[list[Tensor | None]] = [self._reverse(g, segment.start, segment.stop)]
            else:
                pieces = ([piece] for piece in segment.span.reverse(g))
            for grads in pieces:
                if last:
                    yield grads
                elif grads[0] is None:
                    yield [None] * len(self.streams)
                else:
                    yield from self._descend(segments, level + 1, grads[0])

    def span(self, room: int) -> Span | None:
        """The ops that many vectors go through on live units, which may take so many bytes."""
        if self._span is None:
            on_cpu = self.device.type == "cpu"
            dtype = self._keep.dtype
            self._span = (best_span(self.ops, self.cuts(), self.shapes, dtype, room) if on_cpu else None,)
        return self._span[0]

    def _segments(self, limit: int | None, room: int, cotangents: Tensor) -> list[Segment]:
        """Runs of ops, last first, cut where one value is live."""
        end, itemsize = len(self.ops), cotangents.element_size()
        if limit is None:
            return [Segment(0, end, 0)]
        span = self.span(room) if room and len(cotangents) >= MANY else None
        rows = 0
        if span is not None:
            rows = min(span.vectors(room), room // (itemsize * self.width(span.stop, end)))
        if span is None or rows < MANY:
            return self._cached(limit // itemsize, end)
        parts = -(-len(cotangents) // rows)
        rows = min(rows, -(-len(cotangents) // (parts * LINE)) * LINE)
        # The output is no image and the first value no result of an op, so there are ops on both sides of a
        # span.
        ends = Segment(span.stop, end, rows), Segment(span.start, span.stop, rows, span)
        return [*ends, *self._cached(limit // itemsize, span.start)]

    def _cached(self, values: int, end: int) -> list[Segment]:
        """Segments of the ops up to `end` whose largest value has so many elements for all vectors at
        once."""
        found: list[Segment] = []
        for start in sorted((at for at in {0, *self.cuts()} if at < end), reverse=True):
            stop = found[-1].start if found else end
            fit = max(1, values // self.width(start, stop))
            rows = 1 << (fit.bit_length() - 1)
            if found and rows >= found[-1].rows:
                found[-1] = Segment(start, found[-1].stop, found[-1].rows)
            else:
                found.append(Segment(start, stop, rows))
        return found

    def _reverse(self, cotangents: Tensor, start: int, stop: int) -> list[Tensor | None]:
        """Transpose of ops `start` … `stop`: to the streams, or to the one value that is live at `start`."""
        top = self.output if stop == len(self.ops) else self.cuts()[stop]
        grads: dict[int, tuple[Part, bool]] = {top: (cotangents, False)}
        for op in reversed(self.ops[start:stop]):
            have = [grads.pop(o, None) for o in op.outs]
            if all(h is None for h in have):
                continue
            owned = all(h is not None and h[1] for h in have)
            parts = op.reverse([None if h is None else dense(h[0]) for h in have], owned)
            have.clear()
            for i, (g, mine) in zip(op.ins, parts, strict=True):
                if g is not None:
                    grads[i] = _sum(grads[i], (g, mine)) if i in grads else (g, mine)
        ids: list[int | None] = self.streams if start == 0 else [self.cuts()[start]]
        return [None if s is None or s not in grads else dense(grads[s][0]) for s in ids]

    def forward(
        self, tangents: Sequence[Tensor | None], start: int = 0, stop: int | None = None
    ) -> Tensor | None:
        """Ops `start` … `stop` on tangents of the streams (or of the one value that is live at `start`)."""
        stop = len(self.ops) if stop is None else stop
        ids: list[int | None] = self.streams if start == 0 else [self.cuts()[start]]
        values = {i: t for i, t in zip(ids, tangents, strict=True) if i is not None and t is not None}
        last = self._last_use()
        mine: set[int] = set()  # values in memory of their own, which their last reader may overwrite
        for index in range(start, stop):
            op = self.ops[index]
            given = [values.get(i) for i in op.ins]
            owned = len(set(op.ins)) == len(op.ins) and all(i in mine and last[i] <= index for i in op.ins)
            outs = op.forward(given, owned)
            for i, g in zip(op.ins, given, strict=True):
                if not op.fresh or any(t is g for t in outs):
                    mine.discard(i)  # the result may share its memory
                if last[i] <= index:
                    values.pop(i, None)
            for o, t in zip(op.outs, outs, strict=True):
                if t is not None:
                    values[o] = t
                    if op.fresh and (owned or all(t is not g for g in given)):
                        mine.add(o)
        return values.get(self.output if stop == len(self.ops) else self.cuts()[stop])

    def forward_many(
        self,
        pieces: Iterable[Sequence[Tensor | None]],
        count: int,
        start: int,
        stop: int,
        room: int,
        windows: Callable[[], Windows] | None = None,
    ) -> Iterator[Tensor]:
        """Ops `start` … `stop` on `count` tangents in pieces, on live units where that pays; see
        :meth:`forward`.

        Args:
            pieces: (m, N, …) for each stream, or the one value that is live at `start`; Σ m = count.
            room: bytes that tangents on live units may take.
            windows: makes all pieces in another form, where there is one.
        """
        span = self.span_of(count, start, stop, room)
        rows = span.vectors(room) if span is not None else 0
        if span is None:
            found: Iterable[Tensor | None] = (self.forward(p, start, stop) for p in pieces)
        else:
            known = (p[0] if span.start == start else self.forward(p, start, span.start) for p in pieces)
            whole = windows() if windows is not None and span.start == start and count <= rows else None
            passed = span.forward((t for t in known if t is not None), -(-count // -(-count // rows)), whole)
            found = (t if span.stop == stop else self.forward([t], span.stop, stop) for t in passed)
        for t in found:
            assert t is not None
            yield t

    def span_of(self, count: int, start: int, stop: int, room: int) -> Span | None:
        """Where so many tangents go through ops `start` … `stop` on live units that may take so many
        bytes."""
        if count < SOME or self.device.type != "cpu":
            return None
        if self._found is None or self._found[0] != (count, start, stop):
            part, dtype = range(start, stop), self._keep.dtype
            span = span_of_many(self.ops, self.cuts(), self.shapes, dtype, part, count)
            self._found = (count, start, stop), span
        span = self._found[1]
        return span if span is not None and span.vectors(room) >= SOME else None

    def _last_use(self) -> dict[int, int]:
        return {i: index for index, op in enumerate(self.ops) for i in op.ins}

    def cuts(self) -> dict[int, int]:
        """Positions in the program where exactly one value is live, and that value."""
        if self._cuts is None:
            last = self._last_use()
            live = {s for s in self.streams if s is not None and s in last}
            self._cuts = {}
            for index, op in enumerate(self.ops):
                live -= {i for i in op.ins if last[i] <= index}
                live |= {o for o in op.outs if o in last or o == self.output}
                if len(live) == 1:
                    (self._cuts[index + 1],) = live
        return self._cuts

    def boxes(self, box: Box) -> dict[int, Box | None]:
        """Support of every value when the streams are zero outside `box`; None where it is unknown."""
        found: dict[int, Box | None] = {s: box for s in self.streams if s is not None}
        for op in self.ops:
            inside = [found.get(i) for i in op.ins]
            for o in op.outs:
                shape = self.shapes[o]
                known = len(shape) == 4 and all(b is not None for b in inside)
                found[o] = op.box(inside, shape) if known else None
        return found

    def width(self, start: int, stop: int) -> int:
        """Elements of the largest value that ops `start` … `stop` write, for one vector."""
        sizes = [math.prod(self.shapes[v]) for op in self.ops[start:stop] for v in (*op.outs, *op.ins)]
        return max(sizes, default=1)


def _sum(a: tuple[Part, bool], b: tuple[Part, bool]) -> tuple[Tensor, bool]:
    """Sum of two cotangents, in the memory of one that may be overwritten."""
    if isinstance(a[0], Pending) or not a[1]:
        a, b = b, a
    first, second = a[0], b[0]
    if isinstance(first, Pending):  # neither may be overwritten, or both are pending
        first, a = first.dense(), (first, True)
    if not a[1]:
        return (second.onto(first.clone()) if isinstance(second, Pending) else first + second), True
    return (second.onto(first) if isinstance(second, Pending) else first.add_(second)), True
