"""Whether a class is told by where its images come from: what is left of the evidence within one value.

No intervention on the pixels can change the hospital that sent a file. What can be asked is whether the
evidence still tells the class where the column cannot: between images of the same value (stratified AUROC;
van Elteren 1960).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pfungst.errors import InputError
from pfungst.measure import Interval, interval

UNITS = 300  # of the class and of the others, drawn: comparisons go with their product
_PERMUTATIONS = 4999
_RESAMPLES = 1000
_AT_ONCE = 100
_FEWEST = 30  # pairs of one value, and units on each side of them: with fewer nothing is left to compare


@dataclass(frozen=True)
class Told:
    """What a column tells a model of a class.

    Attributes:
        value: that most speaks for the class: of the largest surplus of its images.
        share: of the images that have this value. inside, outside: share of the class among them, and among
            the other images.
        pooled: AUROC of the evidence, class against all others. within: between images of the same value.
        fall: of the first to the second, 95 % bootstrap over units.
        pairs: share of all pairs (class, other) that have the same value.
        n: units compared, such as patients.
        p: of a fall as large where the evidence is independent of the column given the label (permutation,
            one-sided).
    """

    value: str
    share: float
    inside: float
    outside: float
    pooled: float
    within: float
    fall: Interval
    pairs: float
    n: int
    p: float


def told(
    evidence: np.ndarray,
    own: np.ndarray,
    values: np.ndarray,
    units: np.ndarray | None = None,
    seed: int = 0,
) -> Told | None:
    """What a column tells of a class, or None where too few of its values have images of both sides.

    Args:
        evidence: (N,) for the class. own: (N,) boolean, of the class. values: (N,) text, "" for unknown.
        units: (N,) of what is not independent, such as patients: each counts once on each side, by its mean
            evidence and its commonest value; all images by default.
        seed: of what is drawn.

    Raises:
        InputError: evidence that is not finite.
    """
    if not np.isfinite(evidence).all():
        bad = int((~np.isfinite(evidence)).sum())
        raise InputError(
            f"{bad} of {len(evidence)} values of evidence are not finite", "leave these images out"
        )
    known = np.asarray(values) != ""
    names, code = np.unique(np.asarray(values)[known], return_inverse=True)
    own_ = np.asarray(own, bool)[known]
    who = np.arange(int(known.sum())) if units is None else np.asarray(units)[known]
    _, cell, size = np.unique(
        np.column_stack([np.unique(who, return_inverse=True)[1], own_]),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    cell = cell.ravel()
    score = np.bincount(cell, np.asarray(evidence, float)[known]) / size
    # a unit with several values counts with its commonest one
    votes = np.zeros((len(size), len(names)))
    np.add.at(votes, (cell, code), 1)
    group, side = votes.argmax(1), np.zeros(len(size), bool)
    side[cell] = own_
    rng = np.random.default_rng(seed)
    first, second = (np.sort(rng.permutation(np.flatnonzero(s))[:UNITS]) for s in (side, ~side))
    a, b = group[first], group[second]
    same = a[:, None] == b[None]
    if same.sum() < _FEWEST or min(same.any(1).sum(), same.any(0).sum()) < _FEWEST // 3 or same.all():
        return None
    s, t = score[first][:, None], score[second][None]
    order = (s > t) + 0.5 * (s == t)
    pooled, within = float(order.mean()), float(order[same].mean())
    return Told(
        **_value(names, code, own_),
        pooled=pooled,
        within=within,
        fall=_fall(order, same, rng),
        pairs=float(same.mean()),
        n=len(first) + len(second),
        p=_by_chance(order, a, b, len(names), within, rng),
    )


def _value(names: np.ndarray, code: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    sizes, hits = np.bincount(code), np.bincount(code, own)
    most = int(np.argmax(hits - own.mean() * sizes))
    rest = max(len(code) - int(sizes[most]), 1)
    return {
        "value": str(names[most]),
        "share": float(sizes[most] / len(code)),
        "inside": float(hits[most] / sizes[most]),
        "outside": float((own.sum() - hits[most]) / rest),
    }


def _fall(order: np.ndarray, same: np.ndarray, rng: np.random.Generator) -> Interval:
    drawn = [rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float) for n in order.shape]
    of = lambda pairs: ((drawn[0] @ pairs) * drawn[1]).sum(1)
    equal = of(same.astype(float))
    pooled = of(order) / (order.shape[0] * order.shape[1])
    kept = equal > 0
    falls = pooled[kept] - of(order * same)[kept] / equal[kept]
    return interval(float(order.mean() - order[same].mean()), falls)


def _by_chance(
    order: np.ndarray, a: np.ndarray, b: np.ndarray, count: int, within: float, rng: np.random.Generator
) -> float:
    """Share of the permutations of the column within each side that leave as little within values."""
    codes, low, done = np.arange(count), 0, 0
    total = float((np.bincount(a, minlength=count) * np.bincount(b, minlength=count)).sum())
    wins = order.astype(np.float32)
    while done < _PERMUTATIONS:
        n = min(_AT_ONCE, _PERMUTATIONS - done)
        left = rng.permuted(np.tile(a, (n, 1)), axis=1)
        right = rng.permuted(np.tile(b, (n, 1)), axis=1)
        hot = (right.T[:, :, None] == codes).astype(np.float32)
        sums = (wins @ hot.reshape(len(b), -1)).reshape(len(a), n, count)
        found = np.take_along_axis(sums, left.T[:, :, None], 2)[:, :, 0].sum(0) / total
        low += int((found <= within + 1e-9).sum())
        done += n
    return (1 + low) / (1 + done)
