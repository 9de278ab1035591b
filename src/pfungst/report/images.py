"""Arrays as pictures inside a page: photographs, heatmaps over them, outlines of masks."""

from __future__ import annotations

import base64
import io

import cv2
import numpy as np
from PIL import Image

from pfungst.errors import InputError
from pfungst.relevance import colour_limit

SUPPORTS = (0.84, 0.05, 0.09)  # red
CONTRADICTS = (0.06, 0.29, 0.78)  # blue
_EXPONENT = 0.6  # opacity of relevance r is (|r| / limit) ** 0.6


def data_uri(image: np.ndarray, *, quality: int = 88, side: int | None = None) -> str:
    """A picture as a WebP data URI.

    Small pictures (up to 96 px) are kept exactly; they show single pixels.

    Args:
        image: (H, W) or (H, W, 3), uint8.
        quality: of the lossy compression, 0 to 100.
        side: longest side in pixels to reduce to; never enlarged.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(
            f"a picture of shape {image.shape} and type {image.dtype} cannot be shown",
            "pass (H, W) or (H, W, 3) of type uint8",
        )
    picture = Image.fromarray(image)
    if side is not None and max(picture.size) > side:
        scale = side / max(picture.size)
        width, height = (max(1, round(n * scale)) for n in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    if max(picture.size) <= 96:
        picture.save(buffer, "WEBP", lossless=True, method=4)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


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


def outline(mask: np.ndarray, margin: int = 0) -> str:
    """The boundary of a mask as an SVG path in pixels of the mask; empty for an empty mask.

    Args:
        mask: (H, W); everything above zero is inside.
        margin: pixels to stay away from the mask, so that the line hides nothing inside.
    """
    inside: np.ndarray = (np.asarray(mask) > 0).astype(np.uint8)
    if margin > 0:
        inside = cv2.dilate(inside, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1,) * 2))
    # Twice the resolution, so that the line runs on the outer edge of the pixels.
    contours, _ = cv2.findContours(
        np.kron(inside, np.ones((2, 2), np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.9, True)[:, 0, :]
        if len(points) < 3:  # a line or a point: its box
            x, y, width, height = cv2.boundingRect(contour)
            right, low = x + width - 1, y + height - 1
            points = np.array([[x, y], [right, y], [right, low], [x, low]])
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points / 2 + 0.25) + "Z")
    return "".join(parts)
