"""The images of a similarity audit: opened, checked, and embedded under every condition in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.conditions import Condition
from pfungst.data import ImageSet, Item
from pfungst.data.decode import Undecodable
from pfungst.data.imagenet_classes import title
from pfungst.encoders import Encoder
from pfungst.errors import ConfigError, DataError, UnreadableImages, few
from pfungst.features import Store, Workers, batches, combined
from pfungst.suggest import suggest
from pfungst.threads import cores

_BATCH = 64  # images that are embedded at a time
KEPT = 1 << 30  # bytes of prepared images that are kept for the sweep


def open_set(config: SimilarityConfig, given: ImageSet | None = None) -> ImageSet:
    """The images to audit, `given` or of `config`, with a label each; WordNet ids get names.

    Raises:
        DataError: fewer than two classes with two images, or several sets and no category.
    """
    if given is not None:
        images = given
    elif config.images == "synthetic":
        from pfungst.datasets.tagged import parting_digits

        images = parting_digits(config.seed)
    else:
        assert config.images is not None
        sets = config.open(config.images, config.labels, config.category)
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
    if unknown := set(config.classes) - {item.label for item in labelled}:
        labels = dict.fromkeys(item.label or "" for item in labelled)
        raise ConfigError(f"no image has the label {min(unknown)!r}", suggest(min(unknown), labels, "labels"))
    if config.classes:
        labelled = [item for item in labelled if item.label in config.classes]
    labelled = [replace(item, label=title(item.label or "")) for item in labelled]
    if config.limit is not None and config.limit < len(labelled):
        chosen = np.random.default_rng(config.seed).choice(len(labelled), config.limit, replace=False)
        notes.append(f"{config.limit} of {len(labelled)} images were drawn at random")
        labelled = [labelled[i] for i in sorted(chosen)]
    return images.of(labelled, notes)


@dataclass
class Source:
    """Images by condition, prepared when they are wanted; those of a small set only once.

    Attributes:
        items: the images that can be used, in order.
        skipped: (id, reason) of those that cannot.
        workers, ray: who embeds them, as :func:`pfungst.features.run` takes it.
    """

    items: list[Item]
    conditions: dict[str, Condition]
    size: int
    skipped: list[tuple[str, str]]
    workers: Workers = 0
    ray: str | None = None

    def __post_init__(self) -> None:
        bytes_needed = len(self.items) * len(self.conditions) * 3 * self.size**2 * 4
        self._kept: dict[tuple[int, str], Tensor] | None = {} if bytes_needed <= KEPT else None

    @classmethod
    def open(cls, images: ImageSet, conditions: dict[str, Condition], size: int, skip_bad: bool) -> Source:
        """Decode every image once if some may be bad, to leave them out.

        Raises:
            DataError: none can be used.
        """
        items = list(images.items)
        if not skip_bad:
            return cls(items, conditions, size, [])
        one = cls(items, dict(list(conditions.items())[:1]), size, [])
        one._kept = None
        found = [(b.rows, b.problems) for b in batches(one.load, range(len(items)), _BATCH, threads=cores())]
        good = [items[row] for rows, _ in found for row in rows]
        if not good:
            raise DataError(f"none of the {len(items)} images can be used", "repair or replace them")
        return cls(good, conditions, size, [(items[r].id, why) for _, bad in found for r, why in bad])

    def keys(self) -> dict[str, list[bytes]]:
        """What a prepared image depends on, by condition: the file or content, the condition and the size."""
        known = [(item.id, item.identity()) for item in self.items]
        steps = {name: combined(condition, self.size) for name, condition in self.conditions.items()}
        return {name: [bytes.fromhex(combined(*k, step)) for k in known] for name, step in steps.items()}

    def state(self) -> str:
        """Names the images, what is known of them and how they are prepared, as they are now."""
        return combined(self.keys(), [(i.label, i.split, i.groups) for i in self.items])

    def load(self, row: int, names: Sequence[str] | None = None) -> tuple[None, dict[str, Tensor]]:
        """An image by number, (3, S, S) by condition; raises UnreadableImages."""
        kept = {} if self._kept is None else self._kept
        names = list(self.conditions) if names is None else names
        found = {name: kept[row, name] for name in names if (row, name) in kept}
        if len(found) < len(names):
            item = self.items[row]
            try:
                pixels = np.asarray(item.read())
            except Undecodable as error:
                raise UnreadableImages([(item.file, str(error))]) from None
            found |= {n: self.conditions[n](pixels, self.size, key=item.id) for n in names if n not in found}
            if self._kept is not None:
                self._kept |= {(row, name): image for name, image in found.items()}
        return None, found

    def pick(
        self, index: Sequence[int], names: Sequence[str] | None = None, size: int | None = None
    ) -> dict[str, Tensor]:
        """Some images by number, under all conditions or those named, at the encoder's size or another."""
        part = ImageSet("images", [self.items[i] for i in index])
        names = list(self.conditions) if names is None else names
        found = part.prepare_many([self.conditions[n] for n in names], size or self.size, masks=False)
        return {name: p.images for name, p in zip(names, found, strict=True)}


def embed(
    encoder: Encoder,
    source: Source,
    cache: Path | None,
    device: str,
    advance: Callable[[int], object] = int,
) -> dict[str, np.ndarray]:
    """Representations (N, K) by condition; those in the cache are not computed.

    Raises:
        InputError: representations that are not finite or change their width; the images are named.
    """
    keys = source.keys()
    store = Store(None if cache is None else cache / encoder.key())
    names = [name for name, known in keys.items() if (store.find(known) < 0).any()]
    return encoder.rows(
        store,
        keys,
        partial(source.load, names=names),
        _BATCH,
        lambda row: source.items[row].id,
        advance,
        device=device,
        workers=0 if source.workers == "auto" and source._kept is not None else source.workers,
        threads=cores(),
        ray=source.ray,
    )
