"""Image folders: CLASS/*.png, SPLIT/CLASS/*.png, or images side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pfungst.errors import DataError

from .decode import EXTENSIONS
from .item import Item
from .items import ImageSet

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def visible(path: Path, root: Path) -> bool:
    """Whether neither the file nor a folder between it and the root is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder by their ending, sorted, hidden ones left out; links to folders are
    followed."""
    found = _below(folder) if recursive else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in EXTENSIONS and visible(p, folder) and p.is_file())


def _below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder; a link back to a folder above itself is not followed again."""
    real = folder.resolve()
    if real not in above:
        for child in folder.iterdir():
            if child.is_dir():
                yield from _below(child, (*above, real))
            else:
                yield child


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def relative_id(path: Path, root: Path) -> str:
    """The id of an image: its path relative to the root, with forward slashes."""
    return path.relative_to(root).as_posix()


def open_folder(root: Path, normal: str = "good") -> ImageSet:
    """Open a folder of images sorted by class, by split and class, or not at all.

    Args:
        root: the folder.
        normal: the class that holds normal images; it becomes "good".

    Raises:
        DataError: there are no images.
    """
    folders = subfolders(root)
    by_split = bool(folders) and all(f.name.lower() in _SPLITS for f in folders)
    items = []
    for path in images_in(root, recursive=True):
        parts = path.relative_to(root).parts[:-1]
        split = _SPLITS[parts[0].lower()] if by_split and parts else None
        classes = parts[1:] if split else parts
        label = classes[0] if classes else None
        items.append(Item(relative_id(path, root), path, "good" if label == normal else label, split=split))
    if not items:
        raise DataError(
            f"{root} holds no images ({', '.join(sorted(EXTENSIONS))})",
            "expected CLASS/*.png, images with a CSV, an MVTec folder or Parquet",
        )
    notes = []
    bare = sum(i.label is None for i in items)
    if 0 < bare < len(items):
        notes.append(f"{bare} images lie outside the class folders and have no label")
    return ImageSet(root.name, items, notes)
