"""What an image file tells of where it comes from, without a column that anybody wrote: size, format,
compression, camera.

Nobody lists these, and models follow them all the same: the main paper's X-rays came from sources that differ
in size, format and burnt-in text (Kauffmann et al. 2025, "Results"). :func:`file_columns` turns them into
group columns that the audits test like given ones; :func:`trait` reads them from one file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from pfungst.errors import ConfigError
from pfungst.files import read, write_json

from .decode import Undecodable, load, open_image, to_rgb
from .item import Item

PREFIX = "file: "
BINS = 4  # quantiles that a measured quantity is cut into
_FEW = 8  # different values up to which a measured quantity is taken as it is
_RARE = 5  # images; rarer values are put together as "other"
_FLAT = 2.0  # grey levels (standard deviation) below which a row or column is empty border
_GREY = 3  # grey levels by which the channels of a grey picture may differ
_LETTERS = 0.1  # of the shorter side, that a line of burnt-in text is high at most
_READ = 736  # pixels of the longer side that text is looked for at

# First row of the luminance table of quality 50, ITU-T T.81 annex K: it tells the scale.
_LUMINANCE = np.array([16, 11, 10, 16, 24, 40, 51, 61], dtype=np.float64)


@dataclass(frozen=True)
class Traits:
    """What one file tells.

    Attributes:
        words: names with few values: format, colour, bits, jpeg tables, camera, year, border.
        numbers: measured quantities: width, height, aspect, sharpness, border share, jpeg quality, the mean
            (brightness) and standard deviation (contrast) of the grey levels within the border, of 1.
    """

    words: Mapping[str, str]
    numbers: Mapping[str, float]


def traits(item: Item) -> Traits:
    """What the file of an item tells. Raises ``Undecodable`` with the reason."""
    source = item.image() if callable(item.image) else item.image
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    if isinstance(source, Image.Image):  # of a file with a window, or in memory, where there is no format
        image = source
        if isinstance(path := getattr(item.image, "path", None), Path):
            words["format"] = path.suffix.removeprefix(".").upper()
    else:
        opened = open_image(source)
        words, numbers = _container(opened)
        image = load(opened)
    width, height = image.size
    pixels = np.asarray(to_rgb(image))
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    red, green, blue = cv2.split(pixels)  # NumPy takes ten times as long over an axis of three
    spread = int((cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)).max())
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
        "brightness": float(inside.mean()) / 255,
        "contrast": float(inside.std()) / 255,
    }
    return Traits(words, numbers)


def file_columns(
    items: Sequence[Item],
    wanted: Sequence[str] = (),
    text: BurntInText | None = None,
    progress: Callable[[], object] | None = None,
) -> dict[str, np.ndarray]:
    """Group columns that the files themselves give, each with at least two groups of five images.

    Measured quantities of many values are cut at their quartiles, rare values become "other". Columns that
    part the images as an earlier one does are left out.

    Args:
        items: the images.
        wanted: names without the prefix, for example ``("format", "sharpness")``; all by default.
        text: finds burnt-in text; adds the column ``text``, "text" or "none".
        progress: called once per image.

    Returns:
        {"file: NAME": (N,) text}; an image that cannot be decoded has the value "unreadable".

    Raises:
        ConfigError: a wanted column does not exist here.
    """
    found: list[Traits | None] = []
    for item in items:
        try:
            one = traits(item) if not wanted or set(wanted) - {"text"} else Traits({}, {})
            if text is not None:
                one = replace(one, words={**one.words, "text": "text" if len(text(item)) else "none"})
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
            values = binned(raw)
        else:
            values = np.array(["unreadable" if t is None else t.words.get(name, "none") for t in found])
        values = common(values)
        groups = Counter(values.tolist())
        parts_well = len(groups) > 1 and sorted(groups.values())[-2] >= _RARE
        if parts_well and not any(same_partition(values, other) for other in columns.values()):
            columns[PREFIX + name] = values
    return columns


class BurntInText:
    """Where text is burnt into images, as RapidOCR reads it (extra ``marks``); about 0.2 s per image.

    A box counts that is read with a score of 0.5 or more and is at most a tenth of the shorter side high: the
    detector alone takes ribs for lines of text. It misses single letters, such as side markers.

    Args:
        cache: a file of what was found, by the identity of the images; none by default.

    Raises:
        ConfigError: the extra is not installed.
    """

    def __init__(self, cache: Path | None = None) -> None:
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError:
            raise ConfigError("burnt-in text needs RapidOCR", "pip install 'pfungst[marks]'") from None
        self._reader = RapidOCR(det_limit_side_len=_READ, det_limit_type="max", intra_op_num_threads=1)
        self._cache = cache
        self._known: dict[str, list[list[float]]] = {}
        if cache is not None and cache.is_file():
            self._known = read(cache, "delete it")

    def __call__(self, item: Item) -> np.ndarray:
        """Boxes (B, 4): left, top, right, bottom as shares of the sides. Raises ``Undecodable``."""
        key = item.identity()
        if key not in self._known:
            pixels = np.asarray(item.read())
            height, width = pixels.shape[:2]
            found, _ = self._reader(pixels[:, :, ::-1], use_cls=False)
            corners = np.array([box for box, _, _ in found or ()], dtype=float).reshape(-1, 4, 2)
            boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
            sides = boxes[:, 2:] - boxes[:, :2]
            boxes = boxes[sides.min(1) <= _LETTERS * min(height, width)] if len(boxes) else boxes
            self._known[key] = (boxes / [width, height, width, height]).clip(0, 1).round(4).tolist()
        return np.array(self._known[key]).reshape(-1, 4)

    def keep(self) -> None:
        """Write what was found into the cache."""
        if self._cache is not None:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._cache, self._known)


def box_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels within boxes (B, 4) of shares of the sides, boolean (H, W)."""
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        rows = slice(int(top * height), math.ceil(bottom * height))
        mask[rows, int(left * width) : math.ceil(right * width)] = True
    return mask


def without_boxes(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose boxes are filled from what surrounds them (Telea 2004)."""
    if not len(boxes):
        return pixels
    mask = cv2.dilate(box_mask(boxes, *pixels.shape[:2]).astype(np.uint8), np.ones((3, 3), np.uint8))
    return cv2.inpaint(np.ascontiguousarray(pixels), mask, 5, cv2.INPAINT_TELEA)


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


def binned(values: np.ndarray) -> np.ndarray:
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


def common(values: np.ndarray) -> np.ndarray:
    """Values with those of fewer than five images put together as "other"."""
    counts = Counter(values.tolist())
    return np.array([v if counts[v] >= _RARE else "other" for v in values.tolist()])


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two columns part the images alike."""
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))
