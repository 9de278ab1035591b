"""Convolutions of stride 1 of many images, by the algorithm that is fastest for their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.program.winograd import TILE, TallConvolution

_MANY = 4  # images from which transformed weights pay
_CHANNELS = 16  # below which transforms cost more than the products that they save

StrideOne = Callable[[Tensor], Tensor]


def stride_one(weight: Tensor, padding: Sequence[int], dilation: Sequence[int] = (1, 1)) -> StrideOne:
    """A convolution (B, C, H, W) → (B, O, H', W') with fixed weights, of stride 1 and in one group.

    Args:
        weight: (O, C, h, w).
        padding: zeros above and below, left and right.
        dilation: distance of the taps.
    """
    weight = weight.contiguous(memory_format=torch.channels_last)

    def direct(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, 1, list(padding), list(dilation))

    if weight.device.type != "cpu":  # libraries of GPUs choose algorithms themselves
        return direct
    kernel = tuple(weight.shape[2:])
    wide = min(weight.shape[:2]) >= _CHANNELS
    if kernel == (3, 3) and tuple(dilation) == (1, 1) and wide and weight.dtype == torch.float32:
        tall = cache(
            lambda: TallConvolution(weight, padding)
        )  # weights are transformed when it is needed first
        return lambda x: tall()(x) if len(x) >= _MANY and x.shape[2] >= TILE else direct(x)
    return direct
