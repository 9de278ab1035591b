"""How data are read: which column means what, and which values of pictures are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfungst.errors import DataError, few
from pfungst.suggest import suggest

from .roles import SPLITS
from .window import Window

NAMES = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image_path",
        "img_path",
        "image",
    ),
    "label": (
        "label",
        "labels",
        "class",
        "target",
        "defect",
        "is_defect",
        "anomaly",
        "is_anomaly",
        "quality",
    ),
    "mask": ("mask", "mask_path", "mask_file", "masks"),
    "split": ("split", "set", "subset", "partition", "phase"),
}
"""What columns of a meaning are called, in lower case; the first is the default."""


@dataclass(frozen=True)
class Options:
    """What the reader of a data set is told; see ``open_images``."""

    path: str = "path"
    label: str | None = "label"
    mask: str = "mask"
    split: str = "split"
    groups: tuple[str, ...] | None = None
    normal: str = "good"
    category: str = "category"
    root: Path | None = None
    window: Window = field(default_factory=Window)

    def labelled(self, label: str | None) -> str | None:
        """The label as items have it: "good" for normal images."""
        return "good" if label == self.normal else label


@dataclass(frozen=True)
class Columns:
    """The columns of one table: the name of each meaning, None where there is none, and the group columns."""

    path: str | None
    label: str | None
    mask: str | None
    split: str | None
    category: str | None
    groups: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def find(
        cls, file: Path, fields: Sequence[str], options: Options, pictures: str | None = None
    ) -> Columns:
        """Match a table's columns to their meaning.

        A column that is not named is also found under its usual other names, of whatever case.

        Args:
            pictures: the column that holds the images themselves; a path is then not needed.

        Raises:
            DataError: there is no such column, or several that may be meant.
        """
        found: dict[str, str | None] = {"label": None}
        notes = []
        for meaning in ("path", "label", "mask", "split"):
            wanted = getattr(options, meaning)
            if wanted is None:
                continue
            needed = meaning in ("label",) or (meaning == "path" and pictures is None)
            found[meaning] = name = _named(file, fields, meaning, wanted, needed, pictures)
            if name not in (None, wanted):
                notes.append(f"{file.name}: the column {name!r} is read as the {meaning}")
        category = options.category if options.category in fields else None
        taken = {*found.values(), category, pictures}
        if options.groups is not None and (missing := [g for g in options.groups if g not in fields]):
            raise DataError(
                f"{file} has no column {', '.join(map(repr, missing))}", suggest(missing[0], fields, "it has")
            )
        groups = [f for f in fields if f not in taken] if options.groups is None else options.groups
        return cls(**found, category=category, groups=tuple(groups), notes=tuple(notes))


def _named(
    file: Path, fields: Sequence[str], meaning: str, wanted: str, needed: bool, pictures: str | None
) -> str | None:
    if wanted in fields:
        return wanted
    default = wanted == NAMES[meaning][0]
    known = [f for f in fields if f.lower() in NAMES[meaning] and f != pictures] if default else []
    also = " (of the similarity audit --labels)" if meaning == "label" else ""
    option = f"--{meaning}-column NAME{also} ({meaning}_column=)"
    if len(known) == 1:
        return known[0]
    if known:
        raise DataError(
            f"{file} has {len(known)} columns that may be the {meaning}: {few(known)}", f"say which: {option}"
        )
    if not needed and default:
        return None
    none = "; for images without labels label_column=None" if meaning == "label" else ""
    raise DataError(
        f"{file} has no column {wanted!r}",
        f"{suggest(wanted, fields, 'it has')}; say which to use: {option}{none}",
    )


def split_of(name: str) -> str | None:
    """The split that the name of a file or folder begins with, such as train-00001."""
    found = re.match("[a-z]+", name.lower())
    return SPLITS.get(found.group()) if found else None
