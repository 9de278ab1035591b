"""Sets of rendered parts, as lazily rendered items or as an MVTec folder on disk."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.data.item import Item
from pfungst.data.items import ImageSet
from pfungst.errors import ConfigError, DataError
from pfungst.files import whole
from pfungst.suggest import suggest

from .brush_hairs import BrushHairs
from .capsule import PrintedCapsule
from .part import Part
from .stamped_plate import StampedPlate
from .turned_ring import TurnedRing
from .wood_stripes import WoodStripes

CATEGORIES: dict[str, type[Part]] = {
    part.name: part for part in (TurnedRing, PrintedCapsule, BrushHairs, WoodStripes, StampedPlate)
}
"""All rendered categories by name."""


class _Drawing:
    """The fixed drawing of a category, made when the first specimen is rendered."""

    def __init__(self, kind: type[Part], size: int) -> None:
        self.kind, self.size = kind, size
        self._part: Part | None = None
        self._lock = threading.Lock()

    @property
    def part(self) -> Part:
        with self._lock:
            if self._part is None:
                self._part = self.kind(self.size)
            return self._part


class _Specimen:
    """One rendered image; its mask is kept (compressed) so that asking for it does not render again."""

    def __init__(self, drawing: _Drawing, defect: str | None, seed: tuple[int, ...]) -> None:
        self.drawing, self.defect, self.seed = drawing, defect, seed
        self._mask: bytes | None = None

    def image(self) -> Image.Image:
        pixels, mask = self.drawing.part.render(self.defect, np.random.default_rng(self.seed))
        if self.defect is not None:
            self._mask = zlib.compress(np.packbits(mask).tobytes(), 1)
        return Image.fromarray(pixels)

    def mask(self) -> np.ndarray:
        if self._mask is None:
            self.image()
        assert self._mask is not None
        n = self.drawing.size
        bits = np.frombuffer(zlib.decompress(self._mask), np.uint8)
        return np.unpackbits(bits, count=n * n).reshape(n, n).astype(bool)


def make_parts(
    categories: str | Sequence[str] | None = None,
    *,
    train: int = 60,
    good: int = 30,
    defective: int = 36,
    size: int = 900,
    seed: int = 0,
) -> list[ImageSet]:
    """Sets of rendered parts; an image is rendered when it is read, and not kept.

    Args:
        categories: names from ``CATEGORIES``; all by default.
        train: good training images per category.
        good: good test images per category.
        defective: defective test images per category, spread over its kinds of defect.
        size: edge of the images in pixels (even, at least 64).
        seed: same seed, same images.

    Returns:
        One set per category, ids as in an MVTec folder.

    Raises:
        ConfigError: a category is unknown or a number out of range.
    """
    names = (
        list(CATEGORIES)
        if categories is None
        else [categories]
        if isinstance(categories, str)
        else list(categories)
    )
    for name in names:
        if name not in CATEGORIES:
            raise ConfigError(
                f"there is no rendered category {name!r}", suggest(name, CATEGORIES, "there are")
            )
    if size < 64 or size % 2 or min(train, good, defective) < 0:
        raise ConfigError(
            f"cannot render {train} + {good} + {defective} images of {size} px",
            "size is even and at least 64, counts are not negative",
        )
    return [_make(name, train, good, defective, size, seed) for name in names]


def _make(name: str, train: int, good: int, defective: int, size: int, seed: int) -> ImageSet:
    kind = CATEGORIES[name]
    drawing = _Drawing(kind, size)
    wanted = [("train", "good", i) for i in range(train)] + [("test", "good", i) for i in range(good)]
    wanted += [
        ("test", kind.defects[i % len(kind.defects)], i // len(kind.defects)) for i in range(defective)
    ]
    items = []
    for split, label, number in wanted:
        unique = f"{split}/{label}/{number:03d}.png"
        specimen = _Specimen(
            drawing, None if label == "good" else label, (seed, zlib.crc32(f"{name}/{unique}".encode()))
        )
        items.append(Item(unique, specimen.image, label, None if label == "good" else specimen.mask, split))
    return ImageSet(name, items)


def write(folder: str | Path, sets: Sequence[ImageSet] | None = None, workers: int | None = None) -> Path:
    """Write sets as PNG in the MVTec layout, to be looked at or used elsewhere.

    Args:
        folder: where; must be absent or empty.
        sets: what ``make_parts`` gave; by default all categories.
        workers: threads; all cores by default.

    Returns:
        The folder.

    Raises:
        DataError: the folder holds something already or cannot be written.
    """
    root = Path(folder)
    chosen = make_parts() if sets is None else list(sets)
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DataError(f"{root} is not an empty folder", "name a new one")
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(
            f"{root} cannot be written: {e.strerror}", "name a folder that can be written"
        ) from None

    def save(image: Image.Image, path: Path) -> None:
        with whole(path) as part:
            image.save(part, "PNG", compress_level=1)

    def one(pair: tuple[str, Item]) -> None:
        name, item = pair
        save(item.read(), root / name / item.id)
        mask = item.read_mask()
        if mask is not None:
            defect, file = item.id.split("/")[1:]
            save(
                Image.fromarray(mask.astype(np.uint8) * 255),
                root / name / "ground_truth" / defect / file.replace(".png", "_mask.png"),
            )

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        list(pool.map(one, [(s.name, i) for s in chosen for i in s.items]))
    return root
