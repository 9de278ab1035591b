"""Which test images an audit shows, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pfungst.audit.anomaly.result import Example
from pfungst.data import Prepared


def choose_examples(test: Prepared, runs: dict[str, Any], count: int) -> list[Example]:
    """Up to `count` test images, most telling first: what deployment breaks, then the typical, then the wrong.

    Args:
        test: the test images.
        runs: per variant what has `scores` (N,) and `threshold`.
        count: how many.

    Returns:
        Examples whose `row` is the index of the image in `test`.
    """
    labels = test.labels.astype(bool)
    original, deployed, mended = (runs.get(name) for name in ("original", "deployed", "mitigated"))
    assert original is not None
    assert deployed is not None
    flagged = original.scores > original.threshold
    flagged_later = deployed.scores > deployed.threshold
    margin = (original.scores - deployed.scores) / max(abs(original.threshold), 1e-12)
    reasons: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("defect missed after deployment", labels & flagged & ~flagged_later, -margin),
        ("defect found, highest score", labels & flagged & flagged_later, -original.scores),
        ("defect missed before and after", labels & ~flagged & ~flagged_later, original.scores),
        ("false alarm", ~labels & flagged, -original.scores),
        ("false alarm only after deployment", ~labels & ~flagged & flagged_later, -deployed.scores),
        ("good, as it should be", ~labels & ~flagged, original.scores),
    ]
    queues = [
        (why, rows[np.argsort(key[rows], kind="stable")].tolist())
        for why, mask, key in reasons
        if len(rows := np.flatnonzero(mask))
    ]
    chosen: list[tuple[int, str]] = []
    taken: set[int] = set()
    while len(chosen) < count and any(queue for _, queue in queues):
        for why, queue in queues:
            if queue and len(chosen) < count:
                row = queue.pop(0)
                if row not in taken:
                    taken.add(row)
                    chosen.append((row, why))
    order = {why: i for i, (why, _, _) in enumerate(reasons)}
    chosen.sort(key=lambda pair: order[pair[1]])
    return [
        Example(
            id=test.ids[row],
            row=row,
            label=test.classes[row] or "",
            defect=bool(labels[row]),
            groups=test.items[row].groups,
            score_original=float(original.scores[row]),
            score_deployed=float(deployed.scores[row]),
            score_mitigated=None if mended is None else float(mended.scores[row]),
            flagged_original=bool(flagged[row]),
            flagged_deployed=bool(flagged_later[row]),
            flagged_mitigated=None if mended is None else bool(mended.scores[row] > mended.threshold),
            why=why,
        )
        for row, why in chosen
    ]


def thumbnails(images: Tensor) -> np.ndarray:
    """Images (E, C, S, S) in [0, 1] as uint8 (E, S, S, 3)."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
