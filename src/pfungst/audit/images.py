"""The images of a classifier audit with their class indices, prepared one by one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.data.decode import Undecodable
from pfungst.data.prepared import resize_mask
from pfungst.errors import UnreadableImages
from pfungst.features import combined


class Labelled:
    """(id, image, class index) of items under a condition, as feature extraction takes them."""

    def __init__(self, items: Sequence[Item], labels: Sequence[int], condition: Condition, size: int) -> None:
        self.items, self.labels, self.condition, self.size = list(items), list(labels), condition, size
        self.ids = [item.id for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[str, Tensor, int]:
        return self.ids[row], self._read(self.items[row]), self.labels[row]

    def under(self, condition: Condition) -> Labelled:
        """The same images under another condition."""
        return Labelled(self.items, self.labels, condition, self.size)

    def identity(self, row: int) -> tuple[object, ...]:
        """What the features of an image and its label depend on, beside the model."""
        return self.items[row].identity(), self.condition.identity(), self.size, self.labels[row]

    def _read(self, item: Item) -> Tensor:
        try:
            return self.condition(item.read(), self.size, key=item.id)
        except Undecodable as error:
            raise UnreadableImages([(item.file, str(error))]) from None

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id_: row for row, id_ in enumerate(self.ids)}

    def image(self, id_: str) -> Tensor:
        """The image of an identifier, (3, S, S)."""
        return self._read(self.items[self._rows[id_]])

    def mask(self, id_: str, folder: Path | None) -> np.ndarray | None:
        """The object's mask, (S, S) boolean, from the data set or a folder of masks; None without one."""
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
        """Names these images as they are now, those that are there, and their masks."""
        found = []
        for row, item in enumerate(self.items):
            with suppress(OSError):
                found.append((item.id, self.identity(row), self._masked(item, masks).mask_identity()))
        return combined(found)


def colour(images: Tensor) -> Tensor:
    """(…, C, H, W) of one channel or three, with three."""
    return images.expand(*images.shape[:-3], 3, -1, -1) if images.shape[-3] == 1 else images


def to_uint8(images: Tensor) -> np.ndarray:
    """(…, C, H, W) in [0, 1], of one channel or three, as (…, H, W, 3) uint8."""
    return (colour(images).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()
