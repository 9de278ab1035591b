"""Which test images an audit shows, why, and their pictures."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pfungst.audit.anomaly.measure import DEPLOYED, MENDED, MENDED_ORIGINAL, ORIGINAL, Run
from pfungst.audit.anomaly.prepare import Study
from pfungst.audit.anomaly.result import Answer, Example
from pfungst.audit.images import to_uint8
from pfungst.audit.result import Variant
from pfungst.relevance import PixelBands

Chosen = list[tuple[int, str]]


def choose(labels: np.ndarray, original: Run, deployed: Run, count: int) -> Chosen:
    """Up to `count` test images: what deployment breaks first, then the typical, then the wrong.

    Returns:
        The index of each image in the test set, and why it was chosen.
    """
    defect, flagged, later = labels.astype(bool), original.flagged, deployed.flagged
    fall = original.scores - deployed.scores
    reasons: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("defect missed after deployment", defect & flagged & ~later, -fall),
        ("defect found, highest score", defect & flagged & later, -original.scores),
        ("defect missed before and after", defect & ~flagged & ~later, original.scores),
        ("false alarm", ~defect & flagged, -original.scores),
        ("false alarm only after deployment", ~defect & ~flagged & later, -deployed.scores),
        ("good, as it should be", ~defect & ~flagged, original.scores),
    ]
    queues = []
    for why, mask, key in reasons:
        rows = np.flatnonzero(mask)
        queues.append((why, rows[np.argsort(key[rows], kind="stable")].tolist()))
    chosen: Chosen = []
    while len(chosen) < count and any(queue for _, queue in queues):
        for why, queue in queues:
            if queue and len(chosen) < count:
                row = queue.pop(0)
                if row not in {taken for taken, _ in chosen}:
                    chosen.append((row, why))
    order = [why for why, _, _ in reasons]
    return sorted(chosen, key=lambda pair: order.index(pair[1]))


def examples(
    study: Study, runs: dict[Variant, Run], chosen: Chosen, bands: np.ndarray | None
) -> list[Example]:
    """The chosen images, with what each variant says of them; `bands` (T, B) as in :class:`Explained`."""
    return [
        Example(
            id=study.test.ids[index],
            row=row,
            label=study.test.classes[index] or "",
            defect=bool(study.labels[index]),
            groups=study.test.items[index].groups,
            answers=[
                Answer(variant=v, score=runs[v].scores[index], flagged=runs[v].flagged[index])
                for v in (ORIGINAL, DEPLOYED, MENDED)
                if v in runs
            ],
            bands=[] if bands is None else bands[index].tolist(),
            why=why,
        )
        for row, (index, why) in enumerate(chosen)
    ]


def pictures(
    study: Study, runs: dict[Variant, Run], heat: dict[Variant, Tensor], chosen: Chosen
) -> dict[str, np.ndarray]:
    """The pictures of the chosen images, see :class:`~pfungst.audit.anomaly.result.Entry`."""
    rows = [index for index, _ in chosen]
    images = study.test.images[rows]
    arrays = {"image": to_uint8(images), "image_deployed": to_uint8(study.deployed.images[rows])}
    if heat:
        joint = runs[ORIGINAL].detector.explain(images, PixelBands.coarse()).values
        arrays |= {"heat": _half(heat[ORIGINAL][rows]), "joint": _half(joint)}
    if study.test.masks is not None:
        arrays["mask"] = study.test.masks[rows].numpy().astype(np.uint8) * 255
    if MENDED_ORIGINAL in heat:
        arrays["heat_mended"] = _half(heat[MENDED_ORIGINAL][rows])
    return arrays


def _half(values: Tensor) -> np.ndarray:
    """float16 on a scale that fits: heatmaps are drawn relative to their own size."""
    array = values.detach().float().cpu().numpy()
    largest = np.abs(array).max(initial=0.0)
    return (array / largest if largest > 6e4 else array).astype(np.float16)
