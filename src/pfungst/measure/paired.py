"""Two models on the same images, and the same model on two sets of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure.intervals import Interval, interval, resample_weights
from pfungst.measure.scores import Array

Statistic = Callable[[Array], Array]
"""Weights (R, N) of images → values (R,)."""


class McNemar(NamedTuple):
    """Images that two models answer differently.

    Attributes:
        lost: right before, wrong after. gained: the other way round.
        p: of so uneven numbers if neither were likelier: exact, two-sided.
    """

    lost: int
    gained: int
    p: float


def mcnemar(before: ArrayLike, after: ArrayLike) -> McNemar:
    """McNemar's exact test of whether each image (N,) was answered right (McNemar 1947).

    Raises:
        InputError: not as many answers before as after.
    """
    from scipy.stats import binomtest

    a, b = np.asarray(before, bool), np.asarray(after, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"answers of shapes {a.shape} and {b.shape}", "pass the same images in one order")
    lost, gained = int((a & ~b).sum()), int((~a & b).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p)


def change(
    before: Statistic,
    after: Statistic,
    strata: ArrayLike,
    others: ArrayLike | None = None,
    levels: tuple[float, ...] = (0.95,),
    resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """after − before with percentile bootstrap intervals.

    Args:
        before, after: of the weights of images. strata: (N,) images are drawn within equal values.
        others: strata (M,) of the images of `after` where they are others; by default both are of the same
            images, which are drawn together.
        levels: of the intervals. seed: of the draws.

    Returns:
        An interval for each level.
    """
    first = resample_weights(strata, resamples, seed)
    second = first if others is None else resample_weights(others, resamples, seed + 1)
    draws = after(second) - before(first)
    ones = [np.ones((1, w.shape[1])) for w in (first, second)]
    value = float(after(ones[1])[0] - before(ones[0])[0])
    return [interval(value, draws, level) for level in levels]


def class_balanced(right: ArrayLike, labels: ArrayLike) -> Statistic:
    """Mean over the classes of the share of right answers, of images (N,)."""
    hits = np.asarray(right, np.float64)
    _, code = np.unique(np.asarray(labels), return_inverse=True)
    members = np.eye(code.max() + 1)[code]

    def statistic(weights: Array) -> Array:
        total = weights @ members
        with np.errstate(invalid="ignore"):
            return np.nanmean(((weights * hits) @ members) / total, axis=1)

    return statistic


class Shift(NamedTuple):
    """How far a quantity of new images lies from that of others.

    Attributes:
        distance: largest difference of the two distribution functions, 0 to 1 (Kolmogorov, Smirnov); of
            words half the sum of the differences of their shares (total variation).
        p: of so large a distance by chance.
        before, after: medians; NaN for words.
    """

    distance: float
    p: float
    before: float
    after: float


def shift(before: ArrayLike, after: ArrayLike) -> Shift:
    """Two samples of numbers, by the Kolmogorov–Smirnov test, or of words, by a permutation test of the total
    variation distance; values that are not finite are left out.

    Raises:
        InputError: one of the samples is empty.
    """
    from scipy.stats import ks_2samp

    a, b = np.asarray(before), np.asarray(after)
    words = a.dtype.kind in "US" or b.dtype.kind in "US"
    if not words:
        a, b = (x[np.isfinite(x)].astype(np.float64) for x in (a, b))
    if not len(a) or not len(b):
        raise InputError(f"samples of {len(a)} and {len(b)} values", "give some of both")
    if not words:
        found = ks_2samp(a, b)
        return Shift(float(found.statistic), float(found.pvalue), float(np.median(a)), float(np.median(b)))
    _, code = np.unique(np.concatenate([a, b]), return_inverse=True)
    table = np.eye(code.max() + 1)[code]
    distance = _total_variation(table[: len(a)], table[len(a) :])
    rng, least = np.random.default_rng(0), 0
    for _ in range(_PERMUTATIONS):
        mixed = table[rng.permutation(len(table))]
        least += _total_variation(mixed[: len(a)], mixed[len(a) :]) >= distance - 1e-12
    return Shift(distance, (least + 1) / (_PERMUTATIONS + 1), float("nan"), float("nan"))


_PERMUTATIONS = 1999


def _total_variation(a: Array, b: Array) -> float:
    return float(np.abs(a.mean(0) - b.mean(0)).sum() / 2)
