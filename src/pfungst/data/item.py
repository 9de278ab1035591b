"""One image with what is known about it, and what every collection of them tells."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.errors import DataError
from pfungst.features import combined, file_key
from pfungst.suggest import suggest

from .decode import MAX_PIXELS, mask_of, read_image, read_mask, to_rgb

Source = Path | bytes | Callable[[], bytes] | Callable[[], Image.Image]
MaskSource = Path | bytes | Callable[[], bytes] | Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True)
class Item:
    """One image, its label, mask and groups.

    Args:
        id: unique within its set: the path relative to the folder of the set, with forward slashes.
        image: a path, the bytes of a file, or a function that gives bytes or a Pillow image.
        label: "good" for normal images, else the kind of defect or the class; None if not known.
        mask: where the defect is: a path, bytes, or a function that gives bytes or a boolean array (H, W).
        split: "train", "test", another name, or None.
        groups: further columns, for example session or patient.
    """

    id: str
    image: Source
    label: str | None = None
    mask: MaskSource | None = None
    split: str | None = None
    groups: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What many items share is one object: a million of them fit into memory."""
        for name in ("label", "split"):
            if type(text := getattr(self, name)) is str:
                object.__setattr__(self, name, sys.intern(text))
        object.__setattr__(self, "groups", self.groups or _NONE)

    def read(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The decoded image, mode RGB. Raises ``Undecodable`` with the reason."""
        source = self.image() if callable(self.image) else self.image
        if isinstance(source, Image.Image):
            return to_rgb(source)
        return read_image(source, max_pixels)

    def identity(self) -> str:
        """Names the image as it is now: its file with size and times, or its content. Raises OSError if it is
        not there."""
        return _identity(self.image)

    def mask_identity(self) -> str:
        """Names the mask as it is now, "" without one. Raises OSError if it is not there."""
        return "" if self.mask is None else _identity(self.mask)

    def read_mask(self, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
        """The mask as a boolean array (H, W), or None. Raises ``Undecodable`` with the reason."""
        source = self.mask() if callable(self.mask) else self.mask
        if source is None:
            return None
        if isinstance(source, np.ndarray):
            return mask_of(source)
        return read_mask(source, max_pixels)

    @property
    def file(self) -> str:
        """The file of the image if it has one, else its id."""
        path = getattr(self.image, "path", self.image)
        return str(path) if isinstance(path, Path) else self.id

    @property
    def mask_file(self) -> str:
        """The file of the mask if it has one."""
        return str(self.mask) if isinstance(self.mask, Path) else f"the mask of {self.id}"


def _identity(source: Source | MaskSource) -> str:
    if isinstance(source, Path):
        return file_key(source)
    within = getattr(source, "path", getattr(source, "archive", None))
    if isinstance(within, Path):  # a file that is shown through a window, or a member of an archive
        return combined(file_key(within), repr(source))
    content = source() if callable(source) else source
    return combined(np.asarray(content) if isinstance(content, Image.Image) else content)


_NONE: dict[str, str] = {}
NORMAL = "good"
"""The label of normal images."""


class Items:
    """What the items of a collection say, in order."""

    items: list[Item]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[str]:
        """The ids in order."""
        return [i.id for i in self.items]

    @property
    def labels(self) -> np.ndarray:
        """1 for anomalous, 0 for normal ("good"), shape (N,). Raises ``DataError`` where a label is not
        known."""
        unknown = [i.id for i in self.items if i.label is None]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(self.items)} images have no label, the first: {unknown[0]}",
                f"give a label column; normal images are labelled {NORMAL!r}",
            )
        return np.array([i.label != NORMAL for i in self.items], dtype=np.int64)

    @property
    def classes(self) -> list[str | None]:
        """The label of each item in words."""
        return [i.label for i in self.items]

    @property
    def splits(self) -> np.ndarray:
        """The split of each item, "" where it has none."""
        return np.array([i.split or "" for i in self.items])

    @property
    def group_names(self) -> list[str]:
        """Names of all group columns."""
        return list(dict.fromkeys(name for i in self.items for name in i.groups))

    def group(self, name: str) -> np.ndarray:
        """The values of a group column as strings, shape (N,), "" where absent.

        Raises:
            DataError: no item has that column.
        """
        if name not in self.group_names:
            raise DataError(f"there is no group column {name!r}", suggest(name, self.group_names, "columns"))
        return np.array([i.groups.get(name, "") for i in self.items])
