"""Decode any image file into 8-bit RGB, refusing what is too large before it is decoded.

What becomes of unusual images: 16-bit values are scaled by 255/65535 (never clipped), palettes and 1-bit
images are expanded, transparent images are composited on white, CMYK is converted, EXIF rotation is applied,
and of several frames the first is taken.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from pfungst import files

MAX_PIXELS = 178_000_000
"""Largest width × height that is decoded unless told otherwise; just below Pillow's own limit."""

EXTENSIONS = files.PICTURES | files.DICOM | files.HEIF
"""File name endings that are taken for images, in lower case; HEIF is named as unreadable."""


class Undecodable(Exception):
    """One image cannot be decoded; the message is the reason alone, the caller knows the file."""


def _bytes(source: Path | str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        # Reading the whole file first is one system call, and the file is closed before decoding starts.
        return files.content(source)
    except FileNotFoundError:
        raise Undecodable("the file does not exist") from None
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        raise Undecodable(getattr(e, "strerror", None) or str(e)) from None


def open_image(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file whose header is read and whose pixels are not, as Pillow gives it. Raises as
    :func:`read_image`."""
    data = _bytes(source)
    if not data:
        raise Undecodable("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = files.open_picture(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise Undecodable(f"more than the limit of {max_pixels:,} pixels (max_pixels)") from None
    except Image.UnidentifiedImageError:
        brand = data[8:12].decode("latin-1") if data[4:8] == b"ftyp" else ""
        kind = f"HEIF or AVIF (brand {brand!r}), which is not read: convert it to PNG" if brand else ""
        raise Undecodable(kind or "not an image of a known format") from None
    except _DECODING as e:
        raise Undecodable(_reason(e)) from None
    if image.width * image.height > max_pixels:
        raise Undecodable(
            f"{image.width:,} × {image.height:,} pixels are more than the limit of {max_pixels:,} "
            "(max_pixels)"
        )
    return image


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits per channel; of colours, Pillow reads 8 only."""
    return image.mode.startswith(("I", "F")) or (
        image.mode == "RGB" and ";16" in str(getattr(image, "tile", ""))
    )


_DECODING = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    MemoryError,
    RecursionError,
    struct.error,
    zlib.error,
)


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    cut = any(word in text.lower() for word in ("truncated", "not processed", "unexpected end"))
    return f"the file is truncated ({text})" if cut else text


def load(image: Image.Image) -> Image.Image:
    """The pixels of an opened image, turned as its EXIF data says. Raises ``Undecodable``."""
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
        max_pixels: images with more are refused by their header, before decoding. Beyond 357 million pixels
            Pillow's own limit (``PIL.Image.MAX_IMAGE_PIXELS``) has to be raised as well.

    Returns:
        A Pillow image of mode RGB, rotated as its EXIF data says.

    Raises:
        Undecodable: truncated, empty, not an image, too large or absent; the message is the reason.
    """
    return to_rgb(load(open_image(source, max_pixels)))


def read_mask(source: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a mask.

    Labels (0 and 1, 0 and 255, class numbers, palettes, 16 bit): True where any colour channel, or the index
    into the palette, is not zero. Masks with soft edges, from JPEG or from resizing: see ``mask_of``.
    Transparent pixels lie outside, and a black picture whose alpha varies is a mask by its alpha.

    Args:
        source: a path, or the bytes of the file.
        max_pixels: as for ``read_image``.

    Returns:
        A boolean array (H, W).

    Raises:
        Undecodable: as for ``read_image``; or a JPEG so dark that labels cannot be told from its compression.
    """
    data = _bytes(source)
    image = open_image(data, max_pixels)
    lossy = (
        image.format in ("JPEG", "MPO")
        or (image.format == "WEBP" and b"VP8 " in data[:4096])
        or image.info.get("compression") in ("jpeg", "tiff_jpeg")
    )
    levels = _levels(load(image))
    peak = levels.max()
    if lossy and 0 < peak < _FAINT:
        raise Undecodable(
            f"its values go from 0 to {peak} of 255, and labels do not survive {image.format}: save it as PNG"
        )
    return mask_of(levels, soft=lossy or None)


_FAINT = 16  # integers below are labels: edges of a mask this dark cannot be soft
_SOFT = 0.3  # share of pixels on edges that must lie between their neighbours in a mask with soft edges


def mask_of(levels: np.ndarray, soft: bool | None = None) -> np.ndarray:
    """True where a picture of a mask says so.

    All numbers but zero are labels, unless the edges are soft. Then a region (connected, brighter than 1/5 of
    the brightest pixel) reaches to half of its level: that of its faintest plateau of 5 × 5 equal pixels, or
    of its brightest pixel where it has none.

    Args:
        levels: numbers (H, W) or channels (H, W, C), of which the brightest counts.
        soft: whether the edges are soft. By default that is found out: at least 30 % of the pixels on edges
            of a region that is not the brightest lie between a darker and a brighter neighbour, or have
            hardly a neighbour like themselves, whereas labels are flat up to their edge.

    Returns:
        Boolean (H, W).
    """
    if levels.ndim == 3:
        levels = levels.max(axis=2)
    if levels.dtype == bool or not levels.size:
        return levels.astype(bool)
    peak, lowest = levels.max(), levels.min()
    whole = levels.dtype.kind in "iu" or bool((levels == np.rint(levels)).all())
    if lowest < 0 or (whole and peak < _FAINT) or not (soft or _is_soft(levels)):
        return levels != 0
    values = levels.astype(np.float32)
    around = np.ones((5, 5), np.uint8)
    flat = cv2.dilate(values, around) - cv2.erode(values, around) <= peak / 100
    count, region = cv2.connectedComponents((values > peak / 5).astype(np.uint8))
    inside, flat = region > 0, flat & (region > 0)
    brightest, plateau = np.zeros(count, np.float32), np.full(count, np.inf, np.float32)
    np.maximum.at(brightest, region[inside], values[inside])
    np.minimum.at(plateau, region[flat], values[flat])
    return inside & (values >= np.minimum(brightest, plateau)[region] / 2)


def _is_soft(levels: np.ndarray) -> bool:
    values = levels.astype(np.float32)
    around = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(values, around), cv2.dilate(values, around)
    y, x = np.nonzero((values > 0) & (values < values.max()) & (low < high))
    padded = np.pad(values, 1, constant_values=-1)
    own = values[y, x]
    alike = sum((padded[y + i, x + j] == own).astype(int) for i in range(3) for j in range(3)) - 1
    unlike_labels = ((low[y, x] < own) & (own < high[y, x])) | (alike < 2)
    return bool(len(y)) and float(unlike_labels.mean()) >= _SOFT


def _levels(image: Image.Image) -> np.ndarray:
    """The levels of a mask (H, W)."""
    if image.mode == "P":
        return _indices(image)
    if image.has_transparency_data and "A" in image.getbands():
        rgba = np.asarray(image.convert("RGBA"))
        colour, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
        if alpha.min() == alpha.max():
            return colour
        return np.minimum(colour, alpha) if colour.any() else alpha
    if image.mode not in ("1", "L", "RGB") and not image.mode.startswith(("I", "F")):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Undecodable("a mask with NaN or infinite values: save 0 and 1")
    return values.max(axis=2) if values.ndim == 3 else values


def _indices(image: Image.Image) -> np.ndarray:
    """Indices into the palette; the greys instead where it is a ramp of greys from black."""
    index = np.asarray(image)
    used = np.unique(index)
    palette = np.zeros((256, 3), np.uint8)
    known = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette[: len(known)] = known
    colours = palette[used].astype(int)
    ramp = (colours == colours[:, :1]).all() and (np.diff(colours[:, 0]) > 0).all()
    return palette[:, 0][index] if ramp and ((colours[:, 0] > 0) == (used > 0)).all() else index
