"""What a model loses after deployment, and when that is worth a mark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure import limits

FALL, LARGE_FALL, RISE = "↓", "↓↓", "↑"
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Change:
    """A measure before and after, over seeds.

    Attributes:
        before, after: means over the seeds.
        p: of the two-sided t-test; None where nothing can be tested: fewer than 3 seeds, or seeds that change
            nothing.
        mark: "↓" for a fall of 0.03 or more, "↓↓" of 0.06 or more, "↑" for a rise of 0.03 or more, else "".
    """

    before: float
    after: float
    p: float | None
    mark: str

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


def degradation(before: ArrayLike, after: ArrayLike, paired: bool = True) -> Change:
    """Mark the change of a measure where higher is better (Kauffmann et al. 2025, tables 1 and 2).

    A mark needs its size and P < 0.001 in a two-sided t-test over the seeds
    (:data:`~pfungst.measure.limits.P_MARK`): what was not tested is not marked. The published marks: ↓ and ↓↓
    for deployment, ↑ for mitigation.

    Args:
        before, after: one value per seed (S,), or single numbers. For FNR or FPR pass one minus them.
        paired: the same seeds in the same order on both sides.
    """
    a, b = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (before, after))
    if a.ndim != 1 or b.ndim != 1 or not len(a) or not len(b):
        raise InputError(f"values of shapes {a.shape} and {b.shape}", "pass one value per seed")
    if paired and len(a) != len(b):
        raise InputError(f"{len(a)} seeds before, {len(b)} after", "pass the same seeds, or paired=False")
    change = b.mean() - a.mean()
    p = None
    if min(len(a), len(b)) >= limits.SEEDS_TESTED and max(np.ptp(a), np.ptp(b)) > _ROUNDING:
        if paired and np.ptp(b - a) <= _ROUNDING:  # the same change with every seed
            p = 1.0 if abs(change) <= _ROUNDING else 0.0
        else:
            from scipy import stats  # takes a third as long as torch

            p = float((stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a)).pvalue)
    mark = ""
    if p is not None and p < limits.P_MARK:
        if change <= -limits.LARGE_FALL + _ROUNDING:
            mark = LARGE_FALL
        elif change <= -limits.FALL + _ROUNDING:
            mark = FALL
        elif change >= limits.FALL - _ROUNDING:
            mark = RISE
    return Change(float(a.mean()), float(b.mean()), p, mark)
