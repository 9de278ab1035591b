"""Detection data as images with masks: the boxes and polygons of COCO and YOLO.

An image without a box is "good"; one with boxes has the name of the class that covers most of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from pfungst.errors import DataError, lines
from pfungst.files import read, reading

from .decode import open_image
from .folders import images_in, relative_id, subfolders
from .item import Item
from .items import ImageSet
from .options import split_of
from .roles import SPLITS

_TURNED = (5, 6, 7, 8)  # orientations of EXIF that swap width and height
_ORIENTATION = 0x0112
_FINE = 4  # parts of a pixel along a side, in which polygons are drawn


@dataclass(frozen=True)
class Shapes:
    """The mask of polygons, drawn when called.

    Args:
        image: the file of the image, whose header tells the size.
        polygons: corners (x, y) of each, in pixels or in shares of the sides.
        shares: whether they are shares.
    """

    image: Path
    polygons: tuple[tuple[tuple[float, float], ...], ...]
    shares: bool

    def __call__(self) -> np.ndarray:
        """Boolean (H, W): pixels of which half lies in a polygon, at least one of each. Raises
        ``Undecodable``."""
        image = open_image(self.image)
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _TURNED:
            width, height = height, width
        mask = np.zeros((height, width), np.uint8)
        for polygon in self.polygons:
            corners = np.array(polygon, float) * ((width, height) if self.shares else (1, 1))
            if len(polygon) == 4 and _is_box(corners):
                (left, top), (right, bottom) = corners.min(0), corners.max(0)
                x, y = min(max(0, round(left)), width - 1), min(max(0, round(top)), height - 1)
                mask[y : max(y + 1, round(bottom)), x : max(x + 1, round(right))] = 1
            else:
                _fill(mask, corners)
        return mask.astype(bool)


def _fill(mask: np.ndarray, corners: np.ndarray) -> None:
    """Set the pixels of which a polygon covers half; at least the one it covers most."""
    height, width = mask.shape
    left, top = np.floor(corners.min(0)).astype(int).clip(0, (width - 1, height - 1))
    right, bottom = np.ceil(corners.max(0)).astype(int).clip((left + 1, top + 1), (width, height))
    fine = np.zeros((_FINE * (bottom - top), _FINE * (right - left)), np.uint8)
    cv2.fillPoly(fine, [np.rint((corners - (left, top)) * _FINE - 0.5).astype(np.int32)], 1)
    share = cv2.resize(fine.astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    mask[top:bottom, left:right] |= (share >= min(0.5, share.max())).astype(np.uint8)


def _is_box(corners: np.ndarray) -> bool:
    return len(np.unique(corners[:, 0])) <= 2 and len(np.unique(corners[:, 1])) <= 2


def _box(x: float, y: float, width: float, height: float) -> tuple[tuple[float, float], ...]:
    return (x, y), (x + width, y), (x + width, y + height), (x, y + height)


def _area(polygon: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(polygon).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _item(
    root: Path,
    path: Path,
    shapes: list[tuple[str, tuple[tuple[float, float], ...]]],
    shares: bool,
    split: str | None,
) -> Item:
    """An image of polygons with their class."""
    covered: dict[str, float] = defaultdict(float)
    for name, polygon in shapes:
        covered[name] += _area(polygon)
    label = max(covered, key=lambda name: covered[name]) if covered else "good"
    mask = Shapes(path, tuple(p for _, p in shapes), shares) if shapes else None
    return Item(relative_id(path, root), path, label, mask, split)


def _coco_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    places = [f for f in (path / "annotations", path, *subfolders(path)) if f.is_dir()]
    return (
        sorted({f for place in places for f in place.glob("*.json") if _says_coco(f)})
        if path.is_dir()
        else []
    )


def _says_coco(file: Path) -> bool:
    try:
        with file.open("rb") as handle:
            start = handle.read(1 << 16)
    except OSError:
        return False
    words = (b'"images"', b'"annotations"', b'"categories"', b'"file_name"', b'"image_id"', b'"bbox"')
    return sum(word in start for word in words) >= 2


def is_coco(path: Path) -> bool:
    """Whether there are annotations as COCO writes them: a .json file, or such files in a folder."""
    return any(map(_says_coco, _coco_files(path)))


def open_coco(path: Path) -> list[ImageSet]:
    """Open COCO annotations; several files, such as instances_train.json, are the splits.

    Polygons are masks, other annotations by their box.

    Raises:
        DataError: a file has another content, or images do not exist.
    """
    files = _coco_files(path)
    root = path if path.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
    items: list[Item] = []
    absent: list[str] = []
    for file in files:
        content = read(file, "give annotations as COCO has them: images, annotations, categories")
        split = next((s for part in file.stem.lower().split("_") if (s := split_of(part))), None)
        split = split or split_of(file.parent.name)
        split = split if len(files) > 1 else None
        try:
            items += _coco_items(root, file, content, split, absent)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{file} is not as COCO has it: {type(error).__name__} {error}",
                "images need id and file_name, annotations image_id, category_id, bbox; categories id, name",
            ) from None
    if absent:
        raise DataError(
            f"{len(absent)} images of {path} do not exist:{lines(absent)}", "put them beside annotations"
        )
    return [ImageSet(root.name if path.is_dir() else path.stem, items)]


def _coco_items(root: Path, file: Path, content: Any, split: str | None, absent: list[str]) -> list[Item]:
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    of: dict[Any, list[tuple[str, tuple[tuple[float, float], ...]]]] = defaultdict(list)
    for note in content["annotations"]:
        outline = note.get("segmentation")
        polygons = [_box(*map(float, note["bbox"]))]
        if isinstance(outline, list) and outline and all(len(p) >= 6 for p in outline):
            polygons = [tuple(zip(map(float, p[::2]), map(float, p[1::2]), strict=True)) for p in outline]
        of[note["image_id"]] += [(names[note["category_id"]], p) for p in polygons]
    places = [root, root / "images", file.parent, *([root / split] if split else []), *subfolders(root)]
    items = []
    for image in content["images"]:
        name = str(image["file_name"])
        found = next((p / name for p in places if (p / name).is_file()), None)
        if found is None:
            absent.append(name)
        elif not found.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{name} lies outside {root}")
        else:
            items.append(_item(root, found, of[image["id"]], False, split))
    return items


def _label_file(path: Path, root: Path) -> Path | None:
    """The YOLO labels of an image: its path with "labels" for "images"."""
    parts = list(path.relative_to(root).parts)
    if "images" not in parts[:-1]:
        return None
    parts[parts.index("images")] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def is_yolo(folder: Path) -> bool:
    """Whether there are images and labels side by side, in the folder or in its splits."""
    places = [folder, *(f for f in subfolders(folder) if f.name.lower() in SPLITS)] if folder.is_dir() else []
    return any(
        (p / "images").is_dir() and (p / "labels").is_dir() and any((p / "labels").rglob("*.txt"))
        for p in places
    )


def open_yolo(folder: Path) -> list[ImageSet]:
    """Open YOLO: images/[SPLIT/]NAME.png with labels/[SPLIT/]NAME.txt, or SPLIT/images and SPLIT/labels.

    A line is a class and a box (centre and sides) or a polygon, in shares of the sides.
    Names come from data.yaml.

    Raises:
        DataError: a line is neither.
    """
    names = _names(folder)
    items, wrong = [], []
    for path in images_in(folder, recursive=True):
        file = _label_file(path, folder)
        if file is None:
            continue
        shapes = []
        if file.is_file():
            with reading(file, "write it as UTF-8 text"):
                text = file.read_text(encoding="utf-8")
            for number, line in enumerate(text.split("\n"), 1):
                try:
                    shapes += [_shape(line, names)] if line.strip() else []
                except (ValueError, OverflowError):
                    wrong.append(f"{file}, line {number}: {line[:60]!r}")
        split = next((SPLITS[p.lower()] for p in path.relative_to(folder).parts if p.lower() in SPLITS), None)
        items.append(_item(folder, path, shapes, True, split))
    if wrong:
        raise DataError(
            f"{len(wrong)} lines are no boxes of YOLO:{lines(wrong)}",
            "write CLASS X Y WIDTH HEIGHT, in shares",
        )
    return [ImageSet(folder.name, items)]


def _shape(line: str, names: dict[int, str]) -> tuple[str, tuple[tuple[float, float], ...]]:
    kind, *numbers = line.split()
    values = [float(n) for n in numbers]
    if not all(math.isfinite(v) and -0.01 <= v <= 1.01 for v in values):
        raise ValueError
    name = names.get(int(float(kind)), f"class {int(float(kind))}")
    if len(values) in (4, 5):  # a fifth is the confidence of a prediction
        x, y, width, height = values[:4]
        return name, _box(x - width / 2, y - height / 2, width, height)
    if len(values) < 6 or len(values) % 2:
        raise ValueError
    return name, tuple(zip(values[::2], values[1::2], strict=True))


def _names(folder: Path) -> dict[int, str]:
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        with reading(file, "mend or remove it"):
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise DataError(f"{file} is no YAML: {error}", "mend or remove it") from None
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list):
            return {k: str(n) for k, n in enumerate(names)}
        if isinstance(names, dict):
            return {int(k): str(n) for k, n in names.items()}
    return {}
