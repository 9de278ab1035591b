"""What takes a region's place: its surroundings, smoothed in; and regions with soft edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) blurred, edges mirrored where the image is large enough."""
    for axis in (-1, -2):
        size = x.shape[axis]
        if size > 1:  # a series, of height 1, is blurred along time alone
            reach = max(1, min(round(3 * sigma), size - 1))
            steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
            weights = torch.exp(-0.5 * (steps / max(sigma, 1e-6)) ** 2)
            kernel = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
            pad = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
            kernel = kernel if axis == -1 else kernel.transpose(2, 3)
            x = functional.conv2d(functional.pad(x, pad, mode="reflect"), kernel, groups=x.shape[1])
    return x


def soften(mask: Tensor) -> Tensor:
    """Regions (N, H, W) of 0 and 1, one pixel wider, with an edge that fades out over about 1/64 of the
    width."""
    wide = functional.max_pool2d(mask[:, None], 3, stride=1, padding=1)
    return gaussian(wide, mask.shape[-1] / 128)[:, 0].clamp(0, 1)


def inpaint(x: Tensor, mask: Tensor) -> Tensor:
    """Images with a region filled from around it, coarse to fine (push-pull; Gortler et al. 1996, section
    3.5).

    Args:
        x: (N, C, H, W).
        mask: (N, H, W) in [0, 1], 1 where the image goes.
    """
    keep = (1 - mask)[:, None]
    levels = [(x * keep, keep)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append(tuple(functional.avg_pool2d(t, 2, ceil_mode=True) for t in levels[-1]))  # type: ignore[arg-type]
    colour, weight = levels.pop()
    fill = colour / weight.clamp_min(1e-6)
    for colour, weight in reversed(levels):
        fill = functional.interpolate(fill, size=colour.shape[-2:], mode="bilinear", align_corners=False)
        fill = colour + fill * (1 - weight)
    return fill


def moved(x: Tensor, moves: Sequence[tuple[int, ...]]) -> Tensor:
    """Images (N, …, H, W), each moved by its (rows, columns), round the edges."""
    return torch.stack([torch.roll(a, move, (-2, -1)) for a, move in zip(x, moves, strict=True)])
