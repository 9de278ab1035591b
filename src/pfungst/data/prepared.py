"""Decode and prepare all images of a set with threads, collecting every problem before anything is
computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from PIL import Image

from pfungst.conditions import Condition, Size, sides
from pfungst.errors import DataError, UnreadableImages, lines
from pfungst.progress import progress_bar
from pfungst.threads import cores

from .decode import Undecodable
from .item import Item, Items

Progress = bool | Callable[[int, int], None]


@dataclass
class Prepared(Items):
    """Images as a model sees them, with the condition under which they were prepared.

    Args:
        images: float32 (N, 3, S, S) in [0, 1].
        condition: how they were prepared.
        items: where they come from, in the same order.
        masks: boolean (N, S, S), all False without a mask; None if masks were not read.
        skipped: (id, reason) of each image left out.
        name: the name of the set.
    """

    images: torch.Tensor
    condition: Condition
    items: list[Item]
    masks: torch.Tensor | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    name: str = ""

    @property
    def shape(self) -> torch.Size:
        """The shape of the images."""
        return self.images.shape

    @property
    def has_mask(self) -> np.ndarray:
        """Whether each item has a mask of its own, shape (N,)."""
        return np.array([i.mask is not None for i in self.items], dtype=bool)

    def __getitem__(
        self, index: int | slice | Sequence[int] | Sequence[bool] | np.ndarray | torch.Tensor
    ) -> Prepared:
        """The chosen images, always as a ``Prepared``: an int gives one of length 1."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} of {len(self)} images")
            index = [int(index)]
        if isinstance(index, slice):
            index = list(range(len(self)))[index]
        chosen = np.asarray(index)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise IndexError(f"a boolean index of shape {chosen.shape} for {len(self)} images")
            chosen = np.flatnonzero(chosen)
        where = torch.from_numpy(chosen.astype(np.int64).reshape(-1))
        return Prepared(
            self.images[where],
            self.condition,
            [self.items[i] for i in where.tolist()],
            None if self.masks is None else self.masks[where],
            list(self.skipped),
            self.name,
        )

    def __iter__(self) -> Iterator[Prepared]:
        return (self[i] for i in range(len(self)))


def resize_mask(mask: np.ndarray, size: Size | None) -> np.ndarray:
    """A mask at the size of the prepared image.

    A pixel belongs to it when at least half of its area does. A defect so thin that nothing would remain
    keeps the pixels that hold at least half of the largest share.

    Args:
        mask: boolean (H, W).
        size: edge in pixels, (height, width), or None to keep the mask.

    Returns:
        Boolean (S, S).
    """
    if size is None or mask.shape == sides(size):
        return mask.copy()
    share = cv2.resize(mask.astype(np.float32), sides(size)[::-1], interpolation=cv2.INTER_AREA)
    level = min(0.5, float(share.max()) / 2) if mask.any() else 0.5
    return share >= max(level, 1e-6)


def run_checked(
    items: Sequence[Item],
    work: Callable[[int], None],
    progress: Progress,
    workers: int | None,
    title: str,
    skip_bad: bool,
) -> list[tuple[int, str]]:
    """Run ``work`` for each index in threads; problems of all items are raised together at the end.

    Returns:
        (index, reason) of each bad item if ``skip_bad``.

    Raises:
        UnreadableImages: some items cannot be decoded and ``skip_bad`` is not set.
        DataError: only masks of another size were found.
    """
    undecodable: dict[int, str] = {}
    mismatched: dict[int, str] = {}
    pool = ThreadPoolExecutor(workers or cores())
    with progress_bar(title, len(items), show=progress is True) as bar:
        try:
            tasks = {pool.submit(work, i): i for i in range(len(items))}
            for done, task in enumerate(as_completed(tasks), 1):
                index = tasks[task]
                try:
                    task.result()
                except Undecodable as e:
                    undecodable[index] = str(e)
                except DataError as e:
                    mismatched[index] = e.message
                bar.advance()
                if callable(progress):
                    progress(done, len(items))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    bad = sorted({**undecodable, **mismatched}.items())
    if bad and not skip_bad:
        if undecodable:
            raise UnreadableImages([(items[i].file, reason) for i, reason in bad])
        raise DataError(
            f"{len(bad)} mask{'s do' if len(bad) > 1 else ' does'} not "
            f"fit:{lines(reason for _, reason in bad)}",
            "make each mask the size of its image, or pass --skip-bad to leave these images out",
        )
    return bad


def prepare_all(
    name: str,
    items: Sequence[Item],
    conditions: Sequence[Condition],
    size: Size | None,
    load: Callable[[Item], tuple[Image.Image, np.ndarray | None]],
    *,
    skip_bad: bool,
    progress: Progress,
    workers: int | None,
    seed: int,
    keep_masks: bool,
) -> list[Prepared]:
    """Load each item once and apply every condition; see ``ImageSet.prepare_many``."""
    images: list[dict[int, torch.Tensor]] = [{} for _ in conditions]
    masks: dict[int, np.ndarray] = {}
    broken = False

    def work(index: int) -> None:
        nonlocal broken
        item = items[index]
        try:
            image, mask = load(item)
        except (Undecodable, DataError):
            broken = True
            raise
        if broken and not skip_bad:
            return  # the result is lost anyway: only look for further problems
        pixels = np.asarray(image)
        for store, condition in zip(images, conditions, strict=True):
            store[index] = condition(pixels, size, key=item.id, seed=seed)
        if not keep_masks:
            return
        shape = (image.height, image.width) if size is None else sides(size)
        masks[index] = np.zeros(shape, bool) if mask is None else resize_mask(mask, size)

    bad = dict(run_checked(items, work, progress, workers, f"preparing {name}", skip_bad))
    kept = [i for i in range(len(items)) if i not in bad]
    if not kept:
        raise DataError(f"{name}: none of the {len(items)} images can be used", "repair or replace them")
    shapes = {tuple(images[0][i].shape) for i in kept}
    if len(shapes) > 1:
        raise DataError(
            f"{name}: the images have {len(shapes)} different sizes and no size was given",
            "give a size, for example 224",
        )
    skipped = [(items[i].id, reason) for i, reason in sorted(bad.items())]
    mask_stack = torch.from_numpy(np.stack([masks[i] for i in kept])) if keep_masks else None
    out = []
    for store, condition in zip(images, conditions, strict=True):
        stack = torch.empty((len(kept), *next(iter(shapes))), dtype=torch.float32)
        for row, i in enumerate(kept):
            stack[row] = store.pop(i)
        out.append(Prepared(stack, condition, [items[i] for i in kept], mask_stack, list(skipped), name))
    return out
