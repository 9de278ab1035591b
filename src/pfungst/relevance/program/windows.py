"""Linear maps that slide a window over an image: convolutions, and max pooling at fixed winners."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.program.ops import Box, Op
from pfungst.relevance.program.parts import Part, Strided


def _fold(t: Tensor) -> Tensor:
    return t.flatten(0, 1)


class Convolution(Op):
    """A 2-D convolution with constant weights."""

    fresh = True

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
        self.geometry = (kernel, self.stride, self.padding, self.dilation)
        self.pointwise = self.groups == 1 and tuple(kernel) == (1, 1) and self.padding == [0, 0]

    @cached_property
    def taps(self) -> Tensor:
        """One row of weights (C,) for each row and column of the kernel and output channel."""
        return self.weight.permute(2, 3, 0, 1).reshape(-1, self.weight.shape[1]).contiguous()

    @cached_property
    def rows(self) -> Tensor:
        """One row of weights (columns of the kernel · C,) for each row of the kernel and output channel."""
        weight = self.weight.permute(2, 0, 3, 1)
        return weight.reshape(weight.shape[0] * weight.shape[1], -1).contiguous()

    @cached_property
    def _flipped(self) -> tuple[Tensor, list[int]]:
        """Weights and padding of the transposed map of a stride of 1, itself a convolution."""
        reach = [d * (k - 1) for k, d in zip(self.weight.shape[2:], self.dilation, strict=True)]
        flipped = self.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return flipped, [r - p for r, p in zip(reach, self.padding, strict=True)]

    def _back(self, g: Tensor) -> Tensor:
        weight, padding = self._flipped
        return F.conv2d(g, weight, None, 1, padding, self.dilation)

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

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
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

    fresh = True

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

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
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
