"""The layout of MVTec AD (also MVTec LOCO, VisA in MVTec form and the public part of MVTec AD 2).

A mask lies at ground_truth/DEFECT/STEM.png or STEM_mask.png; MVTec LOCO has a folder ground_truth/DEFECT/STEM
with one mask for each place where something is wrong, which are united.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfungst.errors import DataError, lines

from .decode import Undecodable, read_mask
from .folders import images_in, masks_beside, relative_id, subfolders
from .item import Item
from .items import ImageSet
from .roles import GOOD

_TEST = ("test", "test_public")


def is_category(folder: Path) -> bool:
    """Whether a folder looks like one category: train/good beside test, or ground_truth beside either."""
    train, truth = (folder / "train").is_dir(), (folder / "ground_truth").is_dir()
    test = any((folder / t).is_dir() for t in _TEST)
    return (train or test) and (truth or ((folder / "train" / "good").is_dir() and test))


def categories(root: Path) -> list[Path]:
    """The categories directly inside a folder."""
    return [f for f in subfolders(root) if is_category(f)] if root.is_dir() else []


def open_category(folder: Path) -> ImageSet:
    """Open one category.

    Raises:
        DataError: there are no normal training images, no test images, or a mask belongs to no image.
    """
    items = []
    training = subfolders(folder / "train") if (folder / "train").is_dir() else []
    normal = next((f.name for f in training if f.name.lower() in GOOD), "good")
    good = folder / "train" / normal
    if good.is_dir():
        items += [Item(relative_id(p, folder), p, "good", split="train") for p in images_in(good)]
    if not items:
        raise DataError(
            f"the category {folder.name} has no images in {good}", "put the normal training images there"
        )
    odd = [f.name for f in training if f.name != normal]
    validation = folder / "validation" / normal
    if validation.is_dir():
        items += [Item(relative_id(p, folder), p, "good", split="validation") for p in images_in(validation)]

    test = next((folder / t for t in _TEST if (folder / t).is_dir()), folder / "test")
    if not test.is_dir():
        raise DataError(
            f"the category {folder.name} has no test images: {test} does not exist",
            "put labelled test images into test/good and test/DEFECT",
        )
    truth = next((t for t in (folder / "ground_truth", test / "ground_truth") if t.is_dir()), None)
    masks = _masks(truth) if truth else {}
    without: list[Item] = []
    tested = []
    for kind in (f for f in subfolders(test) if f.name != "ground_truth"):
        pictures = images_in(kind)
        own = masks_beside(pictures)
        for path in (p for p in pictures if p not in own.values()):
            key = (kind.name, path.stem)
            parts = (
                []
                if kind.name == normal
                else masks.pop(key, []) or masks.pop((kind.name, path.stem + "_mask"), [])
            )
            parts = parts or ([own[path]] if path in own else [])
            mask = parts[0] if len(parts) == 1 else United(tuple(parts)) if parts else None
            label = "good" if kind.name == normal else kind.name
            item = Item(relative_id(path, folder), path, label, mask, "test")
            tested.append(item)
            if mask is None and label != "good":
                without.append(item)
    if not tested:
        raise DataError(
            f"the category {folder.name} has no labelled test images in {test}",
            "put them into test/good and test/DEFECT",
        )
    left = sorted(str(p) for (kind, _), paths in masks.items() if kind != normal for p in paths)
    if left:
        raise DataError(
            f"{len(left)} mask{'s belong' if len(left) > 1 else ' belongs'} to no image in "
            f"{test}:{lines(left)}",
            "a mask, or the folder of the masks of an image, is named like the image, with or without "
            "_mask, in the folder of the same defect",
        )
    notes = []
    if odd:
        notes.append(f"folders in {folder / 'train'} other than {normal} are not read: {', '.join(odd)}")
    if without:
        notes.append(
            f"{len(without)} defective images have no mask, the first: {without[0].id}; measures that need "
            "masks leave them out"
        )
    return ImageSet(folder.name, items + tested, notes)


def _masks(truth: Path) -> dict[tuple[str, str], list[Path]]:
    """The masks of each (defect, stem)."""
    found: dict[tuple[str, str], list[Path]] = {}
    for kind in subfolders(truth):
        for path in images_in(kind):
            found.setdefault((kind.name, path.stem), []).append(path)
        for parts in subfolders(kind):
            if paths := images_in(parts):
                found.setdefault((kind.name, parts.name), []).extend(paths)
    return found


@dataclass(frozen=True)
class United:
    """The union of masks of one image, read when called.

    Args:
        paths: files of masks of one size.
    """

    paths: tuple[Path, ...]

    def __call__(self) -> np.ndarray:
        """Boolean (H, W). Raises ``Undecodable`` where one cannot be read or has another size."""
        union = None
        for path in self.paths:
            try:
                mask = read_mask(path)
            except Undecodable as error:
                raise Undecodable(f"{path}: {error}") from None
            if union is not None and union.shape != mask.shape:
                raise Undecodable(f"{path} has another size than {self.paths[0].name}")
            union = mask if union is None else union | mask
        assert union is not None
        return union
