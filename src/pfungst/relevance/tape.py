"""A rewritten network as a program of linear maps, run forward or backward on many vectors at once.

The program is read off the autograd graph of one rewritten forward pass. Convolutions, products with
constants, ReLU masks, sums and poolings have their own batched kernels; every other node is run by its own
derivative under ``vmap`` (backward) or by the derivative of that derivative (forward), so that the program is
exact whatever the network contains. Vectors are tensors (M, N, ...): M of them for each of N inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]  # first and last row, first and last column, of an image's support


def _fold(t: Tensor) -> Tensor:
    return t.flatten(0, 1)


class Op:
    """One linear map: `ins` and `outs` number the values that it reads and writes."""

    def __init__(self, ins: list[int], outs: list[int]) -> None:
        self.ins, self.outs = ins, outs

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        """Transposed map: (M, N, *out) of each output → of each input, with whether it may be overwritten."""
        raise NotImplementedError

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        """The map itself: (M, N, *in) of each input → of each output."""
        raise NotImplementedError

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        """Support of the output from the supports of the inputs; None where it is unknown."""
        return None


class Scale(Op):
    """Product with a constant."""

    def __init__(self, ins: list[int], outs: list[int], c: Tensor) -> None:
        super().__init__(ins, outs)
        self.c = c

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g.mul_(self.c) if owned and g.dtype == self.c.dtype else g * self.c, True)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t * self.c]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return boxes[0]


class Combine(Op):
    """Σ c · input: the sum of a residual block, the terms of a rule."""

    def __init__(self, ins: list[int], outs: list[int], cs: list[Tensor | float]) -> None:
        super().__init__(ins, outs)
        self.cs = cs

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g, False) if isinstance(c, float) and c == 1 else (g * c, True) for c in self.cs]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        total: Tensor | None = None
        owned = False
        for t, c in zip(tangents, self.cs, strict=True):
            if t is None:
                continue
            part = t if isinstance(c, float) and c == 1 else t * c
            if total is None:
                total, owned = part, part is not t
            elif owned:
                total.add_(part)
            else:
                total, owned = total + part, True
        return [total]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return _union(boxes)


def _union(boxes: Sequence[Box | None]) -> Box | None:
    if any(b is None for b in boxes):
        return None
    known = [b for b in boxes if b is not None]
    return (
        min(b[0] for b in known),
        max(b[1] for b in known),
        min(b[2] for b in known),
        max(b[3] for b in known),
    )


class Convolution(Op):
    """A 2-D convolution with constant weights."""

    def __init__(self, ins: list[int], outs: list[int], node: Any) -> None:
        super().__init__(ins, outs)
        self.weight = node._saved_weight.detach().contiguous(memory_format=torch.channels_last)
        self.shape = tuple(node._saved_input.shape[1:])
        self.stride, self.padding = list(node._saved_stride), list(node._saved_padding)
        self.dilation, self.groups = list(node._saved_dilation), node._saved_groups
        kernel = self.weight.shape[2:]
        self.same = (
            self.groups == 1
            and self.stride == [1, 1]
            and all(d * (k - 1) >= p for k, p, d in zip(kernel, self.padding, self.dilation, strict=True))
        )
        self.back = None
        if self.same:
            flipped = self.weight.flip(2, 3).transpose(0, 1)
            self.back = flipped.contiguous().contiguous(memory_format=torch.channels_last)
            self.back_padding = [
                d * (k - 1) - p for k, p, d in zip(kernel, self.padding, self.dilation, strict=True)
            ]

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        m, n = g.shape[:2]
        g = _fold(g)
        if self.back is not None:
            out = F.conv2d(g, self.back, None, 1, self.back_padding, self.dilation)
        else:
            like = g.new_empty(1).expand(len(g), *self.shape)
            out = torch.ops.aten.convolution_backward(
                g,
                like,
                self.weight,
                None,
                self.stride,
                self.padding,
                self.dilation,
                False,
                [0, 0],
                self.groups,
                [True, False, False],
            )[0]
        return [(out.unflatten(0, (m, n)), True)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        if t is None:
            return [None]
        m, n = t.shape[:2]
        t = _fold(t).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(t, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return [out.unflatten(0, (m, n))]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return _window(boxes[0], self.weight.shape[2:], self.stride, self.padding, self.dilation, shape)


def _window(
    box: Box | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Any,
    shape: Any,
) -> Box | None:
    """Outputs of a sliding window that see the box."""
    if box is None:
        return None
    out: list[int] = []
    for axis in (0, 1):
        reach = dilation[axis] * (kernel[axis] - 1)
        lo, hi = box[2 * axis] + pad[axis], box[2 * axis + 1] + pad[axis]
        first = max(0, -(-(lo - reach) // stride[axis]))
        last = min(shape[-2 + axis] - 1, hi // stride[axis])
        out += [first, max(last, first)]
    return (out[0], out[1], out[2], out[3])


class MaxPool(Op):
    """Max pooling at fixed winners, one mask per window position."""

    def __init__(self, ins: list[int], outs: list[int], node: Any) -> None:
        super().__init__(ins, outs)
        x, index = node._saved_self, node._saved_result1
        self.shape = tuple(x.shape[-2:])
        self.out = tuple(index.shape[-2:])
        pair = lambda v: list(v) * 2 if len(v) == 1 else list(v)
        self.kernel, self.padding = pair(node._saved_kernel_size), pair(node._saved_padding)
        self.stride = pair(node._saved_stride) if len(node._saved_stride) else self.kernel
        if any(d != 1 for d in node._saved_dilation):
            raise NotImplementedError
        oh = torch.arange(self.out[0], device=x.device)[:, None] * self.stride[0] - self.padding[0]
        ow = torch.arange(self.out[1], device=x.device)[None, :] * self.stride[1] - self.padding[1]
        row, col = index // self.shape[1] - oh, index % self.shape[1] - ow
        place = (row * self.kernel[1] + col).contiguous(memory_format=torch.channels_last)
        self.masks = [(place == k).to(x.dtype) for k in range(self.kernel[0] * self.kernel[1])]
        self.padded = [
            max((o - 1) * s + k, i + 2 * p)
            for o, s, k, i, p in zip(
                self.out, self.stride, self.kernel, self.shape, self.padding, strict=True
            )
        ]

    def _slices(self, k: int) -> tuple[slice, slice]:
        r, c = divmod(k, self.kernel[1])
        (sh, sw), (oh, ow) = self.stride, self.out
        return slice(r, r + (oh - 1) * sh + 1, sh), slice(c, c + (ow - 1) * sw + 1, sw)

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        m, n, channels = g.shape[:3]
        out = g.new_zeros(m * n, *self.padded, channels).permute(0, 3, 1, 2).unflatten(0, (m, n))
        for k, mask in enumerate(self.masks):
            r, c = self._slices(k)
            out[..., r, c] += g * mask
        (ph, pw), (h, w) = self.padding, self.shape
        return [(out[..., ph : ph + h, pw : pw + w], False)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        if t is None:
            return [None]
        (ph, pw), (h, w) = self.padding, self.shape
        t = F.pad(t, (pw, self.padded[1] - pw - w, ph, self.padded[0] - ph - h))
        total: Tensor | None = None
        for k, mask in enumerate(self.masks):
            r, c = self._slices(k)
            part = t[..., r, c] * mask
            total = part if total is None else total.add_(part)
        return [total]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return _window(boxes[0], self.kernel, self.stride, self.padding, (1, 1), shape)


class Reshape(Op):
    """A change of shape that keeps the order of elements."""

    def __init__(
        self, ins: list[int], outs: list[int], before: tuple[int, ...], after: tuple[int, ...]
    ) -> None:
        super().__init__(ins, outs)
        self.before, self.after = before, after

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g.reshape(g.shape[0], *self.before), owned)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.reshape(t.shape[0], *self.after)]


class Spread(Op):
    """One channel copied to all."""

    def __init__(self, ins: list[int], outs: list[int], channels: int) -> None:
        super().__init__(ins, outs)
        self.channels = channels

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        return [(g.sum(2, keepdim=True), True)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.expand(-1, -1, self.channels, -1, -1)]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        return boxes[0]


class GlobalMean(Op):
    """Mean over both image axes."""

    def __init__(self, ins: list[int], outs: list[int], shape: tuple[int, ...], keep: bool) -> None:
        super().__init__(ins, outs)
        self.shape, self.keep = shape, keep

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        g = grads[0]
        assert g is not None
        g = g if self.keep else g[..., None, None]
        h, w = self.shape[-2:]
        return [((g / (h * w)).expand(g.shape[0], *self.shape), False)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.mean((-2, -1), keepdim=self.keep)]


class Generic(Op):
    """Any other node, by its own derivative."""

    def __init__(
        self, ins: list[int], outs: list[int], node: Any, slots: list[int], device: torch.device
    ) -> None:
        super().__init__(ins, outs)
        self.node, self.slots = node, slots
        self.meta = [(tuple(m.shape), m.dtype) for m in node._input_metadata]
        self.device = device
        self.numbers: list[int] = []  # output number of each of `outs`
        self.sources: list[tuple[tuple[int, ...], torch.dtype]] = []  # shape and type of each input

    def _all(self, grads: Sequence[Tensor | None], lead: tuple[int, ...]) -> list[Tensor]:
        given = dict(zip(self.numbers, grads, strict=True))
        out = []
        for i, (shape, dtype) in enumerate(self.meta):
            g = given.get(i)
            if g is None:
                g = torch.zeros((*lead, *shape), dtype=dtype, device=self.device)
            out.append(g)
        return out

    def _call(self, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out = self.node(*grads)
        out = out if isinstance(out, tuple) else (out,)
        # the engine of autograd sums over broadcast axes after the node has run; so must we
        return tuple(
            g if g is None else g.sum_to_size(shape).to(dtype)
            for g, (shape, dtype) in zip((out[i] for i in self.slots), self.sources, strict=True)
        )

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Tensor | None, bool]]:
        lead = next(g.shape[0] for g in grads if g is not None)
        parts = torch.vmap(self._call)(*self._all(grads, (lead,)))
        return [(p, False) for p in parts]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        with torch.enable_grad():
            u = [z.requires_grad_() for z in self._all([None] * len(self.numbers), ())]
            g = self._call(*u)
        pairs = [(a, t) for a, t in zip(g, tangents, strict=True) if t is not None and a is not None]
        if not pairs:
            return [None for _ in self.outs]
        out = torch.autograd.grad(
            [a for a, _ in pairs],
            u,
            [t for _, t in pairs],
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        return [out[i] for i in self.numbers]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        along_channels = self.node.name() == "CatBackward0" and self.node._saved_dim in (1, 2**64 - 3)
        return _union(boxes) if along_channels and len(shape) == 4 else None


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
        if len(node._input_metadata) == 1:
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
            if len(node.next_functions) == 2 * len(cs):
                return Combine(ins, [out], [_layout(cs[i // 2].detach()) for i in slots])
        if name == "ConvolutionBackward0" and slots == [0] and len(shape) == 4 and not node._saved_transposed:
            return Convolution(ins, [out], node)
        if name == "ReluBackward0":
            mask = node._saved_result > 0
            return Scale(ins, [out], _layout(mask.to(node._saved_result.dtype)))
        if name == "MulBackward0" and len(ins) == 1 and same:
            c = node._saved_other if slots == [0] else node._saved_self
            if isinstance(c, Tensor):
                return Scale(ins, [out], _layout(c.detach()))
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
        """Merge products with constants into the single-input op before them: mask · c is one constant."""
        readers: dict[int, int] = {}
        for op in self.ops:
            for i in op.ins:
                readers[i] = readers.get(i, 0) + 1
        made: dict[int, Op] = {}
        ops: list[Op] = []
        for op in self.ops:
            if isinstance(op, Combine) and len(op.ins) == 1:
                c = op.cs[0]
                if isinstance(c, Tensor):
                    op = Scale(op.ins, op.outs, c)
            before = made.get(op.ins[0]) if len(op.ins) == 1 else None
            if (
                isinstance(op, Scale)
                and isinstance(before, Scale)
                and readers[op.ins[0]] == 1
                and op.ins[0] != self.output
            ):
                # 0 · inf must stay zero: where one factor vanishes the product does
                c = torch.where((before.c == 0) | (op.c == 0), 0.0, before.c * op.c)
                merged = Scale(before.ins, op.outs, _layout(c))
                ops[ops.index(before)] = merged
                op = merged
            else:
                ops.append(op)
            for o in op.outs:
                made[o] = op
        self.ops = ops

    # -- execution --------------------------------------------------------------------------------

    def reverse(self, cotangents: Tensor) -> list[Tensor | None]:
        """Modified gradients of the streams: (M, N, K) → (M, N, *sample) each, None where there is none."""
        grads: dict[int, tuple[Tensor, bool]] = {self.output: (cotangents, False)}
        for op in reversed(self.ops):
            have = [grads.pop(o, None) for o in op.outs]
            if all(h is None for h in have):
                continue
            parts = op.reverse(
                [None if h is None else h[0] for h in have], all(h is not None and h[1] for h in have)
            )
            for i, (g, owned) in zip(op.ins, parts, strict=True):
                if g is None:
                    continue
                old = grads.get(i)
                if old is None:
                    grads[i] = (g, owned)
                elif old[1]:
                    grads[i] = (old[0].add_(g), True)
                elif owned:
                    grads[i] = (g.add_(old[0]), True)
                else:
                    grads[i] = (old[0] + g, True)
        return [None if s is None or s not in grads else grads[s][0] for s in self.streams]

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


def _layout(c: Tensor) -> Tensor:
    return c.contiguous(memory_format=torch.channels_last) if c.ndim == 4 else c


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
