"""From scores to decisions: where the threshold comes from decides what a number means.

"published": the score that gives the best plain F1 on the labelled original test data, kept for deployed
data (Kauffmann et al. 2025, and their code); optimistic, since it is tuned on what it is measured on.
"held-out", the default everywhere: a quantile of scores of normal data the model has not seen.
A sample is flagged when its score is strictly above the threshold.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure.scores import as_labels, as_scores

Protocol = Literal["published", "held-out"]


def best_f1_threshold(labels: ArrayLike, scores: ArrayLike, balanced: bool = False) -> float:
    """The observed score that as a threshold (strict >) gives the best F1; the lowest of equals.

    Only observed scores are candidates, so that flagging everything is not one.
    """
    y = as_labels(labels)
    s = as_scores(scores, len(y))
    if not y.any() or y.all():
        raise InputError("labels of one class only", "a best F1 needs normal and abnormal samples")
    order = np.argsort(s, kind="stable")
    y, s = y[order], s[order]
    missed, passed = np.cumsum(y), np.cumsum(~y)  # at threshold s[k]: everything up to and with its ties
    last = np.r_[s[1:] != s[:-1], True]
    positives, negatives = y.sum(), (~y).sum()
    tpr, fpr = (positives - missed) / positives, (negatives - passed) / negatives
    if balanced:
        value = 2 * tpr / (1 + tpr + fpr)
    else:
        tp, fp = positives - missed, negatives - passed
        value = 2 * tp / (tp + fp + positives)
    best = last & (value >= value[last].max() - 1e-12)  # equal values may differ by rounding
    return float(s[np.argmax(best)])


def held_out_threshold(scores: ArrayLike, quantile: float = 0.95) -> float:
    """The `quantile` of scores of held-out normal data: about 1 − quantile of normal data are flagged."""
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not np.isfinite(s).all():
        raise InputError(
            f"held-out scores of shape {s.shape} cannot set a threshold", "pass finite scores (N,)"
        )
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile {quantile} is not in [0, 1]", "for example 0.95")
    return float(np.quantile(s, quantile))


def choose_threshold(
    protocol: Protocol = "held-out",
    *,
    labels: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    normal_scores: ArrayLike | None = None,
    quantile: float = 0.95,
) -> float:
    """The threshold of a protocol.

    Args:
        protocol: "held-out" needs `normal_scores`, or labelled `scores` of a validation split, on which the
            best balanced F1 is taken; "published" needs `labels` and `scores` of the original test data.
        quantile: of the normal scores.
    """
    if protocol == "published":
        if labels is None or scores is None:
            raise InputError("the published protocol needs labels and scores", "pass those of the test data")
        return best_f1_threshold(labels, scores)
    if protocol == "held-out":
        if normal_scores is not None:
            return held_out_threshold(normal_scores, quantile)
        if labels is not None and scores is not None:
            return best_f1_threshold(labels, scores, balanced=True)
        raise InputError(
            "the held-out protocol needs data", "pass normal_scores, or a labelled validation split"
        )
    raise InputError(f"unknown protocol {protocol!r}", 'use "held-out" or "published"')
