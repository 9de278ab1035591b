"""What an image file tells of where it comes from, without a column that anybody wrote: size, format,
compression, camera.

Nobody lists these, and models follow them all the same: the main paper's X-rays came from sources that differ
in size, format and burnt-in text (Kauffmann et al. 2025, "Results"). :func:`file_columns` turns them into
group columns that the audits test like given ones; :func:`trait` reads them from one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from pfungst.errors import ConfigError

from .decode import Undecodable, load, open_image, to_rgb
from .item import Item

PREFIX = "file: "
BINS = 4  # quantiles that a measured quantity is cut into
_FEW = 8  # different values up to which a measured quantity is taken as it is
_RARE = 5  # images; rarer values are put together as "other"
_FLAT = 2.0  # grey levels (standard deviation) below which a row or column is empty border
_GREY = 3  # grey levels by which the channels of a grey picture may differ

# First row of the luminance table of quality 50, ITU-T T.81 annex K: it tells the scale.
_LUMINANCE = np.array([16, 11, 10, 16, 24, 40, 51, 61], dtype=np.float64)


@dataclass(frozen=True)
class Traits:
    """What one file tells.

    Attributes:
        words: names with few values: format, colour, bits, jpeg tables, camera, year, border.
        numbers: measured quantities: width, height, aspect, sharpness, border share, jpeg quality.
    """

    words: Mapping[str, str]
    numbers: Mapping[str, float]


def traits(item: Item) -> Traits:
    """What the file of an item tells. Raises ``Undecodable`` with the reason."""
    source = item.image() if callable(item.image) else item.image
    if isinstance(source, Image.Image):
        image, words = source, {"format": "in memory"}
        numbers: dict[str, float] = {}
    else:
        opened = open_image(source)
        words, numbers = _container(opened)
        image = load(opened)
    width, height = image.size
    pixels = np.asarray(to_rgb(image))
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    spread = int((pixels.max(2).astype(int) - pixels.min(2)).max())
    words["colour"] = "grey" if spread <= _GREY else "colour"
    top, bottom, left, right = _border(grey)
    area = 1 - (height - top - bottom) * (width - left - right) / (width * height)
    inside = grey[top : height - bottom, left : width - right]
    numbers |= {
        "width": float(width),
        "height": float(height),
        "aspect": width / height,
        "border": area,
        "sharpness": _sharpness(inside),
    }
    return Traits(words, numbers)


def file_columns(
    items: Sequence[Item],
    wanted: Sequence[str] = (),
    text: Callable[[Image.Image], bool] | None = None,
    progress: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """Group columns that the files themselves give, each with at least two groups of five images.

    Measured quantities of many values are cut at their quartiles, rare values become "other". Columns that
    part the images as an earlier one does are left out.

    Args:
        items: the images.
        wanted: names without the prefix, for example ``("format", "sharpness")``; all by default.
        text: tells whether text is burnt into an image, see :func:`burnt_in_text`; adds the column ``text``.
        progress: called once per image.

    Returns:
        {"file: NAME": (N,) text}; an image that cannot be decoded has the value "unreadable".

    Raises:
        ConfigError: a wanted column does not exist here.
    """
    found: list[Traits | None] = []
    for item in items:
        try:
            one = traits(item)
            if text is not None:
                one = replace(one, words={**one.words, "text": "text" if text(item.read()) else "none"})
            found.append(one)
        except Undecodable:
            found.append(None)
        if progress is not None:
            progress()
    columns: dict[str, np.ndarray] = {}
    names = dict.fromkeys(name for t in found if t is not None for name in (*t.words, *t.numbers))
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(f"the files give no column {unknown[0]!r}", f"there are: {', '.join(names)}")
    for name in wanted or names:
        if any(t is not None and name in t.numbers for t in found):
            raw = np.array([np.nan if t is None else t.numbers.get(name, np.nan) for t in found])
            values = _binned(raw)
        else:
            values = np.array(["unreadable" if t is None else t.words.get(name, "none") for t in found])
        values = _common(values)
        groups = Counter(values.tolist())
        parts_well = len(groups) > 1 and sorted(groups.values())[-2] >= _RARE
        if parts_well and not any(_same(values, other) for other in columns.values()):
            columns[PREFIX + name] = values
    return columns


def burnt_in_text() -> Callable[[Image.Image], bool]:
    """A detector of burnt-in text: RapidOCR, from the extra ``marks``.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        raise ConfigError("burnt-in text needs RapidOCR", "pip install 'pfungst[marks]'") from None
    reader = RapidOCR()

    def found(image: Image.Image) -> bool:
        boxes, _ = reader(np.asarray(image)[:, :, ::-1], use_cls=False, use_rec=False)
        return bool(boxes)

    return found


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> float:
    """Quality 1 to 100 of the encoder whose luminance table fits best (ITU-T T.81, annex K, scaled as libjpeg
    does)."""
    scale = float(np.median(np.asarray(tables[0][:8], dtype=np.float64) / _LUMINANCE))
    return round(100 - 50 * scale if scale <= 1 else 50 / scale)


def _container(image: Image.Image) -> tuple[dict[str, str], dict[str, float]]:
    """Of the file around the pixels: format, bits, compression, camera and year."""
    words = {"format": image.format or "unknown", "bits": "16" if image.mode.startswith(("I", "F")) else "8"}
    numbers: dict[str, float] = {}
    tables = getattr(image, "quantization", None)
    if tables and 0 in tables:
        numbers["jpeg quality"] = float(jpeg_quality(tables))
        words["jpeg"] = "progressive" if image.info.get("progressive") else "baseline"
    exif: Any = image.getexif()
    camera = " ".join(
        str(exif.get(tag, "")).strip() for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
    ).strip()
    date = str(exif.get(ExifTags.Base.DateTime, ""))[:4]
    words |= {"camera": camera} if camera else {}
    words |= {"year": date} if date.isdigit() else {}
    return words, numbers


def _border(grey: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of one flat colour around the picture; at most 45 % of a
    side."""

    def run(lines: np.ndarray) -> int:
        level = lines[0].mean()
        flat = (lines.std(1) < _FLAT) & (np.abs(lines.mean(1) - level) < 2 * _FLAT)
        most = int(0.45 * len(lines))
        return int(np.argmin(flat[:most])) if not flat[:most].all() else most

    values = grey.astype(np.float32)
    return run(values), run(values[::-1]), run(values.T), run(values.T[::-1])


def _sharpness(grey: np.ndarray) -> float:
    """Energy of the Laplacian relative to the contrast, at 256 px of the shorter side at most."""
    scale = 256 / max(min(grey.shape), 1)
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey
    values = small.astype(np.float32)
    return float(cv2.Laplacian(values, cv2.CV_32F).var() / max(values.var(), 1.0))


def _binned(values: np.ndarray) -> np.ndarray:
    """Numbers as text: themselves where they are few, else between which quartiles they lie."""
    known = values[np.isfinite(values)]
    distinct = np.unique(known)
    if len(distinct) <= _FEW:
        return np.array([f"{v:g}" if np.isfinite(v) else "unreadable" for v in values])
    cuts = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
    edges = [known.min(), *cuts, known.max()]
    words = [f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges)]
    index = np.searchsorted(cuts, values, side="right")
    return np.array(
        [words[i] if np.isfinite(v) else "unreadable" for i, v in zip(index, values, strict=True)]
    )


def _common(values: np.ndarray) -> np.ndarray:
    counts = Counter(values.tolist())
    return np.array([v if counts[v] >= _RARE else "other" for v in values.tolist()])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))
