"""Where the relevance lies: in the image, in frequency, on what deployment removes; whether to believe it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst import measure
from pfungst.audit.anomaly.measure import MENDED, ORIGINAL, Run
from pfungst.audit.anomaly.prepare import Study
from pfungst.audit.anomaly.result import Exposure, Faithfulness, Spectrum
from pfungst.audit.result import Variant
from pfungst.conditions import sides
from pfungst.errors import InputError, PfungstWarning
from pfungst.measure.faithfulness import Flipping
from pfungst.measure.limits import FAITHFUL_IMAGES, HIGH_BAND
from pfungst.relevance import DCTBands

BANDS = DCTBands.paper()
FLIPPED = 16  # test images whose patches are replaced
GRID = 8  # patches along a side
_STEPS, _ORDERS = 6, 2  # points of a curve and random orders
SCORED = 22  # scores of an image that this takes


@dataclass(frozen=True)
class Explained:
    """`heat`: (T, S, S) relevance of the test images per variant, `bands`: (T, B) shares of the original
    one's relevance per frequency band, of the detectors of the first seed."""

    heat: dict[Variant, Tensor] = field(default_factory=dict)
    bands: np.ndarray | None = None
    spectrum: Spectrum | None = None
    exposure: Exposure | None = None
    faithfulness: Faithfulness | None = None


def explain(study: Study, runs: dict[Variant, Run]) -> Explained:
    """Explain the scores of all test images, by pixel and by frequency band; nothing, with a warning, of a
    detector that nothing explains."""
    if not (detector := runs[ORIGINAL].detector).explains:
        why = getattr(detector, "why_not", "")
        warnings.warn(f"not explained: {why}", PfungstWarning, stacklevel=2)
        return Explained()
    heat = {v: run.detector.explain(study.images(v.condition)).values for v, run in runs.items()}
    bands = {
        v: band_shares(runs[v].detector.explain(study.test.images, BANDS).values)
        for v in (ORIGINAL, MENDED)
        if v in runs
    }
    defects = study.labels.astype(bool)
    shares = {v: of[defects].mean(0) for v, of in bands.items()}
    share, mended = shares[ORIGINAL], shares.get(MENDED)
    edges, kept = list(BANDS.resolve(*sides(study.config.size))), _kept_energy(study)
    spectrum = Spectrum(
        edges=edges,
        original=share.tolist(),
        mitigated=None if mended is None else mended.tolist(),
        kept=kept.tolist(),
    )
    exposure = Exposure(
        high=float(share @ above(edges, HIGH_BAND)),
        lost_in_deployment=float(share @ (1 - np.clip(kept, 0, 1))),
        outside_mask=_outside_mask(study, heat[ORIGINAL]),
    )
    faithful = faithfulness(study, runs[ORIGINAL], heat[ORIGINAL])
    return Explained(heat, bands[ORIGINAL], spectrum, exposure, faithful)


def faithfulness(study: Study, run: Run, heat: Tensor) -> Faithfulness | None:
    """Whether patches matter to the score in the order in which the heatmap names them.

    They are replaced by those of the most similar normal training image, as to an anomaly score whatever is
    painted over is abnormal. Defective test images, others only where these are too few.

    Args:
        heat: (T, S, S) relevance of the original test images.

    Returns:
        None, with a warning, where it cannot be measured: too few images, a score that no patch changes.
    """
    rows = np.random.default_rng(study.config.seed).permutation(len(study.labels))
    rows = rows[np.argsort(-study.labels[rows], kind="stable")]
    rows = np.sort(rows[: min(FLIPPED, max(int(study.labels.sum()), int(FAITHFUL_IMAGES)))])
    images = study.test.images[rows]
    nearest = torch.cdist(images.flatten(1), study.train.flatten(1)).argmin(1)
    patch = -(-max(sides(study.config.size)) // GRID)
    how: dict[str, Any] = {"steps": _STEPS, "orders": _ORDERS, "seed": study.config.seed}
    score, fill = run.detector.anomaly_score, study.train[nearest]
    try:
        found = Flipping(score, images, patch=patch, fill=fill, **how).of(heat[rows])
    except InputError as error:
        message = f"faithfulness of the explanations was not measured: {error.message}"
        warnings.warn(message, PfungstWarning, stacklevel=2)
        return None
    return Faithfulness.copied(found, images=len(rows))


def above(edges: list[int], index: float) -> np.ndarray:
    """The part of each band (B,) at or above a zigzag index; band b begins at ``edges[b]``."""
    low, high = np.array(edges[:-1]), np.array(edges[1:])
    return np.clip((high - index) / (high - low), 0, 1)


def band_shares(values: Tensor) -> np.ndarray:
    """Share of each input's relevance (N, B) in each band; of magnitudes, as bands can be negative."""
    size = values.double().abs()
    return (size / size.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).cpu().numpy()


def _kept_energy(study: Study) -> np.ndarray:
    """Energy of the deviations from the mean training image, deployed over original, per band (B,)."""
    mean = study.train.mean(0)

    def energy(condition: str) -> Tensor:
        parts = (study.images(condition) - mean).split(16)
        return torch.stack([BANDS.contract(part, part).sum(0).double() for part in parts]).sum(0)

    return (energy("deployed") / energy("original").clamp_min(1e-12)).numpy()


def _outside_mask(study: Study, heat: Tensor) -> float | None:
    masked = study.masked
    if not masked.any() or study.test.masks is None:
        return None
    outside = measure.share_outside(heat[masked].cpu().numpy(), study.test.masks[masked].numpy())
    return float(np.nanmean(outside)) if np.isfinite(outside).any() else None
