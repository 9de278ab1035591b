"""What a model loses after deployment, and when that is worth a mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure import limits
from pfungst.measure.intervals import Interval, blocks, interval, resample_weights
from pfungst.measure.scores import Array

FALL, LARGE_FALL, RISE = "↓", "↓↓", "↑"
_ROUNDING = 1e-12

Statistic = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Change:
    """A measure on the same images before and after.

    Attributes:
        before, after: means over the repeated fits.
        change: after less before, with its paired 95 % bootstrap interval over units.
        p: two-sided, by exchanging before and after unit by unit.
        spread: standard deviation of the change if before and after were exchangeable.
        mark: "↓" for a fall of 0.03 or more, "↓↓" of 0.06 or more, "↑" for a rise of 0.03 or more, else "".
    """

    before: float
    after: float
    change: Interval
    p: float
    spread: float
    mark: str


def balanced(shares: Array, sizes: Array) -> Array:
    """Mean over the classes of the shares (…, C) that are right."""
    return shares.mean(-1)


def f1_of_flags(shares: Array, sizes: Array) -> Array:
    """F1 from the shares (…, 2) of good and of defective images that are flagged."""
    wrong, found = shares[..., 0] * sizes[..., 0], shares[..., 1] * sizes[..., 1]
    return 2 * found / (found + wrong + sizes[..., 1])


def degradation(
    labels: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    statistic: Statistic = balanced,
    units: ArrayLike | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Change:
    """Mark the change of a measure where higher is better.

    A mark needs its size (Kauffmann et al. 2025, tables 1 and 2) and P below
    :data:`~pfungst.measure.limits.P_MARK` by permutation over images. Repeated fits are averaged: they see
    the same images, and a test over them finds any difference of the fits, however few images show it.

    Args:
        labels: (N,) classes.
        before, after: (S, N) what each of S fits says of each image, true or false: right, or flagged.
        statistic: (shares (…, C) of true per class, sizes (…, C) of the classes) → (…).
        units: (N,) what was sampled, such as patients; by default images.
        resamples: of the permutation and of the bootstrap.
    """
    a, b = (np.atleast_2d(np.asarray(v, dtype=np.float64)) for v in (before, after))
    classes, code = np.unique(np.asarray(labels), return_inverse=True)
    if a.shape != b.shape or a.shape[1] != len(code) or not a.size:
        raise InputError(
            f"outcomes of shapes {a.shape} and {b.shape} for {len(code)} images", "pass (S, N) of both"
        )
    unit = np.arange(len(code)) if units is None else np.unique(np.asarray(units), return_inverse=True)[1]
    single = int(unit.max()) + 1 == len(code)  # images, drawn within the classes
    member = np.eye(len(classes))[code]  # (N, C)

    def measured(outcomes: Array, weights: Array) -> Array:
        """Mean over the fits, (R,): outcomes of every image (S, N), weighted (R, N)."""
        sizes = weights @ member
        sums = np.einsum("rn,snc->rsc", weights, outcomes[..., None] * member, optimize=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return statistic(sums / sizes[:, None], np.broadcast_to(sizes[:, None], sums.shape)).mean(1)

    ones = np.ones((1, len(code)))
    first, second = float(measured(a, ones)[0]), float(measured(b, ones)[0])
    change, rng = second - first, np.random.default_rng(seed)
    sums = [np.einsum("sn,nc->sc", v, member) for v in (a, b)]
    apart = (b - a)[..., None] * member  # (S, N, C)
    swapped, size = [], member.sum(0)
    for count in blocks(resamples, a.size * len(classes)):
        swap = rng.integers(0, 2, (count, int(unit.max()) + 1))[:, unit].astype(float)
        moved = np.einsum("rn,snc->rsc", swap, apart, optimize=True)
        both = [
            statistic((s + way * moved) / size, size).mean(1) for s, way in zip(sums, (1, -1), strict=True)
        ]
        swapped.append(both[1] - both[0])
    null = np.concatenate(swapped)
    p = float((1 + (np.abs(null) >= abs(change) - _ROUNDING).sum()) / (1 + len(null)))
    drawn = []
    strata = code if single else np.zeros(int(unit.max()) + 1, int)
    for start, count in enumerate(blocks(resamples // 4, a.size * len(classes))):
        weights = resample_weights(strata, count, seed + start)
        weights = weights if single else weights[:, unit]
        drawn.append(measured(b, weights) - measured(a, weights))
    found = interval(change, np.concatenate(drawn))
    return Change(first, second, found, p, float(null.std()), mark(change, p))


def mark(change: float, p: float) -> str:
    """The published mark of a change: ↓ and ↓↓ for deployment, ↑ for mitigation; "" where P is too large."""
    if p >= limits.P_MARK:
        return ""
    if change <= -limits.LARGE_FALL + _ROUNDING:
        return LARGE_FALL
    if change <= -limits.FALL + _ROUNDING:
        return FALL
    return RISE if change >= limits.FALL - _ROUNDING else ""


def mean_change(changes: Sequence[Change]) -> Change:
    """The mean over several sets of images, each of which was drawn on its own: variances add."""
    if len(changes) == 1:
        return changes[0]
    from scipy.stats import norm  # takes a third as long as torch

    count = len(changes)
    first, second = (float(np.mean([getattr(c, side) for c in changes])) for side in ("before", "after"))
    change, spread = second - first, float(np.sqrt(sum(c.spread**2 for c in changes)) / count)
    low, high = (
        float(np.sqrt(sum((getattr(c.change, end) - c.change.value) ** 2 for c in changes)) / count)
        for end in ("low", "high")
    )
    p = 1.0 if spread <= _ROUNDING else float(2 * norm.sf(abs(change) / spread))
    return Change(first, second, Interval(change, change - low, change + high), p, spread, mark(change, p))
