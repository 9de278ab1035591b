"""Image folders: CLASS/*.png, SPLIT/CLASS/*.png, CLASS/SPLIT/*.png, or images side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pfungst.errors import DataError, lines

from .decode import EXTENSIONS
from .item import Item
from .items import ImageSet
from .options import Options
from .roles import SPLITS

MASKS = ("mask", "masks", "ground_truth", "gt")
"""What a folder of masks beside the classes is called."""


def visible(path: Path, root: Path) -> bool:
    """Whether neither the file nor a folder between it and the root is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder by their ending, sorted, hidden ones left out; links to folders are
    followed."""
    found = _below(folder) if recursive else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in EXTENSIONS and visible(p, folder) and p.is_file())


def _below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder; a link back to a folder above itself is not followed again, and what an audit
    wrote beside the images is none."""
    real = folder.resolve()
    written = above and all((folder / name).is_file() for name in ("result.json", "report.html"))
    if real not in above and not written:
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


def open_folder(root: Path, options: Options | None = None) -> ImageSet:
    """Open a folder of images sorted by class, by split and class or class and split, or not at all.

    A folder of :data:`MASKS` beside the classes holds masks, named like their images, with or without _mask;
    NAME_mask beside NAME is one too.

    Raises:
        DataError: there are no images, or a mask belongs to none.
    """
    options = options or Options()
    paths = images_in(root, recursive=True)
    masks = [p for p in paths if len(p.relative_to(root).parts) > 1 and _top(p, root) in MASKS]
    if len(masks) == len(paths):
        masks = []  # a folder whose only class has such a name
    own = masks_beside(paths)
    pictures = [p for p in paths if p not in {*masks, *own.values()}]
    parts = [p.relative_to(root).parts[:-1] for p in pictures]
    level = next(
        (k for k in (0, 1) if parts and all(len(p) > k and p[k].lower() in SPLITS for p in parts)), None
    )
    of = own | _matched(masks, pictures, root, level)
    items = []
    for path, folders in zip(pictures, parts, strict=True):
        split = None if level is None else SPLITS[folders[level].lower()]
        classes = [f for k, f in enumerate(folders) if k != level]
        label = options.labelled(classes[0]) if classes else None
        items.append(Item(relative_id(path, root), path, label, of.get(path), split))
    if not items:
        raise DataError(
            f"{root} holds no images ({', '.join(sorted(EXTENSIONS))})",
            "expected CLASS/*.png, images with a CSV, an MVTec folder or Parquet",
        )
    notes = [f"{len(own)} pictures named NAME_mask are masks of their neighbours"] if own else []
    bare = sum(i.label is None for i in items)
    if 0 < bare < len(items):
        notes.append(f"{bare} images lie outside the class folders and have no label")
    return ImageSet(root.name, items, notes)


def masks_beside(paths: list[Path]) -> dict[Path, Path]:
    """{image: mask} of the pictures NAME_mask that lie beside a picture NAME."""
    named = {p.with_suffix(""): p for p in paths}
    masks = {name: p for name, p in named.items() if name.name.endswith("_mask")}
    pairs = ((named.get(n.with_name(n.name.removesuffix("_mask"))), mask) for n, mask in masks.items())
    return {image: mask for image, mask in pairs if image is not None}


def _top(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].lower()


def _matched(masks: list[Path], pictures: list[Path], root: Path, level: int | None) -> dict[Path, Path]:
    """The mask of each image that has one: of the same relative path, with or without the folder of the split
    at this level, else of the same name."""

    def names(path: Path, without: int | None) -> tuple[str, str]:
        stem = path.relative_to(root).with_suffix("").parts
        last = stem[-1].removesuffix("_mask")
        return "/".join((*(s for k, s in enumerate(stem[:-1]) if k != without), last)), last

    whole = {names(p, None)[0]: [p] for p in pictures}
    short: dict[str, list[Path]] = {}
    by_name: dict[str, list[Path]] = {}
    for p in pictures:
        path, name = names(p, level)
        short.setdefault(path, []).append(p)
        by_name.setdefault(name, []).append(p)
    found, left = {}, []
    for mask in masks:
        path, name = names(mask, 0)
        one = whole.get(path) or short.get(path) or by_name.get(name, [])
        if len(one) != 1:
            left.append(relative_id(mask, root))
        else:
            found[one[0]] = mask
    if left:
        raise DataError(
            f"{len(left)} masks in {root} belong to no image, or to several:{lines(left)}",
            "name a mask like its image, in the folder of the same class: masks/CLASS/NAME.png",
        )
    return found
