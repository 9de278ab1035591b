"""ImageNet and its two subsets of the main paper: eight trucks and sixteen fishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfungst.errors import DataError, lines

from .folders import images_in, relative_id
from .item import Item
from .items import ImageSet

TRUCKS = {
    "n03770679": "minivan",
    "n03796401": "moving van",
    "n03977966": "police van",
    "n03345487": "fire engine",
    "n03417042": "garbage truck",
    "n03930630": "pickup",
    "n04461696": "tow truck",
    "n04467665": "trailer truck",
}
FISHES = {
    "n01440764": "tench",
    "n02514041": "barracouta",
    "n02536864": "coho",
    "n02640242": "sturgeon",
    "n02641379": "gar",
    "n01498041": "stingray",
    "n01484850": "great white shark",
    "n01494475": "hammerhead",
    "n01491361": "tiger shark",
    "n02655020": "puffer",
    "n01496331": "electric ray",
    "n01443537": "goldfish",
    "n02526121": "eel",
    "n02607072": "anemone fish",
    "n02606052": "rock beauty",
    "n02643566": "lionfish",
}
SUBSETS: dict[str, dict[str, str]] = {"truck": TRUCKS, "fish": FISHES}
"""Classes below the WordNet nodes truck and fish, by WordNet id (Kauffmann et al. 2025, methods)."""


def is_imagenet(folder: Path) -> bool:
    """Whether a folder holds `train/WNID` or `val/WNID` folders."""
    return any(
        _is_wnid(child.name) and child.is_dir()
        for split in ("train", "val")
        if (folder / split).is_dir()
        for child in (folder / split).iterdir()
    )


def open_imagenet(
    folder: str | Path, classes: str | Sequence[str] | Mapping[str, str] | None = None
) -> ImageSet:
    """Classes of ImageNet in the published layout, `{train,val}/WNID/*.JPEG`.

    Args:
        folder: where train and val lie; one of them is enough.
        classes: "truck", "fish", WordNet ids, a dictionary from id to name, or None for all that are there.

    Returns:
        A set with split "train" and, from val, "test"; the label is the class's name, the group `wnid` its
        id.

    Raises:
        DataError: a folder or class is missing, or holds no images.
    """
    root = Path(folder)
    splits = [
        (name, as_split) for name, as_split in (("train", "train"), ("val", "test")) if (root / name).is_dir()
    ]
    if not splits:
        raise DataError(f"{root} has neither train nor val", "expected {train,val}/WNID/*.JPEG")
    wanted = _classes(root, classes, [name for name, _ in splits])
    items, absent = [], []
    for name, as_split in splits:
        for wnid, label in wanted.items():
            place = root / name / wnid
            found = images_in(place) if place.is_dir() else []
            if not found:
                absent.append(f"{place} ({label})")
            items += [
                Item(relative_id(path, root), path, label, split=as_split, groups={"wnid": wnid})
                for path in found
            ]
    if absent:
        raise DataError(
            f"{len(absent)} class folders are missing or empty:{lines(absent)}",
            "validation images have to be sorted into folders by WordNet id",
        )
    return ImageSet(classes if isinstance(classes, str) else root.name, items)


def _classes(
    root: Path, classes: str | Sequence[str] | Mapping[str, str] | None, splits: list[str]
) -> dict[str, str]:
    names = {**TRUCKS, **FISHES}
    if isinstance(classes, str):
        if classes in SUBSETS:
            return SUBSETS[classes]
        if not _is_wnid(classes):
            raise DataError(f"no subset of ImageNet is called {classes!r}", "use truck, fish, or WordNet ids")
        return {classes: names.get(classes, classes)}
    if classes is None:
        found = {p.name for s in splits for p in (root / s).iterdir() if p.is_dir() and _is_wnid(p.name)}
        return {w: names.get(w, w) for w in sorted(found)}
    return dict(classes) if isinstance(classes, Mapping) else {w: names.get(w, w) for w in classes}


def _is_wnid(text: str) -> bool:
    return len(text) == 9 and text[0] == "n" and text[1:].isdigit()
