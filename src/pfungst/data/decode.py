"""Decode any image file into 8-bit RGB, refusing what is too large before it is decoded.

What becomes of unusual images: 16-bit values are scaled by 255/65535 (never clipped), palettes and 1-bit images are
expanded, transparent images are composited on white, CMYK is converted, EXIF rotation is applied, and of several
frames the first is taken.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 178_000_000
"""Largest width × height that is decoded unless told otherwise; just below Pillow's own limit."""

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
"""File name endings that are taken for images, in lower case."""


class Undecodable(Exception):
    """One image cannot be decoded; the message is the reason alone, the caller knows the file."""


def _open(source: Path | str | bytes, max_pixels: int) -> Image.Image:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            # Reading the whole file first is one system call, and the file is closed before decoding starts.
            data = Path(source).read_bytes()
        except FileNotFoundError:
            raise Undecodable("the file does not exist") from None
        except OSError as e:
            raise Undecodable(e.strerror or str(e)) from None
    if not data:
        raise Undecodable("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise Undecodable(f"more than the limit of {max_pixels:,} pixels (max_pixels)") from None
    except Image.UnidentifiedImageError:
        raise Undecodable("not an image of a known format") from None
    except _DECODING as e:
        raise Undecodable(_reason(e)) from None
    if image.width * image.height > max_pixels:
        raise Undecodable(
            f"{image.width:,} × {image.height:,} pixels are more than the limit of {max_pixels:,} (max_pixels)"
        )
    return image


_DECODING = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return f"truncated: {text}" if "truncated" in text or "not processed" in text else text


def _load(source: Path | str | bytes, max_pixels: int) -> Image.Image:
    image = _open(source, max_pixels)
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except _DECODING as e:
        raise Undecodable(_reason(e)) from None


def _grey8(image: Image.Image) -> Image.Image:
    """A single-channel image of more than 8 bits scaled to 8."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise Undecodable("a float image with values outside 0 to 1: convert it to 8 or 16 bits")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if values.min() < 0 or values.max() > 65535:
        raise Undecodable("an integer image with values outside 0 to 65,535: convert it to 8 or 16 bits")
    return Image.fromarray(np.rint(values.astype(np.float32) * (255 / 65535)).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB, as the head of this file says."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _grey8(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def read_image(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file into RGB.

    Args:
        source: a path, or the bytes of the file.
        max_pixels: images with more are refused by their header, before decoding. Beyond 357 million pixels Pillow's
            own limit (``PIL.Image.MAX_IMAGE_PIXELS``) has to be raised as well.

    Returns:
        A Pillow image of mode RGB, rotated as its EXIF data says.

    Raises:
        Undecodable: truncated, empty, not an image, too large or absent; the message is the reason.
    """
    return to_rgb(_load(source, max_pixels))


def read_mask(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a mask: True where any colour channel is not zero (palette masks: where the index is not zero).

    Returns:
        A boolean array (H, W).

    Raises:
        Undecodable: as for ``read_image``.
    """
    image = _load(source, max_pixels)
    if image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    values = np.asarray(image)
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)
