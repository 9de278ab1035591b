"""Shares of images that a classifier gets right: intervals, falls, and orders of classes that have more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from pfungst.measure import limits
from pfungst.measure.intervals import Interval
from pfungst.measure.scores import Array


def wilson(hits: ArrayLike, level: float = 0.95) -> Interval:
    """Share of True among (N,) with its interval (Wilson 1927)."""
    found = np.asarray(hits)
    return wilson_of(float(found.mean()) if len(found) else math.nan, len(found), level)


def wilson_of(p: float, n: int, level: float = 0.95) -> Interval:
    """A share p of n with its interval (Wilson 1927): 0 of 36 is 0 to 10 %, not 0 to 0."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = _z(level)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def above_chance(low: float, chance: float) -> bool:
    """Whether a model is shown to know its task: lower end of an accuracy or AUROC against chance.

    It must lie :data:`~pfungst.measure.limits.ABOVE_CHANCE` of the way from chance to 1 above it: an interval
    that just excludes chance is found by one untrained network in forty.
    """
    return low >= chance + limits.ABOVE_CHANCE * (1 - chance)


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def mean_share(shares: Sequence[Interval]) -> Interval:
    """Mean of independent shares with its interval."""
    found = mean_change(shares)
    return Interval(found.value, *np.clip(found[1:], 0, 1).tolist())  # NaN stays


def mean_change(changes: Sequence[Interval]) -> Interval:
    """Mean of independent estimates; distances to their ends add in squares (MOVER, Zou & Donner 2008)."""
    value, low, high = np.array(changes).T
    down, up = (float(np.sqrt(((end - value) ** 2).sum()) / len(value)) for end in (low, high))
    mean = float(value.mean())
    return Interval(mean, mean - down, mean + up)


def share_difference(first: Interval, second: Interval, correlation: float = 0.0) -> Interval:
    """First less second of two shares with its interval.

    Args:
        first, second: each with its interval, all of one level.
        correlation: of the two; 0 for independent ones (Newcombe 1998a, method 10), see
            :func:`paired_difference` for others.
    """
    change = first.value - second.value
    ends = (
        (first.value - first.low, second.high - second.value),
        (
            first.high - first.value,
            second.value - second.low,
        ),
    )
    down, up = (math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b)) for a, b in ends)
    return Interval(change, change - down, change + up)


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """Share of True in `first` less that in `second` on the same images, (N,) each (Newcombe 1998b, method
    10): the correlation of the answers narrows the interval, and where all agree it still has a width."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    n, both, neither = len(a), int((a & b).sum()), int((~a & ~b).sum())
    product: float = both * neither - int((a & ~b).sum()) * int((~a & b).sum())
    if product > 0:
        product = max(product - n / 2, 0.0)  # continuity
    spread = math.sqrt(int(a.sum()) * int((~a).sum()) * int(b.sum()) * int((~b).sum()))
    return share_difference(wilson(a, level), wilson(b, level), product / spread if spread else 0.0)


def auroc_interval(auroc: float, abnormal: int, normal: int, level: float = 0.95) -> Interval:
    """An AUROC with an interval that has a width also at 0 and 1 (Newcombe 2006, method 5).

    Its ends are the θ for which the AUROC lies z standard errors away, by Hanley and McNeil's variance with
    the mean of the two numbers of images.
    """
    if not abnormal or not normal or math.isnan(auroc):
        return Interval(auroc, math.nan, math.nan)
    z, more = _z(level), (abnormal + normal) / 2 - 1

    def away(theta: float) -> float:
        wide = 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(theta - auroc) - z * math.sqrt(theta * (1 - theta) * wide / (abnormal * normal))

    ends = []
    for outer in (0.0, 1.0):
        inside, outside = auroc, outer  # not away, away
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if away(middle) > 0 else (middle, outside)
        ends.append(outside)
    return Interval(auroc, *ends)


def f1_interval(found: ArrayLike, false: ArrayLike, level: float = 0.95) -> Interval:
    """F1 with an interval from those of its two shares: abnormal images that were found, (P,), and normal
    ones that were flagged, (N,); their distances add in squares (MOVER)."""
    p, n = len(np.asarray(found)), len(np.asarray(false))
    tpr, fpr = wilson(found, level), wilson(false, level)

    def f1(tp: float, fp: float) -> float:
        return 2 * p * tp / (p * tp + p + n * fp) if p else math.nan

    value = f1(tpr.value, fpr.value)
    down = math.hypot(value - f1(tpr.low, fpr.value), value - f1(tpr.value, fpr.high))
    up = math.hypot(f1(tpr.high, fpr.value) - value, f1(tpr.value, fpr.low) - value)
    return Interval(value, max(0.0, value - down), min(1.0, value + up))


def better_order(labels: Array, predicted: Array) -> tuple[Interval, dict[int, int]] | None:
    """Share of images that another order of classes gets right, and {class: output}; None if none is better.

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
