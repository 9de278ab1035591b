"""Images with what is known about them, not yet decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from pfungst.conditions import Condition, Size, sides
from pfungst.errors import DataError

from .decode import MAX_PIXELS, Undecodable
from .item import Item, Items
from .prepared import Prepared, Progress, prepare_all, resize_mask, run_checked


class ImageSet(Items):
    """A named, ordered set of items.

    Args:
        name: the category or the name of the folder or file.
        items: the items; their ids must be unique.
        notes: what a reader should know about the set, for example defects without a mask.
        layout: what the data were recognised as, "" for those made in memory.

    Raises:
        DataError: two items have the same id.
    """

    def __init__(self, name: str, items: Sequence[Item], notes: Sequence[str] = (), layout: str = "") -> None:
        self.name = name
        self.items = list(items)
        self.notes = list(notes)
        self.layout = layout
        seen: set[str] = set()
        double = [i.id for i in self.items if i.id in seen or seen.add(i.id)]  # type: ignore[func-returns-value]
        if double:
            raise DataError(
                f"{name}: {len(double)} images are listed twice, the first: {double[0]}",
                "list each image once",
            )

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def __repr__(self) -> str:
        splits = {
            str(s): sum(i.split == s for i in self.items) for s in dict.fromkeys(i.split for i in self.items)
        }
        return f"ImageSet({self.name!r}, {len(self)} images, splits {splits})"

    def select(
        self,
        split: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        where: Callable[[Item], bool] | None = None,
        limit: int | None = None,
        **groups: str,
    ) -> ImageSet:
        """The items that meet every condition, in order.

        Args:
            split: one split or several.
            label: one label or several.
            where: any test of an item.
            limit: at most this many, the first ones.
            **groups: a group column and its value, for example ``session="exp1"``.
        """

        def among(value: str | None, wanted: str | Sequence[str] | None) -> bool:
            return wanted is None or (value == wanted if isinstance(wanted, str) else value in wanted)

        chosen = [
            i
            for i in self.items
            if among(i.split, split)
            and among(i.label, label)
            and all(i.groups.get(k) == v for k, v in groups.items())
            and (where is None or where(i))
        ]
        return self.of(chosen if limit is None else chosen[:limit], self.notes)

    def of(self, items: Sequence[Item], notes: Sequence[str]) -> ImageSet:
        """Other items, or the same changed, under the same name."""
        return ImageSet(self.name, items, notes, self.layout)

    def check(
        self, max_pixels: int = MAX_PIXELS, progress: Progress = False, workers: int | None = None
    ) -> None:
        """Decode every image and mask once, and complain about all of them together.

        Raises:
            UnreadableImages: some cannot be decoded.
            DataError: a mask has another size than its image.
        """

        def look(index: int) -> None:
            load_checked(self.items[index], max_pixels, masks=True)

        run_checked(self.items, look, progress, workers, f"checking {self.name}", skip_bad=False)

    def prepare(self, condition: Condition | str, size: Size | None = 224, **options: object) -> Prepared:
        """Decode and prepare all images under one condition; options as for ``prepare_many``."""
        return self.prepare_many([condition], size, **options)[0]  # type: ignore[arg-type]

    def prepare_many(
        self,
        conditions: Sequence[Condition | str],
        size: Size | None = 224,
        *,
        masks: bool = True,
        skip_bad: bool = False,
        max_pixels: int = MAX_PIXELS,
        progress: Progress = False,
        workers: int | None = None,
        seed: int = 0,
    ) -> list[Prepared]:
        """Prepare all images under several conditions, decoding each image once.

        Args:
            conditions: conditions or their texts.
            size: edge S in pixels, (height, width), or None to keep the size of the images, which must then
                agree.
            masks: read the masks too and check their size.
            skip_bad: leave out images that cannot be used and list them in ``Prepared.skipped``.
            max_pixels: larger images are refused before decoding.
            progress: True for a progress bar, or a function called with (done, total).
            workers: threads; all cores by default.
            seed: changes what random steps (noise) draw.

        Returns:
            One ``Prepared`` per condition, with the same items.

        Raises:
            UnreadableImages: some images or masks cannot be decoded; all are named.
            DataError: the set is empty, a mask has another size than its image, or sizes differ with
                ``size=None``.
        """
        parsed = [Condition.parse(c) for c in conditions]
        if not self.items:
            raise DataError(
                f"{self.name}: there are no images to prepare", "check the split and label asked for"
            )
        return prepare_all(
            self.name,
            self.items,
            parsed,
            size,
            lambda item: load_checked(item, max_pixels, masks),
            skip_bad=skip_bad,
            progress=progress,
            workers=workers,
            seed=seed,
            keep_masks=masks,
        )

    def masks(self, size: Size | None = 224, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
        """All masks as a boolean tensor (N, S, S), all False where an item has none (see ``resize_mask``).

        Raises:
            UnreadableImages: some masks cannot be decoded.
            DataError: ``size`` is None and the sizes differ.
        """
        found: dict[int, np.ndarray] = {}

        def look(index: int) -> None:
            item = self.items[index]
            mask = item.read_mask(max_pixels)
            if mask is None and size is None:
                mask = np.zeros(np.asarray(item.read(max_pixels)).shape[:2], bool)
            assert mask is not None or size is not None
            found[index] = np.zeros(sides(size), bool) if mask is None else resize_mask(mask, size)  # type: ignore[arg-type]

        run_checked(self.items, look, False, None, "reading masks", skip_bad=False)
        if len({m.shape for m in found.values()}) > 1:
            raise DataError(f"{self.name}: the masks have different sizes", "give a size")
        return torch.from_numpy(np.stack([found[i] for i in range(len(self.items))]))


def load_checked(item: Item, max_pixels: int, masks: bool) -> tuple[Image.Image, np.ndarray | None]:
    """The image and mask of an item; raises ``Undecodable`` (or ``DataError`` for a mask of another size)."""
    image = item.read(max_pixels)
    if not masks or item.mask is None:
        return image, None
    try:
        mask = item.read_mask(max_pixels)
    except Undecodable as e:
        raise Undecodable(f"its mask {item.mask_file}: {e}") from None
    if mask is not None and mask.shape != (image.height, image.width):
        raise DataError(
            f"{item.mask_file} has {mask.shape[1]} × {mask.shape[0]} pixels, its image {item.file} has "
            f"{image.width} × {image.height}"
        )
    return image, mask
