"""Relevance in colour over a grey image."""

from __future__ import annotations

import numpy as np

from pfungst.errors import InputError
from pfungst.relevance.relevance import colour_limit

SUPPORTS = (0.84, 0.05, 0.09)  # red
CONTRADICTS = (0.06, 0.29, 0.78)  # blue
_EXPONENT = 0.6  # opacity of relevance r is (|r| / limit) ** 0.6


def overlay(heat: np.ndarray, image: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Relevance in colour over the image in grey: red supports the score, blue contradicts it.

    Args:
        heat: (H, W) relevance; values that are not finite are drawn as none.
        image: (H, W, 3) or (H, W), uint8.
        limit: relevance of full colour; by default 8·mean(|R|³)^⅓ (:func:`colour_limit`).

    Returns:
        (H, W, 3) uint8.
    """
    heat = np.nan_to_num(np.asarray(heat, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if heat.shape != image.shape[:2]:
        raise InputError(
            f"relevance of shape {heat.shape} does not fit an image of shape {image.shape}",
            "explain the images that are shown",
        )
    grey = image @ np.array([0.299, 0.587, 0.114]) if image.ndim == 3 else image.astype(np.float64)
    limit = colour_limit(heat) if limit is None else limit
    return _blend(heat / limit, 0.34 + 0.60 * grey / 255)


def ramp(width: int = 160, height: int = 8) -> np.ndarray:
    """The colours of :func:`overlay` from −limit to limit over mid-grey, (height, width, 3) uint8."""
    values = np.broadcast_to(np.linspace(-1, 1, width), (height, width))
    return _blend(values, np.full((height, width), 0.80))


def _blend(values: np.ndarray, grey: np.ndarray) -> np.ndarray:
    opacity = (np.clip(np.abs(values), 0, 1) ** _EXPONENT)[..., None]
    colour = np.where(values[..., None] >= 0, SUPPORTS, CONTRADICTS)
    return np.round(255 * ((1 - opacity) * grey[..., None] + opacity * colour)).astype(np.uint8)
