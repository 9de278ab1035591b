"""What ``--dry-run`` says: what the data were recognised as, and what the audit would cost."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pfungst.audit.sources import AUTOMATIC, group_columns
from pfungst.conditions import Condition
from pfungst.data import ImageSet
from pfungst.data.decode import Undecodable, open_image
from pfungst.errors import PfungstWarning, few

T = TypeVar("T")
_HEADERS = 100  # files per set whose header is read for the size
_TIMED = 8  # images that are prepared to know the time
_WITHIN = 1.25  # between a forecast and what the audit takes (benchmarks/forecast.py)


@dataclass(frozen=True)
class Cost:
    """What an audit takes: seconds, bytes of memory and on disk meanwhile, and what of it is left out."""

    seconds: float
    memory: float
    disk: float = 0
    without: Sequence[str] = ()

    def __str__(self) -> str:
        low, high = duration(self.seconds / _WITHIN), duration(self.seconds * _WITHIN)
        disk = f", {amount(self.disk)} on disk meanwhile" if self.disk >= 1e6 else ""
        left_out = f"; without {' and '.join(self.without)}" if self.without else ""
        return f"estimate: {low} to {high}, {amount(self.memory)} of memory{disk}{left_out}"


class Clock:
    """Adds up what an audit will take from parts of it, each tried on a sample.

    Attributes:
        seconds: forecast so far. last: what the last part took.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.seconds, self.last = now, 0.0, 0.0

    def __call__(self, work: Callable[[], T], times: float = 1.0) -> T:
        """The result of work that the audit will do so many times as much of."""
        started = self.now()
        found = work()
        self.last = self.now() - started
        self.seconds += times * self.last
        return found

    def repeated(self, works: Sequence[Callable[[], T]], times: float) -> list[T]:
        """The results of two or more pieces of work of the same kind; `last` is their mean without the first.

        That counts so many times, and once what the first one takes more, when Python imports and compiles.
        """
        found, taken = [], []
        for work in works:
            found.append(self(work, 0))
            taken.append(self.last)
        self.last = sum(taken[1:]) / len(taken[1:])
        self.seconds += times * self.last + max(0.0, taken[0] - self.last)
        return found


def forecast(sets: Sequence[ImageSet], groups: Sequence[str], estimate: Callable[[], object]) -> str:
    """What the data are, and what the audit would cost; only that it cannot be tried where it fails, whatever
    the reason: the model may be anybody's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PfungstWarning)
            told = str(estimate())
    except Exception as error:
        told = f"estimate: none, the audit could not be tried: {error or type(error).__name__}"
    return f"{describe(sets, groups)}\n\n{told}"


def some(rows: np.ndarray, count: int) -> list[int]:
    """Up to `count` of some numbers, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)].tolist()


def describe(sets: Sequence[ImageSet], groups: Sequence[str]) -> str:
    """Classes, splits, groups, masks and sizes of each set, a paragraph each; no pixel is decoded."""
    return "\n\n".join(_one(images, groups) for images in sets)


def _one(images: ImageSet, groups: Sequence[str]) -> str:
    items = images.items
    pairs = Counter((i.split or "no split", i.label or "no label") for i in items)
    splits: dict[str, list[str]] = {}
    for (split, label), count in sorted(pairs.items()):
        splits.setdefault(split, []).append(f"{label} {count}")
    columns = group_columns(items, [g for g in groups if g not in AUTOMATIC])
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


def estimate_preparation(sets: Sequence[ImageSet], conditions: Sequence[Condition], size: Any) -> str:
    """Time and memory of preparing all images, from a few."""
    items = [sets[0].items[i] for i in some(np.arange(len(sets[0])), _TIMED)]
    clock = Clock()
    few = ImageSet(sets[0].name, items)
    found = clock(lambda: few.prepare_many(conditions, size, skip_bad=True), sum(map(len, sets)) / len(items))
    return (
        f"estimate: decoding and preparing all images about {duration(clock.seconds)}, "
        f"{amount(found[0].images[0].nbytes * sum(map(len, sets)))} where they are kept; without the model"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    count, unit = (seconds / 60, "min") if seconds < 5400 else (seconds / 3600, "h")
    return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"


def amount(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
