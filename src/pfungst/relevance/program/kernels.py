"""Kernels of linear maps on many vectors at once, forward and transposed.

Vectors are tensors (M, N, ...): M of them for each of N inputs; images are channels last in memory. Passes over
memory cost as much as convolutions here, so a transposed map may hand back a sum's term that is not yet
carried out (`Pending`): it is added in one pass to the term it meets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.program.convolution import StrideOne, stride_one

Box = tuple[int, int, int, int]  # first and last row, first and last column, of an image's support


def _fold(t: Tensor) -> Tensor:
    return t.flatten(0, 1)


def layout(c: Tensor) -> Tensor:
    """Images channels last in memory, other constants as they are."""
    return c.contiguous(memory_format=torch.channels_last) if c.ndim == 4 else c


class Pending(ABC):
    """A cotangent that is not carried out until it is needed."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The cotangent in memory of its own."""

    @abstractmethod
    def onto(self, t: Tensor) -> Tensor:
        """`t` with the cotangent added in place."""


Part = Tensor | Pending


def dense(part: Part) -> Tensor:
    return part.dense() if isinstance(part, Pending) else part


class Product(Pending):
    """g · c."""

    def __init__(self, g: Tensor, c: Tensor) -> None:
        self.g, self.c = g, c

    def dense(self) -> Tensor:
        return self.g * self.c

    def onto(self, t: Tensor) -> Tensor:
        return t.addcmul_(self.g, self.c) if t.dtype == self.g.dtype else t.add_(self.dense())


class Strided(Pending):
    """`small` (B, C, h, w) at every stride-th place of images (M, N, C, H, W), zero elsewhere."""

    def __init__(self, small: Tensor, stride: list[int], shape: tuple[int, ...]) -> None:
        self.small, self.stride, self.shape = small, stride, shape

    def dense(self) -> Tensor:
        *lead, c, h, w = self.shape
        out = self.small.new_zeros(len(self.small), h, w, c).permute(0, 3, 1, 2)
        out[..., :: self.stride[0], :: self.stride[1]] = self.small
        return out.unflatten(0, lead)

    def onto(self, t: Tensor) -> Tensor:
        t[..., :: self.stride[0], :: self.stride[1]] += self.small.unflatten(0, t.shape[:2])
        return t


class Op(ABC):
    """One linear map: `ins` and `outs` number the values that it reads and writes."""

    def __init__(self, ins: list[int], outs: list[int]) -> None:
        self.ins, self.outs = ins, outs

    @abstractmethod
    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        """Transposed map: (M, N, *out) of each output → of each input, with whether it may be overwritten."""

    @abstractmethod
    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        """The map itself: (M, N, *in) of each input → of each output."""

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        """Support of the output from the supports of the inputs; None where it is unknown."""
        return None


class Scale(Op):
    """Product with a constant."""

    def __init__(self, ins: list[int], outs: list[int], c: Tensor) -> None:
        super().__init__(ins, outs)
        self.c = c

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
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

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        total: Tensor | None = None
        owned = False
        for t, c in zip(tangents, self.cs, strict=True):
            if t is None:
                continue
            if owned and total is not None and isinstance(c, Tensor) and c.dtype == t.dtype == total.dtype:
                total.addcmul_(t, c)
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
        self.pointwise = self.groups == 1 and tuple(kernel) == (1, 1) and self.padding == [0, 0]

    @cached_property
    def taps(self) -> Tensor:
        """One row of weights (C,) for each row and column of the kernel and output channel."""
        return self.weight.permute(2, 3, 0, 1).reshape(-1, self.weight.shape[1]).contiguous()

    @cached_property
    def _ahead(self) -> StrideOne:
        return stride_one(self.weight, self.padding, self.dilation)

    @cached_property
    def _back(self) -> StrideOne:
        """The transposed map of a stride of 1, itself a convolution."""
        flipped = self.weight.flip(2, 3).transpose(0, 1).contiguous()
        reach = [d * (k - 1) for k, d in zip(flipped.shape[2:], self.dilation, strict=True)]
        return stride_one(flipped, [r - p for r, p in zip(reach, self.padding, strict=True)], self.dilation)

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        m, n = g.shape[:2]
        g = _fold(g)
        if self.same:
            out = self._back(g)
        elif self.pointwise:  # a strided shortcut: a small product, written between zeros
            return [(Strided(self._back(g), self.stride, (m, n, *self.shape)), True)]
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
        if self.same:
            out = self._ahead(t)
        else:
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

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        m, n, channels = g.shape[:3]
        out = g.new_zeros(m * n, *self.padded, channels).permute(0, 3, 1, 2).unflatten(0, (m, n))
        for k, mask in enumerate(self.masks):
            r, c = self._slices(k)
            out[..., r, c].addcmul_(g, mask)
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

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
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

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
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

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        g = grads[0]
        assert g is not None
        g = g if self.keep else g[..., None, None]
        h, w = self.shape[-2:]
        return [((g / (h * w)).expand(g.shape[0], *self.shape), False)]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        t = tangents[0]
        return [None if t is None else t.mean((-2, -1), keepdim=self.keep)]


def _cast(g: Tensor, dtype: torch.dtype) -> Tensor:
    return g.real.to(dtype) if g.is_complex() and not dtype.is_complex else g.to(dtype)


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
            g if g is None else _cast(g.sum_to_size(shape), dtype)
            for g, (shape, dtype) in zip((out[i] for i in self.slots), self.sources, strict=True)
        )

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        lead = next(g.shape[0] for g in grads if g is not None)
        parts = torch.vmap(self._call)(*self._all(grads, (lead,)))
        return [(None if p is None else p.resolve_conj().resolve_neg(), False) for p in parts]

    def forward(self, tangents: list[Tensor | None]) -> list[Tensor | None]:
        with torch.enable_grad():
            u = [z.requires_grad_() for z in self._all([None] * len(self.numbers), ())]
            g = self._call(*u)
        # what is overwritten passes nothing on, whatever the cotangent
        pairs = [
            (a, t)
            for a, t in zip(g, tangents, strict=True)
            if t is not None and a is not None and a.requires_grad
        ]
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
