"""The layout of MVTec AD (also VisA in MVTec form and the public part of MVTec AD 2)."""

from __future__ import annotations

from pathlib import Path

from pfungst.errors import DataError

from .folders import images_in, relative_id, subfolders
from .item import Item
from .items import ImageSet

_TEST = ("test", "test_public")


def is_category(folder: Path) -> bool:
    """Whether a folder looks like one category: train/good beside test, or ground_truth beside either."""
    train, truth = (folder / "train").is_dir(), (folder / "ground_truth").is_dir()
    test = any((folder / t).is_dir() for t in _TEST)
    return (train or test) and (truth or ((folder / "train" / "good").is_dir() and test))


def categories(root: Path) -> list[Path]:
    """The categories directly inside a folder."""
    return [f for f in subfolders(root) if is_category(f)]


def open_category(folder: Path) -> ImageSet:
    """Open one category.

    Raises:
        DataError: there are no normal training images, no test images, or a mask belongs to no image.
    """
    items = []
    good = folder / "train" / "good"
    if good.is_dir():
        items += [Item(relative_id(p, folder), p, "good", split="train") for p in images_in(good)]
    if not items:
        raise DataError(
            f"the category {folder.name} has no images in {good}", "put the normal training images there"
        )
    odd = [f.name for f in subfolders(folder / "train") if f.name != "good"]
    validation = folder / "validation" / "good"
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
        for path in images_in(kind):
            key = (kind.name, path.stem)
            mask = (
                None
                if kind.name == "good"
                else masks.pop(key, None) or masks.pop((kind.name, path.stem + "_mask"), None)
            )
            item = Item(relative_id(path, folder), path, kind.name, mask, "test")
            tested.append(item)
            if mask is None and kind.name != "good":
                without.append(item)
    if not tested:
        raise DataError(
            f"the category {folder.name} has no labelled test images in {test}",
            "put them into test/good and test/DEFECT",
        )
    left = sorted(str(p) for (kind, _), p in masks.items() if kind != "good")
    if left:
        shown = "\n    ".join(left[:20]) + (f"\n    … and {len(left) - 20} more" if len(left) > 20 else "")
        raise DataError(
            f"{len(left)} mask{'s belong' if len(left) > 1 else ' belongs'} to no image in {test}:\n    {shown}",
            "a mask is named like its image, with or without _mask, in the folder of the same defect",
        )
    notes = []
    if odd:
        notes.append(f"folders in {folder / 'train'} other than good are not read: {', '.join(odd)}")
    if without:
        notes.append(
            f"{len(without)} defective images have no mask, the first: {without[0].id}; measures that need masks leave them out"
        )
    return ImageSet(folder.name, items + tested, notes)


def _masks(truth: Path) -> dict[tuple[str, str], Path]:
    return {(kind.name, p.stem): p for kind in subfolders(truth) for p in images_in(kind)}
