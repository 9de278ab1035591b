"""Does a model do worse on some of the images than on the others of the same classes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure import limits
from pfungst.measure.intervals import Interval, interval
from pfungst.measure.scores import Array


@dataclass(frozen=True)
class SubgroupFall:
    """Accuracy inside and outside a group, with the same mix of classes on both sides.

    Attributes:
        inside, outside: accuracies, weighted alike over `classes`.
        fall: outside − inside, with its bootstrap interval over units.
        p: two-sided, by permutation of the group among the units of each class.
        n, others: images inside and outside, of `classes`.
        classes: those that are compared: with at least `least` images on either side.
    """

    inside: float
    outside: float
    fall: Interval
    p: float
    n: int
    others: int
    classes: tuple[str, ...]


def subgroup_fall(
    correct: ArrayLike,
    labels: ArrayLike,
    inside: ArrayLike,
    units: ArrayLike | None = None,
    least: int = int(limits.TEST_IMAGES),
    resamples: int = 2000,
    seed: int = 0,
) -> SubgroupFall | None:
    """Compare a group with all other images, over images and not over repeated fits.

    Classes are weighted by n₁n₀ / (n₁ + n₀) on both sides (Mantel and Haenszel 1959), the mix for which the difference
    is known best; a group that merely has the harder classes does not fall.

    Args:
        correct: (N,) in [0, 1]; over repeated fits the share that was right.
        labels: (N,) classes. inside: (N,) boolean, the group.
        units: (N,) what was sampled, such as patients; by default images.
        least: images of a class needed on either side.
        resamples: of the bootstrap and of the permutation.

    Returns:
        None where no class has enough images on either side.
    """
    c, y, g = np.asarray(correct, dtype=np.float64), np.asarray(labels), np.asarray(inside, dtype=bool)
    u = np.arange(len(c)) if units is None else np.asarray(units)
    if not len(c) == len(y) == len(g) == len(u):
        raise InputError(
            f"{len(c)} outcomes, {len(y)} labels, {len(g)} flags, {len(u)} units", "pass one each"
        )
    classes = [k for k in np.unique(y).tolist() if min((g & (y == k)).sum(), (~g & (y == k)).sum()) >= least]
    if not classes:
        return None
    rng = np.random.default_rng(seed)
    sides, weights = [], []
    drawn, shuffled = np.zeros(resamples), np.zeros(resamples)
    for k in classes:
        mine = y == k
        _, code = np.unique(
            np.stack([np.unique(u[mine], return_inverse=True)[1], g[mine]]), axis=1, return_inverse=True
        )
        size, total = np.bincount(code.ravel()), np.bincount(code.ravel(), c[mine])
        flag = np.bincount(code.ravel(), g[mine]) > 0
        count = np.array([size[flag].sum(), size[~flag].sum()])
        weight = count.prod() / count.sum()
        weights.append(weight)
        sides.append([total[flag].sum() / count[0], total[~flag].sum() / count[1]])
        means = [_drawn_means(size[f], total[f], resamples, rng) for f in (~flag, flag)]
        drawn += weight * (means[0] - means[1])
        flags = rng.permuted(np.tile(flag, (resamples, 1)), axis=1)
        means = [(f @ total) / (f @ size) for f in (~flags, flags)]
        shuffled += weight * (means[0] - means[1])
    whole = sum(weights)
    within, without = np.average(sides, axis=0, weights=weights).tolist()
    fall = without - within
    extreme = (np.abs(shuffled / whole) >= abs(fall) - 1e-12).sum()
    used = np.isin(y, classes)
    return SubgroupFall(
        inside=within,
        outside=without,
        fall=interval(fall, drawn / whole),
        p=float((1 + extreme) / (1 + resamples)),
        n=int((used & g).sum()),
        others=int((used & ~g).sum()),
        classes=tuple(map(str, classes)),
    )


def _drawn_means(size: Array, total: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Means of images when units are drawn again: (R,)."""
    times = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), size=resamples)
    return (times @ total) / (times @ size)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted so that the chance of any false one stays below the level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    count = len(order)
    raised = np.maximum.accumulate([(count - i) * p_values[j] for i, j in enumerate(order)]).clip(max=1)
    adjusted = np.empty(count)
    adjusted[order] = raised
    return adjusted.tolist()
