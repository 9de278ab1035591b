"""Arrays as pictures inside a page: photographs, heatmaps over them, outlines of masks."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pfungst.errors import DataError, InputError
from pfungst.files import open_picture
from pfungst.relevance.colours import CONTRADICTS, SUPPORTS, overlay, ramp
from pfungst.report.page import Tile

__all__ = ["CONTRADICTS", "SUPPORTS", "bars", "data_uri", "file_tile", "outline", "overlay", "ramp"]


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


def file_tile(
    path: Path, label: str, alt: str, remedy: str, side: int, quality: int = 88, outline: str = ""
) -> Tile:
    """The picture of a file. Raises DataError, with `remedy`, where it is missing or damaged."""
    try:
        with open_picture(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", remedy) from None
    src = data_uri(pixels, side=side, quality=quality)
    return Tile(label, alt, src, outline, (pixels.shape[1], pixels.shape[0]))


def bars(values: np.ndarray, colour: str = "#5b7ea6") -> str:
    """Bars of values (B,) ≥ 0 from left to right on a square, as an SVG data URI; the highest fills it."""
    heights = np.asarray(values, dtype=np.float64) / max(float(np.max(values, initial=0)), 1e-12) * 96
    step = 100 / max(1, len(heights))
    drawn = "".join(
        f'<rect x="{i * step + 0.1 * step:.2f}" y="{98 - h:.2f}" width="{0.8 * step:.2f}" height="{h:.2f}"/>'
        for i, h in enumerate(heights)
    )
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="200" viewBox="0 0 100 100" '
    svg += f'fill="{colour}">'
    svg += f'<path d="M0 98.5H100" stroke="{colour}" stroke-width=".6"/>{drawn}</svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


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
