"""What ``--dry-run`` says: what the data were recognised as, and what the audit would cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfungst.audit.sources import group_columns
from pfungst.conditions import Condition
from pfungst.data import ImageSet
from pfungst.data.decode import Undecodable, open_image
from pfungst.errors import DataError, few

if TYPE_CHECKING:
    from pfungst.audit.anomaly.config import AnomalyConfig

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


def _prepared(
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
    found, seconds = _prepared(sets, conditions, size)
    return (
        f"estimate: decoding and preparing all images about {_time(seconds)}, "
        f"{_bytes(found[0].images[0].nbytes * sum(map(len, sets)))} where they are kept; without the model"
    )


def estimate_detection(
    sets: Sequence[ImageSet], conditions: Sequence[Condition], config: AnomalyConfig
) -> str:
    """Time and memory of an anomaly audit, from each detector fitted on a few images.

    The lower bound takes the fit for linear in the training images and a score for independent of them, the
    upper one for quadratic and linear.

    Raises:
        DataError: none of the images that are tried can be read.
    """
    (original, _), seconds = _prepared(sets, conditions, config.size)
    tests = original.splits == "test"
    if tests.all() or not tests.any():
        raise DataError(
            f"{sets[0].name}: none of the images tried can be read", "mend them, or try --skip-bad"
        )
    mended = config.mitigate != "none"
    low = high = seconds
    for model in config.model:
        fit, score, explain = _timed(model, original.images[~tests], original.images[tests], config)
        for images in sets:
            n_train = sum(i.split == "train" and i.label == "good" for i in images.items)
            n_test = sum(i.split == "test" for i in images.items)
            more = max(n_train / max(int((~tests).sum()), 1), 1.0)
            fits, scores = config.seeds * (1 + mended), 2 * n_test * config.seeds * (1 + mended) + 350
            rest = n_test * (3 + 3 * mended)
            low += fits * fit * more + scores * score + rest * explain
            high += fits * fit * more**2 + (scores * score + rest * explain) * more
    largest = max(map(len, sets))
    kept = original.images[0].nbytes * largest * (2 + 2 * mended)
    return (
        f"estimate: {_time(low)} to {_time(high)}, of which {_time(seconds)} for the images; at least "
        f"{_bytes(kept)} of memory"
    )


def _timed(model: str, train: Any, test: Any, config: AnomalyConfig) -> tuple[float, float, float]:
    """Seconds of one fit, of the score of one image and of its explanation."""
    from pfungst.anomaly import detector_from_spec

    detector = detector_from_spec(model, seed=config.seed, device=config.device)
    times = [time.perf_counter()]
    detector.fit(train)
    times.append(time.perf_counter())
    detector.anomaly_score(test)
    times.append(time.perf_counter())
    if detector.explains:
        detector.explain(test)
    times.append(time.perf_counter())
    fit, score, explain = np.diff(times).tolist()
    return fit, score / len(test), explain / len(test)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
