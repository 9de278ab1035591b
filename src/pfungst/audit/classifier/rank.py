"""How harmful a component looks before anybody has looked at it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SUSPECT = 0.5  # harm from which a component is called suspicious
_UNIMODAL = 2 / math.pi  # variance that the best split of a normal distribution explains
_LUCK = 0.7  # of n normal values it explains up to 2/π + 0.7/√n in 95 % of samples (simulated for n from 2 to 1,300)


@dataclass(frozen=True)
class Split:
    """The best split of a sample into a lower and an upper group.

    Attributes:
        explained: share of the variance between the groups.
        threshold: between them.
        share: of the values in the upper group.
        gap: difference of the two means.
        count: values.
    """

    explained: float
    threshold: float
    share: float
    gap: float
    count: int


def best_split(values: np.ndarray) -> Split:
    """The split of greatest variance between two groups (Otsu 1979, on the values instead of a histogram)."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    total = float(((x - x.mean()) ** 2).sum())
    if n < 2 or total <= 1e-24 * max(1.0, float(np.abs(x).max()) ** 2):
        return Split(0.0, float(x[-1]) if n else 0.0, 0.0, 0.0, n)
    below = np.arange(1, n)
    sums = np.cumsum(x)[:-1]
    low, high = sums / below, (x.sum() - sums) / (n - below)
    between = below * (n - below) / n * (high - low) ** 2
    best = int(between.argmax())
    return Split(
        explained=float(between[best] / total),
        threshold=float((x[best] + x[best + 1]) / 2),
        share=float((n - 1 - best) / n),
        gap=float(high[best] - low[best]),
        count=n,
    )


def strength(split: Split) -> float:
    """1 − e^−gap, the share by which the gap between the two groups changes the odds of the class, in [0, 1]."""
    return -math.expm1(-max(split.gap, 0.0))


def concentration(split: Split) -> float:
    """How much a component acts on a subpopulation of its class only, in [0, 1].

    Zero for what a bell curve gives by chance and one for two separate groups, times the :func:`strength` of the gap
    between them.
    """
    chance = _UNIMODAL + _LUCK / math.sqrt(max(split.count, 1))
    if chance >= 1:
        return 0.0
    return min(1.0, max(0.0, (split.explained - chance) / (1 - chance))) * strength(split)


def reach(split: Split, visual_confidence: float | None = None) -> float:
    """How far the component alone can carry the class, in [0, 1]: the better of two proofs.

    Real images prove it by the :func:`strength` of the gap, the feature visualisation by its confidence. A visualisation
    of low confidence refutes nothing: it maximises α and may raise other classes with it.
    """
    seen = 0.0 if visual_confidence is None or not math.isfinite(visual_confidence) else visual_confidence
    return max(strength(split), seen)


def harm(split: Split, visual_confidence: float | None = None, off_object: float | None = None) -> float:
    """Geometric mean of concentration, reach and, where masks exist, the share off the object; all in [0, 1]."""
    cues = [concentration(split), reach(split, visual_confidence)]
    if off_object is not None and math.isfinite(off_object):
        cues.append(max(off_object, 0.0))
    return math.prod(cues) ** (1 / len(cues))
