"""The images of a classifier audit: folders to class indices, loaded one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfungst.conditions import Condition
from pfungst.data import ImageSet, Item, open_images
from pfungst.data.decode import Undecodable
from pfungst.data.prepared import resize_mask
from pfungst.encoders import Preprocessing
from pfungst.errors import ConfigError, DataError, InputError, UnreadableImages, few
from pfungst.features import combined
from pfungst.files import reading
from pfungst.spurious import match_classes

_TRAIN, _HELD_OUT = ("train",), ("val", "validation", "test")


class Labelled:
    """(id, image, class index) of items, as feature extraction takes them."""

    def __init__(self, items: Sequence[Item], labels: Sequence[int], preprocessing: Preprocessing) -> None:
        self.items, self.labels = list(items), list(labels)
        self.ids = [item.id for item in self.items]
        self.condition = Condition.parse(preprocessing.condition)
        self.size = preprocessing.size
        self._rows = {id_: row for row, id_ in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[str, Tensor, int]:
        return self.ids[row], self._read(self.items[row]), self.labels[row]

    def identity(self, row: int) -> tuple[object, ...]:
        """What the features of an image and its label depend on, beside the model."""
        return self.items[row].identity(), self.condition.identity(), self.size, self.labels[row]

    def _read(self, item: Item) -> Tensor:
        try:
            return self.condition(item.read(), self.size, key=item.id)
        except Undecodable as error:
            raise UnreadableImages([(item.file, str(error))]) from None

    def image(self, id_: str) -> Tensor:
        """The image of an identifier, (3, S, S)."""
        return self._read(self.items[self._rows[id_]])

    def mask(self, id_: str, folder: Path | None) -> np.ndarray | None:
        """The object's mask, (S, S) boolean, from the data set or from a folder of masks; None without one."""
        item = self._masked(self.items[self._rows[id_]], folder)
        try:
            mask = item.read_mask()
        except Undecodable as error:
            raise UnreadableImages([(item.mask_file, str(error))]) from None
        return None if mask is None else resize_mask(mask, self.size)

    @staticmethod
    def _masked(item: Item, folder: Path | None) -> Item:
        beside = None if folder is None else (folder / item.id).with_suffix(".png")
        return replace(item, mask=beside) if item.mask is None and beside and beside.is_file() else item

    def key(self) -> str:
        """Names these images and how they are prepared, whatever they show."""
        return combined(self.ids, self.labels, self.condition.identity(), self.size)

    def state(self, masks: Path | None) -> str:
        """Names these images, of which those that are not there do not count, and their masks as they are now."""
        found = []
        for row, item in enumerate(self.items):
            with suppress(OSError):
                found.append((item.id, self.identity(row), self._masked(item, masks).mask_identity()))
        return combined(found)


def open_labelled(path: Path, training: bool) -> ImageSet:
    """A labelled image set; of one with splits, only the training or the held-out images.

    Raises:
        DataError: several sets, or images without a label.
    """
    sets = open_images(path, normal_label="\0none")
    if len(sets) > 1:
        names = few(s.name for s in sets)
        raise DataError(
            f"{path} holds {len(sets)} image sets: {names}", "give a folder with one folder per class"
        )
    images = sets[0]
    known = {item.split for item in images.items} - {None}
    wanted = _TRAIN if training else _HELD_OUT
    if known & set(wanted):
        images = images.select(where=lambda item: item.split in wanted)
    bare = [item.id for item in images.items if item.label is None]
    if bare:
        raise DataError(
            f"{len(bare)} images in {path} have no label, for example {bare[0]}",
            "sort them into one folder per class, or give a table with a column 'label'",
        )
    return images


def read_names(path: Path | None) -> list[str] | None:
    """Class names in the order of the model's outputs, from a JSON list or a text file."""
    if path is None:
        return None
    remedy = "a JSON list of names, or one name a line"
    with reading(path, remedy, ConfigError):
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.split("\n")]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"{path} holds no list of names", remedy)
    return [name for name in names if name]


def class_names(train: ImageSet, val: ImageSet, given: list[str] | None, n_classes: int) -> dict[int, str]:
    """{class index: name} of the classes in the two sets.

    Raises:
        InputError: they do not fit the model or each other; the message shows both sides.
    """
    if given is not None and len(given) != n_classes:
        raise InputError(
            f"{len(given)} class names are given, the model has {n_classes} classes",
            "give one name for each output of the model",
        )
    labels = [str(item.label) for item in train.items]
    index = match_classes(labels, n_classes if given is None else given)
    unknown = sorted({str(item.label) for item in val.items} - set(index))
    if unknown and given is None:
        raise InputError(
            f"{len(unknown)} labels of the validation set are no training labels: {few(map(repr, unknown))}; "
            f"the training set has {len(index)}: {few(map(repr, sorted(index)))}",
            "name the folders of both sets alike, or give --class-names",
        )
    if given is not None:
        index |= match_classes([str(item.label) for item in val.items], given)
    return {i: name for name, i in index.items()}


def choose_classes(wanted: Sequence[str], names: dict[int, str]) -> list[int]:
    """Class indices to audit, all if none are named.

    Raises:
        ConfigError: one does not exist.
    """
    by_name = {name: i for i, name in names.items()}
    chosen, unknown = [], []
    for value in wanted:
        k = by_name.get(value, int(value) if value.isdecimal() else None)
        if k in names:
            chosen.append(k)
        else:
            unknown.append(int(value) if value.isdecimal() else value)
    if unknown:
        shown = few((f"{i} {name}" for i, name in sorted(names.items())), 10)
        raise ConfigError(
            f"no training images have the class {few(map(repr, unknown))}",
            f"there are {len(names)}: {shown}",
        )
    return sorted(set(chosen)) or sorted(names)


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as (H, W, 3) uint8."""
    if image.shape[0] == 1:
        image = image.expand(3, -1, -1)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
