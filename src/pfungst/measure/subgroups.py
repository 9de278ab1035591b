"""Does a model do worse on some of the images than on the others of the same classes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure import limits
from pfungst.measure.intervals import Interval, blocks
from pfungst.measure.proportions import mean_share, share_difference, wilson_of
from pfungst.measure.scores import Array


@dataclass(frozen=True)
class Fall:
    """Accuracy inside and outside a group.

    Attributes:
        inside, outside: accuracies.
        fall: outside − inside, with its interval over units (Newcombe 1998; of several classes Zou & Donner
            2008).
        p: two-sided, by permutation of the group among the units of each class.
        n, others: images inside and outside.
    """

    inside: float
    outside: float
    fall: Interval
    p: float
    n: int
    others: int


@dataclass(frozen=True)
class SubgroupFall:
    """A group against all other images of the same classes.

    Attributes:
        whole: class-balanced, so that both sides have the same mix of classes: a group that merely holds the
            harder classes does not fall.
        classes: each class that was compared; a group that raises one and lowers another shows here only.
    """

    whole: Fall
    classes: dict[str, Fall]


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

    Args:
        correct: (N,) in [0, 1]; over repeated fits the share that was right.
        labels: (N,) classes. inside: (N,) boolean, the group.
        units: (N,) what was sampled, such as patients; by default images.
        least: images of a class needed on either side.
        resamples: of the permutation.

    Returns:
        None where no class has enough images on either side.
    """
    c, y, g = np.asarray(correct, dtype=np.float64), np.asarray(labels), np.asarray(inside, dtype=bool)
    u = np.arange(len(c)) if units is None else np.asarray(units)
    if not len(c) == len(y) == len(g) == len(u):
        raise InputError(
            f"{len(c)} outcomes, {len(y)} labels, {len(g)} flags, {len(u)} units", "pass one each"
        )
    rng = np.random.default_rng(seed)
    falls, shares, shuffled = {}, [], []
    for k in np.unique(y).tolist():
        mine = y == k
        if min((g & mine).sum(), (~g & mine).sum()) < least:
            continue
        # Units are counted apart inside and outside: size, sum of what was right, and side of each.
        pairs = np.stack([np.unique(u[mine], return_inverse=True)[1], g[mine]])
        code = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
        size, total = np.bincount(code).astype(float), np.bincount(code, c[mine])
        flag = np.bincount(code, g[mine]) > 0
        shuffled.append(_shuffled(size, total, flag, resamples, rng))
        sides = [
            wilson_of(float(c[mine & side].mean()), int(units_there))
            for side, units_there in ((g, flag.sum()), (~g, (~flag).sum()))
        ]
        shares.append(sides)
        counts = int((g & mine).sum()), int((~g & mine).sum())
        falls[str(k)] = _fall(sides[0], sides[1], shuffled[-1], *counts)
    if not falls:
        return None
    within, without = (mean_share(side) for side in zip(*shares, strict=True))
    counts = sum(f.n for f in falls.values()), sum(f.others for f in falls.values())
    whole = _fall(within, without, np.mean(shuffled, axis=0), *counts)
    return SubgroupFall(whole, falls)


def _fall(inside: Interval, outside: Interval, shuffled: Array, n: int, others: int) -> Fall:
    fall = share_difference(outside, inside)
    extreme = (np.abs(shuffled) >= abs(fall.value) - 1e-12).sum()
    p = float((1 + extreme) / (1 + len(shuffled)))
    return Fall(inside.value, outside.value, fall, p, n, others)


def _shuffled(size: Any, total: Any, flag: Any, resamples: int, rng: np.random.Generator) -> Array:
    """Outside less inside when the group is dealt anew among the units: (R,)."""
    falls = []
    for count in blocks(resamples, len(size)):
        flags = rng.permuted(np.tile(flag, (count, 1)), axis=1).astype(float)
        images, right = flags @ size, flags @ total
        falls.append((total.sum() - right) / (size.sum() - images) - right / images)
    return np.concatenate(falls)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted so that the chance of any false one stays below the level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    count = len(order)
    raised = np.maximum.accumulate([(count - i) * p_values[j] for i, j in enumerate(order)]).clip(max=1)
    adjusted = np.empty(count)
    adjusted[order] = raised
    return adjusted.tolist()
