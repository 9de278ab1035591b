"""Which of several detectors to take: detection and exposure together.

Kauffmann et al. 2020 (section 5) and 2025 (discussion) ask for a choice that looks at more than detection.
The
criterion here is ours: AUROC less a share of the exposure, so that a detector pays for relevance that
deployment removes or that lies off the defect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pfungst.errors import InputError

WEIGHT = 0.5  # a detector fully exposed is worth what chance is below a perfect one


def criterion(auroc: float, exposures: Sequence[float], weight: float = WEIGHT) -> float:
    """AUROC − weight · the largest of the exposures.

    Args:
        auroc: in [0, 1].
        exposures: in [0, 1] each: Clever Hans score (negative ones as 0), share lost in deployment, …

    Raises:
        InputError: a number is not in [0, 1].
    """
    for value in (auroc, *exposures):
        if math.isnan(value) or not 0 <= value <= 1:
            raise InputError(f"{value} is not in [0, 1]", "give an AUROC and shares")
    return auroc - weight * max(exposures, default=0.0)


def choose_detector(
    detectors: Mapping[str, Sequence[float]], weight: float = WEIGHT
) -> dict[str, tuple[float, int]]:
    """The criterion and the rank of each detector, 1 the one to take; equal ones share a rank.

    Args:
        detectors: name → (AUROC, exposure, exposure, …).
        weight: of the exposure.
    """
    values = {name: criterion(numbers[0], numbers[1:], weight) for name, numbers in detectors.items()}
    return {name: (value, 1 + sum(v > value for v in values.values())) for name, value in values.items()}
