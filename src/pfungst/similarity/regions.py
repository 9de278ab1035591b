"""Places in an image that should not matter: its border, burnt-in marks, where something was pasted."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

BORDER = 0.08  # of each side
_BRIGHT = 0.97  # of the range, for what was written by a machine
_MARK = (2e-5, 0.01)  # share of the image that one mark takes
_CHANGE = 0.1  # of the largest change by pasting
_EDGE = 0.25  # marks lie this near to an edge


def border(size: int) -> Tensor:
    """The outer frame, boolean (S, S)."""
    width = max(1, round(BORDER * size))
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[width:-width, width:-width] = False
    return mask


def burnt_in(images: Tensor) -> Tensor:
    """Small saturated marks near the edges, such as the side letters of radiographs, boolean (N, S, S).

    Connected pixels at the top of the range that take at most 1 % of the image, brighter by half the range
    than what surrounds them. A heuristic: anatomy is never saturated and sharp at once, metal can be.
    """
    found = []
    for image in images:
        grey = image.mean(0).numpy()
        size = grey.shape[0]
        mask = np.zeros(grey.shape, bool)
        _, labels, stats, centres = cv2.connectedComponentsWithStats(
            (grey >= _BRIGHT).astype(np.uint8), connectivity=8
        )
        for i in range(1, len(stats)):
            left, top, width, height, area = stats[i]
            x, y = centres[i]
            near = min(x, y, grey.shape[1] - x, size - y) <= _EDGE * size
            if not (near and _MARK[0] * grey.size <= area <= _MARK[1] * grey.size):
                continue
            pad = max(2, size // 100)
            y0, y1 = max(0, top - pad), min(size, top + height + pad)
            x0, x1 = max(0, left - pad), min(grey.shape[1], left + width + pad)
            around = grey[y0:y1, x0:x1][labels[y0:y1, x0:x1] != i]
            if around.size and grey[labels == i].mean() - np.median(around) >= 0.5:
                mask |= labels == i
        found.append(mask)
    return torch.from_numpy(np.stack(found))


def in_patches(masks: Tensor, patch: int, least: float = 0.5) -> Tensor:
    """The patches that masks cover, boolean (…, H, W).

    Args:
        masks: boolean (…, S, S).
        patch: side of a patch in pixels.
        least: share of a patch that must be covered; 0 for any pixel. A mask that covers no patch so far
            keeps those it covers most.
    """
    size = masks.shape[-1]
    grid = -(-size // patch)
    extra = grid * patch - size
    padded = torch.nn.functional.pad(masks.float(), (0, extra, 0, extra))
    covered = padded.unflatten(-1, (grid, patch)).sum(-1).unflatten(-2, (grid, patch)).sum(-2)
    if least == 0:
        return covered > 0
    most = covered.amax((-2, -1), keepdim=True).clamp(min=1)
    return covered >= torch.minimum(torch.full_like(most, least * patch**2), most)


def changed(before: Tensor, after: Tensor, region: Tensor, patch: int) -> np.ndarray:
    """The images that pasting changes (N,): those that hold the artefact already stay nearly as they are.

    Args:
        before, after: images (N, C, S, S).
        region: patches that something was pasted on, boolean (H, W).
        patch: side of a patch in pixels.
    """
    size = before.shape[-1]
    mask = region.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:size, :size]
    change = (after - before).abs().mean(1)[:, mask].mean(1)
    return (change >= _CHANGE * change.max().clamp(min=1e-6)).numpy()
