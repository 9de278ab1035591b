"""A rewritten network as a program of linear maps, run forward or backward on many vectors at once.

The program is read off the autograd graph of one rewritten forward pass. Convolutions, products with
constants, ReLU masks, sums and poolings have their own batched kernels; every other node is run by its own
derivative under ``vmap`` (backward) or by the derivative of that derivative (forward), so that the program is
exact whatever the network contains. Vectors are tensors (M, N, ...): M of them for each of N inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.program.kernels import (
    Box,
    Combine,
    Convolution,
    Generic,
    GlobalMean,
    MaxPool,
    Op,
    Part,
    Pending,
    Reshape,
    Scale,
    Spread,
    dense,
    layout,
)
from pfungst.relevance.program.live import LINE, MANY, Span, best_span


@dataclass(frozen=True)
class Segment:
    """Ops `start` … `stop`, which `rows` vectors go through at once (0: all); on live units, if there is a span."""

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
        self.ops: list[Op] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.kinds: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}
        self.ids: dict[tuple[Any, int], int] = {}
        self.streams: list[int | None] = [None] * len(streams)
        self.device = output.device
        self._keep = output
        self._cuts: dict[int, int] | None = None
        self._span: tuple[Span | None] | None = None  # in a tuple once it has been looked for
        leaves = {id(s): i for i, s in enumerate(streams)}
        order = _reachable(output.grad_fn, leaves)
        for node in order:
            self._add(node, order, leaves)
        self.output = self._value(output.grad_fn, output.output_nr)
        self.shapes[self.output] = tuple(output.shape)
        self._fuse()

    # -- construction -----------------------------------------------------------------------------

    def _value(self, node: Any, nr: int) -> int:
        return self.ids.setdefault((node, nr), len(self.ids))

    def _add(self, node: Any, order: dict[Any, None], leaves: dict[int, int]) -> None:
        if hasattr(node, "variable"):  # a leaf
            i = leaves[id(node.variable)]
            self.streams[i] = self._value(node, 0)
            self.shapes[self._value(node, 0)] = tuple(node.variable.shape)
            self.kinds[self._value(node, 0)] = (tuple(node.variable.shape), node.variable.dtype)
            return
        slots = [i for i, (n, _) in enumerate(node.next_functions) if n in order]
        ins = [self._value(*node.next_functions[i]) for i in slots]
        for i, m in enumerate(node._input_metadata):
            self.shapes[self._value(node, i)] = tuple(m.shape)
            self.kinds[self._value(node, i)] = (tuple(m.shape), m.dtype)
        op = None
        if len(node._input_metadata) == 1 or node.name() == "NativeBatchNormBackward0":
            try:
                op = self._known(node, slots, ins, self._value(node, 0))
            except (AttributeError, NotImplementedError, RuntimeError):
                op = None
        if op is None:
            numbers = list(range(len(node._input_metadata)))
            generic = Generic(ins, [self._value(node, i) for i in numbers], node, slots, self.device)
            generic.numbers = numbers
            generic.sources = [self.kinds[i] for i in ins]
            op = generic
        self.ops.append(op)

    def _known(self, node: Any, slots: list[int], ins: list[int], out: int) -> Op | None:
        name = node.name()
        shape, before = self.shapes[out], [self.shapes[i] for i in ins]
        same = all(b == shape for b in before)
        if name == "AttachBackward" and same:
            cs = node.saved_tensors
            # edges of each term: its map and its constant, which has none where it is 1
            terms = [c for c in cs for _ in range(1 if c is None else 2)]
            if len(node.next_functions) == len(terms):
                return Combine(
                    ins,
                    [out],
                    [1.0 if c is None else layout(c.detach()) for c in map(terms.__getitem__, slots)],
                )
        if any(self.kinds[i][1].is_complex for i in (*ins, out)):
            return None  # the products below do not conjugate
        if name == "ConvolutionBackward0" and slots == [0] and len(shape) == 4 and not node._saved_transposed:
            return Convolution(ins, [out], node)
        if name == "ReluBackward0":
            mask = node._saved_result > 0
            return Scale(ins, [out], layout(mask.to(node._saved_result.dtype)))
        if name == "MulBackward0" and len(ins) == 1 and same:
            c = node._saved_other if slots == [0] else node._saved_self
            if isinstance(c, Tensor):  # a copy of a Python number is a tensor of its own type
                return Scale(ins, [out], layout(c.detach() if c.ndim else c.detach().clone()))
        if name == "NativeBatchNormBackward0" and slots == [0] and not node._saved_training:
            c = torch.rsqrt(node._saved_running_var + node._saved_eps)
            c = c if node._saved_weight is None else c * node._saved_weight.detach()
            return Scale(ins, [out], c.to(self.kinds[out][1]).reshape(1, -1, *[1] * (len(shape) - 2)))
        if name == "AddBackward0" and same and node._saved_alpha == 1:
            return Combine(ins, [out], [1.0] * len(ins))
        if name == "SubBackward0" and same and node._saved_alpha == 1:
            return Combine(ins, [out], [1.0 if i == 0 else -1.0 for i in slots])
        if name == "ExpandBackward0" and len(shape) == 4 and before[0] == (shape[0], 1, *shape[2:]):
            return Spread(ins, [out], shape[1])
        if (
            name in ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
            and shape[0] == before[0][0]
        ):
            return Reshape(ins, [out], before[0], shape)
        if name == "MaxPool2DWithIndicesBackward0":
            return MaxPool(ins, [out], node)
        if name == "MeanBackward1" and len(before[0]) == 4:
            dims = sorted(d % 4 if d < 4 else d - 2**64 + 4 for d in node._saved_dim)
            if dims == [2, 3]:
                return GlobalMean(ins, [out], before[0], node._saved_keepdim)
        return None

    def _fuse(self) -> None:
        """Merge products with constants into the product or sum before or after them: mask · c is one constant."""
        readers: dict[int, int] = {}
        for op in self.ops:
            for i in op.ins:
                readers[i] = readers.get(i, 0) + 1
        made: dict[int, Op] = {}
        ops: list[Op] = []

        def maker(i: int) -> Op | None:
            return made.get(i) if readers[i] == 1 and i != self.output else None

        for op in self.ops:
            if isinstance(op, Combine) and len(op.ins) == 1 and isinstance(op.cs[0], Tensor):
                op = Scale(op.ins, op.outs, op.cs[0])
            before = maker(op.ins[0]) if op.ins else None
            if isinstance(op, Scale) and isinstance(before, Scale | Combine):
                merged: Op
                if isinstance(before, Scale):
                    merged = Scale(before.ins, op.outs, _product(before.c, op.c))
                else:
                    c = op.c
                    merged = Combine(before.ins, op.outs, [_times(b, c) for b in before.cs])
                ops[ops.index(before)] = merged
                op = merged
            else:
                if isinstance(op, Combine):
                    for j, i in enumerate(op.ins):
                        source = maker(i)
                        if isinstance(source, Scale):
                            op.ins[j], op.cs[j] = source.ins[0], _times(source.c, op.cs[j])
                            ops.remove(source)
                ops.append(op)
            for o in op.outs:
                made[o] = op
        self.ops = ops

    # -- execution --------------------------------------------------------------------------------

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
        # The output is no image and the first value no result of an op, so there are ops on both sides of a span.
        ends = Segment(span.stop, end, rows), Segment(span.start, span.stop, rows, span)
        return [*ends, *self._cached(limit // itemsize, span.start)]

    def _cached(self, values: int, end: int) -> list[Segment]:
        """Segments of the ops up to `end` whose largest value has so many elements for all vectors at once."""
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
        for index in range(start, stop):
            op = self.ops[index]
            outs = op.forward([values.get(i) for i in op.ins])
            for i in op.ins:
                if last[i] <= index:
                    values.pop(i, None)
            for o, t in zip(op.outs, outs, strict=True):
                if t is not None:
                    values[o] = t
        return values.get(self.output if stop == len(self.ops) else self.cuts()[stop])

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


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a · b, where 0 · inf stays zero: where one factor vanishes the product does."""
    return layout(torch.where((a == 0) | (b == 0), 0.0, a * b))


def _times(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _product(a, b)
    if isinstance(a, Tensor):
        return a if b == 1 else a * b
    return b if a == 1 else a * b


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


def _reachable(root: Any, leaves: dict[int, int]) -> dict[Any, None]:
    """Nodes between the root and the leaves, leaves first."""
    order: dict[Any, None] = {}
    useful: dict[Any, bool] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            reached = hasattr(node, "variable") and id(node.variable) in leaves
            useful[node] = reached or any(useful.get(n, False) for n, _ in node.next_functions)
            if useful[node]:
                order[node] = None
        elif node not in useful:
            useful[node] = False
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None and n not in useful]
    return order
