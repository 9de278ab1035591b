"""The Clever Hans score of an anomaly detector: right decisions for the wrong reasons."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure.intervals import Interval, bootstrap
from pfungst.measure.scores import Array, as_labels, as_scores, auroc


def mask_agreement(relevance: ArrayLike, masks: ArrayLike) -> Array:
    """Cosine of max(R, 0) and the mask of each image.

    Args:
        relevance: (N, H, W). masks: (N, H, W), boolean or weights.

    Returns:
        (N,) in [0, 1]; 0 where no relevance is positive, NaN where the mask is empty.
    """
    r = np.asarray(relevance, dtype=np.float64)
    m = np.asarray(masks, dtype=np.float64)
    if r.shape != m.shape or r.ndim < 2:
        raise InputError(
            f"relevance of shape {r.shape}, masks of shape {m.shape}", "one mask per heatmap, same size"
        )
    r, m = np.maximum(r, 0).reshape(len(r), -1), m.reshape(len(m), -1)
    top = r.max(1, keepdims=True, initial=0)
    r = np.divide(r, top, out=np.zeros_like(r), where=top > 0)  # no overflow or underflow in the squares
    norm = np.linalg.norm(r, axis=1) * np.linalg.norm(m, axis=1)
    cosine = np.divide((r * m).sum(1), norm, out=np.zeros(len(r)), where=norm > 0)
    return np.where(m.any(1), np.clip(cosine, 0, 1), np.nan)


def clever_hans_score(
    labels: ArrayLike,
    scores: ArrayLike,
    relevance: ArrayLike,
    masks: ArrayLike,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUROC − mean over abnormal images of cosine(max(R, 0), mask), in [−1, 1].

    High where a detector separates well but looks elsewhere than at the defect. Abnormal images without a
    mask count in the AUROC only.

    Args:
        labels: (N,). scores: (N,).
        relevance: (N, H, W). masks: (N, H, W); rows of normal images are not read.

    Returns:
        The score with its interval, drawn within the two classes.
    """
    y = as_labels(labels)
    s = as_scores(scores, len(y))
    agreement = np.full(len(y), np.nan)
    r, m = np.asarray(relevance), np.asarray(masks)
    if len(r) != len(y) or len(m) != len(y):
        raise InputError(
            f"{len(r)} heatmaps and {len(m)} masks for {len(y)} labels", "pass one of each per label"
        )
    agreement[y] = mask_agreement(r[y], m[y])
    known = ~np.isnan(agreement)
    if not known.any() or y.all():
        raise InputError(
            f"{int(known.sum())} of {int(y.sum())} abnormal images have a mask, {int((~y).sum())} are normal",
            "the Clever Hans score needs normal images and masks of defects",
        )

    def statistic(weights: Array) -> Array:
        w = weights[:, known]
        with np.errstate(invalid="ignore"):
            cosine = (w @ agreement[known]) / w.sum(1)
        return auroc(y, s, weights) - cosine

    return bootstrap(statistic, y + (y & known), resamples, level, seed)
