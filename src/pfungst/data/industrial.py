"""Published inspection data in layouts of their own: VisA (Zou et al. 2022), Real-IAD (Wang et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pfungst.errors import DataError, lines
from pfungst.files import read

from .folders import relative_id, subfolders
from .item import Item
from .items import ImageSet
from .options import Options
from .tables import open_csv

_TABLE, _ANNOTATIONS = Path("split_csv") / "1cls.csv", "image_anno.csv"
_CAMERA = re.compile(r"_(C\d+)_")


def is_visa(path: Path) -> bool:
    """Whether a folder is VisA as published, or one category of it."""
    return (path / _TABLE).is_file() or (path / _ANNOTATIONS).is_file()


def open_visa(path: Path, options: Options, wanted: Sequence[str] | None = None) -> list[ImageSet]:
    """Open VisA: by its one-class split where that is there, else a category's annotations, without a split.

    Raises:
        DataError: see :func:`pfungst.data.tables.open_csv`.
    """
    whole = (path / _TABLE).is_file()
    columns = Options(
        path="image",
        mask="mask",
        category="object",
        normal="normal",
        groups=(),
        root=path if whole else path.parent,
    )
    return open_csv(path / (_TABLE if whole else _ANNOTATIONS), columns, path.name)


def is_real_iad(path: Path) -> bool:
    """Whether a folder is Real-IAD as published."""
    return bool(_descriptions(path))


def _descriptions(path: Path) -> list[Path]:
    return (
        sorted(f for place in path.glob("realiad_jsons*") for f in place.glob("*.json"))
        if path.is_dir()
        else []
    )


def open_real_iad(path: Path, options: Options, wanted: Sequence[str] | None = None) -> list[ImageSet]:
    """Open Real-IAD: ``realiad_jsons/CATEGORY.json`` beside ``realiad_1024/CATEGORY`` (or 512, 256).

    The part and the camera are groups.

    Raises:
        DataError: a description has another content, or files do not exist.
    """
    places = [f for f in subfolders(path) if f.name.startswith("realiad") and "json" not in f.name] or [path]
    sets = []
    for file in _descriptions(path):
        if wanted is not None and file.stem not in wanted:
            continue
        content = read(file, "unpack it anew")
        items, absent = [], []
        try:
            prefix, normal = (
                content["meta"].get("prefix", file.stem),
                content["meta"].get("normal_class", "OK"),
            )
            place = next((p / prefix for p in places if (p / prefix).is_dir()), places[0] / prefix)
            for split in ("train", "test"):
                for row in content[split]:
                    image, mask = place / row["image_path"], row.get("mask_path")
                    absent += [str(f) for f in (image, *([place / mask] if mask else [])) if not f.is_file()]
                    camera = _CAMERA.search(image.name)
                    groups = {"part": image.parent.name, "camera": camera.group(1) if camera else ""}
                    label = "good" if row["anomaly_class"] == normal else str(row["anomaly_class"])
                    items.append(
                        Item(
                            relative_id(image, place),
                            image,
                            label,
                            place / mask if mask else None,
                            split,
                            groups,
                        )
                    )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file} is not as Real-IAD has it: {type(error).__name__} {error}", "unpack it anew"
            ) from None
        if absent:
            raise DataError(
                f"{len(absent)} files of {file} do not exist:{lines(absent)}", "unpack the images"
            )
        sets.append(ImageSet(file.stem, items))
    return sets
