"""How well scores separate abnormal from normal, and how well decisions do.

Labels are 1 for abnormal and 0 for normal (booleans work). Every function takes optional weights, one per
sample, or several rows of them (R, N) for R answers at once: the bootstrap resamples by weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfungst.errors import InputError

Array = NDArray[np.float64]


def as_labels(labels: ArrayLike) -> NDArray[np.bool_]:
    """Labels as booleans. Raises InputError for anything but 0 and 1."""
    y = np.asarray(labels)
    if y.ndim != 1 or not np.isin(y, (0, 1)).all():
        raise InputError(f"labels of shape {y.shape} are not all 0 or 1", "pass 1 for abnormal, 0 for normal")
    return y.astype(bool)


def as_scores(scores: ArrayLike, count: int) -> Array:
    """Scores as floats (N,). Raises InputError for another length or values that are not finite."""
    s = np.asarray(scores, dtype=np.float64)
    if s.shape != (count,):
        raise InputError(f"scores of shape {s.shape} for {count} labels", "pass one score per label")
    if not np.isfinite(s).all():
        raise InputError(f"{(~np.isfinite(s)).sum()} scores are not finite", "remove these samples")
    return s


def as_weights(weights: ArrayLike | None, count: int) -> Array:
    """Weights as floats (..., N), ones by default. Raises InputError for another length or negative ones."""
    if weights is None:
        return np.ones(count)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape[-1:] != (count,) or not (w >= 0).all():
        raise InputError(
            f"weights of shape {w.shape} for {count} samples", "pass one non-negative weight per sample"
        )
    return w


def _ratio(part: Any, whole: Any) -> Any:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = np.where(whole > 0, part / whole, np.nan)
    return float(out) if out.ndim == 0 else out


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Area under the ROC curve: the chance that an abnormal sample scores above a normal one, ties half.

    Returns:
        A float, or (R,) for weights of shape (R, N); NaN where a class is missing.
    """
    y = as_labels(labels)
    s = as_scores(scores, len(y))
    w = as_weights(weights, len(y))
    order = np.argsort(s, kind="stable")
    y, s, w = y[order], s[order], w[..., order]
    positive, negative = np.where(y, w, 0.0), np.where(y, 0.0, w)
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else np.zeros(0, dtype=int)
    if len(starts) < len(s):
        positive = np.add.reduceat(positive, starts, axis=-1)
        negative = np.add.reduceat(negative, starts, axis=-1)
    below = np.cumsum(negative, axis=-1) - 0.5 * negative
    return _ratio((positive * below).sum(-1), positive.sum(-1) * negative.sum(-1))


@dataclass(frozen=True)
class Confusion:
    """Weighted counts of decisions: tp and fn of abnormal, fp and tn of normal samples. Floats, or (R,)."""

    tp: Any
    fp: Any
    tn: Any
    fn: Any

    @property
    def fnr(self) -> Any:
        """Share of abnormal samples that were missed; NaN without abnormal samples."""
        return _ratio(self.fn, self.fn + self.tp)

    @property
    def fpr(self) -> Any:
        """Share of normal samples that were flagged; NaN without normal samples."""
        return _ratio(self.fp, self.fp + self.tn)

    @property
    def f1(self) -> Any:
        """2 TP / (2 TP + FP + FN); 0 where nothing is flagged and nothing abnormal, as in scikit-learn."""
        return np.nan_to_num(_ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn))[()]

    @property
    def balanced_f1(self) -> Any:
        """F1 after weighting both classes to count equally: 2 TPR / (1 + TPR + FPR)."""
        tpr = 1 - self.fnr
        return _ratio(2 * tpr, 1 + tpr + self.fpr)

    @property
    def balanced_accuracy(self) -> Any:
        """Mean of the two classes' accuracies."""
        return 1 - 0.5 * (self.fnr + self.fpr)

    @property
    def accuracy(self) -> Any:
        """(TP + TN) / N."""
        return _ratio(self.tp + self.tn, self.tp + self.tn + self.fp + self.fn)


def confusion(labels: ArrayLike, flagged: ArrayLike, weights: ArrayLike | None = None) -> Confusion:
    """Counts of decisions.

    Args:
        labels: (N,) 1 = abnormal.
        flagged: (N,) 1 = decided abnormal, for example ``scores > threshold``.
        weights: (N,) or (R, N).
    """
    y, f = as_labels(labels), as_labels(flagged)
    if y.shape != f.shape:
        raise InputError(f"{len(f)} decisions for {len(y)} labels", "pass one decision per label")
    w = as_weights(weights, len(y))
    tp, fp, tn, fn = (w @ cell.astype(np.float64) for cell in (y & f, ~y & f, ~y & ~f, y & ~f))
    return Confusion(tp, fp, tn, fn)


def f1(
    labels: ArrayLike, flagged: ArrayLike, balanced: bool = False, weights: ArrayLike | None = None
) -> Any:
    """F1 of the abnormal class; `balanced` weights both classes to count equally.

    The published code asks for the balanced one and computes the plain one (its class weights become ones).
    """
    counts = confusion(labels, flagged, weights)
    return counts.balanced_f1 if balanced else counts.f1


def fnr(labels: ArrayLike, flagged: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Share of abnormal samples that were missed."""
    return confusion(labels, flagged, weights).fnr


def fpr(labels: ArrayLike, flagged: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Share of normal samples that were flagged."""
    return confusion(labels, flagged, weights).fpr


def balanced_accuracy(labels: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> Any:
    """Mean accuracy over the classes that occur (with weight) in `labels`; any number of classes."""
    y, p = np.asarray(labels), np.asarray(predicted)
    if y.shape != p.shape or y.ndim != 1:
        raise InputError(
            f"predictions of shape {p.shape} for labels of shape {y.shape}", "pass one per sample"
        )
    w = as_weights(weights, len(y))
    hits = np.where(y == p, w, 0.0)
    members = (y[:, None] == np.unique(y)).astype(np.float64)
    rates = np.atleast_1d(_ratio(hits @ members, w @ members))
    present = ~np.isnan(rates)
    return _ratio(np.where(present, rates, 0.0).sum(-1), present.sum(-1))


def trivial_f1(labels: ArrayLike, balanced: bool = False) -> float:
    """F1 of flagging everything: what any F1 has to be compared with (balanced: always 2/3)."""
    y = as_labels(labels)
    return float(f1(y, np.ones_like(y), balanced))
