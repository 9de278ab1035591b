"""How harmful a component looks before anybody has looked at it."""

from __future__ import annotations

import math

from pfungst.measure import Split


def strength(split: Split) -> float:
    """1 − e^−gap: by how much the gap between the two groups changes the odds of the class, in [0, 1]."""
    return -math.expm1(-max(split.gap, 0.0))


def concentration(split: Split) -> float:
    """How much a component acts on a subpopulation of its class only, in [0, 1].

    Zero for what a bell curve gives by chance and one for two separate groups, times the :func:`strength` of
    the gap between them.
    """
    return split.separation * strength(split)


def reach(split: Split, visual_confidence: float | None = None) -> float:
    """How far the component alone can carry the class, in [0, 1]: the better of two proofs.

    Real images prove it by the :func:`strength` of the gap, the feature visualisation by its confidence. A
    visualisation
    of low confidence refutes nothing: it maximises α and may raise other classes with it.
    """
    seen = 0.0 if visual_confidence is None or not math.isfinite(visual_confidence) else visual_confidence
    return max(strength(split), seen)


def harm(split: Split, visual_confidence: float | None = None, off_object: float | None = None) -> float:
    """Geometric mean of concentration, reach and, where masks exist, the share off the object."""
    cues = [concentration(split), reach(split, visual_confidence)]
    if off_object is not None and math.isfinite(off_object):
        cues.append(max(off_object, 0.0))
    return math.prod(cues) ** (1 / len(cues))
