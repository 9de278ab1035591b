"""Shares of images that a classifier gets right: intervals, falls, and orders of classes that have more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pfungst.measure import limits
from pfungst.measure.intervals import Interval
from pfungst.measure.scores import Array

_DRAWS = 2000
_Z = 1.959964  # of 95 %


def wilson(hits: ArrayLike) -> Interval:
    """Share of True among (N,) with its 95 % interval (Wilson 1927)."""
    found = np.asarray(hits)
    return wilson_of(float(found.mean()), len(found))


def wilson_of(p: float, n: int) -> Interval:
    """A share p of n with its 95 % interval (Wilson 1927): 0 of 36 is 0 to 10 %, not 0 to 0."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def mean_share(shares: Sequence[Interval]) -> Interval:
    """Mean of independent shares; the distances to the ends of their intervals add in squares (MOVER, Zou &
    Donner 2008)."""
    value, low, high = np.array(shares).T
    down, up = (float(np.sqrt(((end - value) ** 2).sum()) / len(value)) for end in (low, high))
    mean = float(value.mean())
    return Interval(mean, *np.clip([mean - down, mean + up], 0, 1).tolist())  # NaN stays


def share_difference(first: Interval, second: Interval) -> Interval:
    """First less second of two independent shares with its 95 % interval (Newcombe 1998, method 10)."""
    change = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(change, change - down, change + up)


def paired_fall(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Interval:
    """Share of True before minus after on the same images, (N,) each, with a paired 95 % bootstrap interval.

    An image's difference is −1, 0 or 1, so the images are drawn by drawing how often each value occurs.
    """
    change = np.asarray(before).astype(int) - np.asarray(after).astype(int)
    n = len(change)
    shares = np.array([(change == v).mean() for v in (-1, 0, 1)])
    draws = np.random.default_rng(seed).multinomial(n, shares / shares.sum(), size=_DRAWS) @ [-1, 0, 1] / n
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(change.mean()), float(low), float(high))


def better_order(labels: Array, predicted: Array) -> tuple[Interval, dict[int, int]] | None:
    """Share of images that another order of classes gets right, and {class: output} in it; None where none is
    clearly better.

    The best assignment of classes to outputs is found on each half of the images and measured on the other,
    so that it is no better by chance. Clearly: intervals apart, by :data:`~pfungst.measure.limits.REORDERED`
    or more, and two classes move (one that is taken for another output is a confusion, not an order).

    Args:
        labels: (N,) class indices. predicted: (N,) outputs.
    """
    from scipy.optimize import linear_sum_assignment

    classes, rows = np.unique(labels, return_inverse=True)
    outputs, columns = np.unique(np.r_[classes, predicted], return_inverse=True)
    columns = columns[len(classes) :]

    def assign(part: Array) -> Array:
        """Column of each class on some images; its own output where that is as good."""
        table = np.zeros((len(classes), len(outputs)))
        np.add.at(table, (rows[part], columns[part]), 1.0)
        table[np.arange(len(classes)), np.searchsorted(outputs, classes)] += 1e-3
        return linear_sum_assignment(table, maximize=True)[1]

    half = np.zeros(len(labels), bool)
    for k in range(len(classes)):
        half[np.flatnonzero(rows == k)[::2]] = True
    hits = np.zeros(len(labels), bool)
    for part in (half, ~half):
        hits[~part] = assign(part)[rows[~part]] == columns[~part]
    here, there = wilson(predicted == labels), wilson(hits)
    best = outputs[assign(np.ones(len(labels), bool))]
    if there.low <= here.high or there.value - here.value < limits.REORDERED or (best != classes).sum() < 2:
        return None
    return there, {int(k): int(output) for k, output in zip(classes, best, strict=True)}
