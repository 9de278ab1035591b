"""The images of a similarity audit: opened, checked, and embedded under every condition in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.conditions import RESIZERS, Condition
from pfungst.conditions.logo import Logo
from pfungst.data import ImageSet, Item, open_images
from pfungst.encoders import EmbeddingCache, Encoder
from pfungst.errors import ConfigError, DataError, InputError, few

ORIGINAL = "original"
_CHUNK = 256  # images in memory at a time
_KEEP = 1 << 30  # bytes of prepared images that are kept for the sweep


def open_set(config: SimilarityConfig) -> ImageSet:
    """The images to audit, with a label each.

    Raises:
        DataError: fewer than two classes with two images, or several sets and no category.
    """
    if config.images == "synthetic":
        from pfungst.data.tagged import parting_digits

        images = parting_digits(config.seed)
    else:
        assert config.images is not None
        sets = open_images(config.images, config.category, label_column=config.labels)
        if len(sets) > 1:
            names = few(s.name for s in sets)
            raise DataError(
                f"{config.images} holds {len(sets)} sets of images: {names}", "choose one with --category"
            )
        images = sets[0]
    items = list(images.items)
    if any(config.labels in item.groups for item in items):
        items = [replace(item, label=item.groups.get(config.labels) or None) for item in items]
    labelled = [item for item in items if item.label]
    if not labelled:
        known = ", ".join(dict.fromkeys(c for item in items for c in item.groups)) or "none"
        raise DataError(f"no image of {config.images} has a label", f"choose a column with --labels: {known}")
    notes = list(images.notes)
    if len(labelled) < len(items):
        notes.append(f"{len(items) - len(labelled)} images have no label and were left out")
    if config.limit is not None and config.limit < len(labelled):
        chosen = np.random.default_rng(config.seed).choice(len(labelled), config.limit, replace=False)
        notes.append(f"{config.limit} of {len(labelled)} images were drawn at random")
        labelled = [labelled[i] for i in sorted(chosen)]
    return ImageSet(images.name, labelled, notes)


def conditions_for(encoder: Encoder, texts: Sequence[str]) -> dict[str, Condition]:
    """The encoder's own preparation under "original", and with each condition added.

    A text without a resizer is added to the encoder's preparation; one with a resizer replaces it.

    Raises:
        ConfigError: a condition cannot be read, or a logo is larger than the image.
    """
    own = encoder.preprocessing.condition
    found = {ORIGINAL: Condition.parse(own)}
    for text in texts:
        names = [part.partition(":")[0].strip().lower() for part in text.split("+")]
        condition = Condition.parse(text if any(n in RESIZERS for n in names) else f"{own}+{text}")
        name = "+".join(_short(part) for part in text.split("+"))
        if name in found:
            raise ConfigError(f"the condition {name!r} is given twice", "name each condition once")
        found[name] = condition
        logo_box(condition, encoder.size)
    return found


def _short(part: str) -> str:
    """The name of a condition in tables: a logo without its folder and options."""
    name, colon, value = part.strip().partition(":")
    return f"{name}:{Path(value.split(',')[0]).stem}" if name == "logo" else f"{name}{colon}{value}"


def logo_box(condition: Condition, size: int) -> tuple[int, int, int, int] | None:
    """Where a logo pasted after resizing lies: top, left, bottom, right; None without one."""
    resized = False
    for step in condition.steps:
        resized = resized or step.name in RESIZERS
        if isinstance(step.value, Logo) and resized:
            return step.value.box(size, size)
    return None


@dataclass
class Source:
    """Prepared images by condition, in chunks; a small set is prepared only once.

    Attributes:
        items: the images that can be used, in order.
        skipped: (id, reason) of those that cannot.
    """

    items: list[Item]
    conditions: dict[str, Condition]
    size: int
    skipped: list[tuple[str, str]]

    def __post_init__(self) -> None:
        bytes_needed = len(self.items) * len(self.conditions) * 3 * self.size**2 * 4
        self._kept: dict[int, dict[str, Tensor]] | None = {} if bytes_needed <= _KEEP else None

    @classmethod
    def open(cls, images: ImageSet, conditions: dict[str, Condition], size: int, skip_bad: bool) -> Source:
        """Check every image once.

        Raises:
            UnreadableImages: some cannot be decoded and `skip_bad` is not set.
        """
        items, skipped = list(images.items), []
        if skip_bad:
            good = []
            for start in range(0, len(items), _CHUNK):
                part = ImageSet(images.name, items[start : start + _CHUNK])
                prepared = part.prepare(next(iter(conditions.values())), size, masks=False, skip_bad=True)
                good += prepared.items
                skipped += prepared.skipped
            items = good
        return cls(items, conditions, size, skipped)

    def chunks(self) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Slices of the items with their images (n, 3, S, S) by condition."""
        for start in range(0, len(self.items), _CHUNK):
            where = slice(start, min(start + _CHUNK, len(self.items)))
            if self._kept is not None and start in self._kept:
                yield where, self._kept[start]
                continue
            images = self.pick(range(where.start, where.stop))
            if self._kept is not None:
                self._kept[start] = images
            yield where, images

    def pick(
        self, index: Sequence[int], names: Sequence[str] | None = None, size: int | None = None
    ) -> dict[str, Tensor]:
        """Some images by number, under all conditions or those named, at the encoder's size or another."""
        part = ImageSet("images", [self.items[i] for i in index])
        names = list(self.conditions) if names is None else names
        found = part.prepare_many([self.conditions[n] for n in names], size or self.size, masks=False)
        return {name: p.images for name, p in zip(names, found, strict=True)}


def embed(
    encoder: Encoder, source: Source, cache: Path | None, device: str, advance: object = None
) -> dict[str, np.ndarray]:
    """Representations (N, K) by condition.

    Raises:
        InputError: representations that are not finite or change their width; the images are named.
    """
    store = None if cache is None else EmbeddingCache(cache)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in source.conditions}
    for where, images in source.chunks():
        for name, x in images.items():
            try:
                rows[name].append(encoder.encode(x, device=device, cache=store).numpy())
            except InputError as error:
                first, last = source.items[where.start].id, source.items[where.stop - 1].id
                raise InputError(
                    f"{error.message} (between {first} and {last}, {name})", error.remedy
                ) from None
        if callable(advance):
            advance(where.stop - where.start)
    widths = sorted({part.shape[1] for parts in rows.values() for part in parts})
    if len(widths) > 1:
        raise InputError(
            f"{encoder.name} gives representations of changing width ({widths})",
            "pool the features so that every image has the same number of values",
        )
    return {name: np.concatenate(parts) for name, parts in rows.items()}
