"""What ``--dry-run`` says: what the data were recognised as, and what the audit would cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.audit.sources import group_columns
from pfungst.conditions import Condition
from pfungst.data import ImageSet
from pfungst.data.decode import Undecodable, open_image
from pfungst.errors import few

_HEADERS = 100  # files per set whose header is read for the size
_TIMED = 8  # images that are prepared to know the time
_FITTED = 32  # training images that a detector is fitted on to know the time


def describe(sets: Sequence[ImageSet], groups: Sequence[str]) -> str:
    """Classes, splits, groups, masks and sizes of each set, a paragraph each; no pixel is decoded."""
    return "\n\n".join(_one(images, groups) for images in sets)


def _one(images: ImageSet, groups: Sequence[str]) -> str:
    items = images.items
    pairs = Counter((i.split or "no split", i.label or "no label") for i in items)
    splits: dict[str, list[str]] = {}
    for (split, label), count in sorted(pairs.items()):
        splits.setdefault(split, []).append(f"{label} {count}")
    columns = group_columns(items, [g for g in groups if g not in ("files", "text")])
    rows = [
        ("classes", few(f"{c} {n}" for c, n in Counter(i.label or "no label" for i in items).most_common())),
        ("splits", "; ".join(f"{split}: {few(counts)}" for split, counts in splits.items())),
        ("groups", "; ".join(f"{name}: {_counts(values)}" for name, values in columns.items()) or "none"),
        ("masks", f"{sum(i.mask is not None for i in items)} of {len(items)} images"),
        ("sizes", _sizes(images)),
        *(("note", note) for note in images.notes),
    ]
    head = f"{images.name}: {images.layout or 'made by Pfungst'}, {len(items)} images"
    return "\n".join([head, *(f"  {name:<8} {text}" for name, text in rows)])


def _counts(values: np.ndarray) -> str:
    return few((f"{v or '(none)'} {n}" for v, n in Counter(values.tolist()).most_common()), 6)


def _sizes(images: ImageSet) -> str:
    found: Counter[str] = Counter()
    step = -(-len(images) // _HEADERS)
    for item in images.items[::step]:
        path = getattr(item.image, "path", item.image)
        try:
            if path is item.image:
                source = path() if callable(path) else path
                size = (open_image(source) if isinstance(source, Path | bytes) else source).size
            else:
                size = item.read().size
            found[f"{size[0]} × {size[1]}"] += 1
        except Undecodable:
            found["unreadable"] += 1
    of = "" if step == 1 else f" (of {sum(found.values())} images)"
    return few(f"{size} {count}" for size, count in found.most_common()) + of


def prepared_few(
    sets: Sequence[ImageSet], conditions: Sequence[Condition], size: Any
) -> tuple[list[Any], float]:
    """A few images of the first set under each condition, and the seconds that all sets would take."""
    normal = [i for i in sets[0].items if i.split == "train" and i.label == "good"][:_FITTED]
    others = [i for i in sets[0].items if i.split == "test"]
    chosen = [*normal, *others[:: -(-len(others) // _TIMED) or 1]] or sets[0].items[:_TIMED]
    started = time.perf_counter()
    found = ImageSet(sets[0].name, chosen).prepare_many(conditions, size, skip_bad=True)
    each = (time.perf_counter() - started) / len(chosen)
    return found, each * sum(map(len, sets))


def estimate_preparation(sets: Sequence[ImageSet], conditions: Sequence[Condition], size: Any) -> str:
    """Time and memory of preparing all images, from a few."""
    found, seconds = prepared_few(sets, conditions, size)
    return (
        f"estimate: decoding and preparing all images about {duration(seconds)}, "
        f"{amount(found[0].images[0].nbytes * sum(map(len, sets)))} where they are kept; without the model"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def amount(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
