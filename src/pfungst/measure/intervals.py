"""Bootstrap intervals. Samples are drawn again within each class (and group), by integer weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure.scores import Array, as_labels, as_scores, auroc, confusion

_METRICS = ("auroc", "f1", "balanced_f1", "fnr", "fpr", "balanced_accuracy", "accuracy")
_BLOCK = 1 << 23  # weights held at once


class Interval(NamedTuple):
    """A value measured on the data with the percentile interval of its bootstrap."""

    value: float
    low: float
    high: float


def resample_weights(strata: ArrayLike, resamples: int = 1000, seed: int = 0) -> Array:
    """How often each sample is drawn, with replacement, in each resample: (R, N); strata keep their size."""
    _, code = np.unique(np.asarray(strata), return_inverse=True)
    rng = np.random.default_rng(seed)
    out = np.zeros((resamples, len(code)))
    for k in range(code.max() + 1 if len(code) else 0):
        members = np.flatnonzero(code == k)
        n = len(members)
        drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
        out[:, members] = np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
    return out


def blocks(resamples: int, width: int) -> list[int]:
    """Numbers of resamples, of `width` weights each, to be held at once, that make `resamples` together."""
    step = max(1, _BLOCK // max(1, width))
    return [min(step, resamples - start) for start in range(0, resamples, step)]


def interval(value: float, draws: ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws, NaN draws left out."""
    d = np.asarray(draws, dtype=np.float64)
    d = d[~np.isnan(d)]
    if not len(d):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(d, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def bootstrap(
    statistic: Callable[[Array], Array],
    strata: ArrayLike,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of any statistic of weights.

    Args:
        statistic: weights (R, N) → values (R,).
        strata: (N,) samples are drawn within equal values; zeros for no strata.
    """
    n = len(np.asarray(strata))
    weights = resample_weights(strata, resamples, seed)
    step = max(1, _BLOCK // max(1, n))
    draws = np.concatenate([statistic(weights[i : i + step]) for i in range(0, resamples, step)])
    return interval(float(statistic(np.ones((1, n)))[0]), draws, level)


def bootstrap_scores(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    metrics: Sequence[str] = ("auroc", "f1"),
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of several measures at once, drawn within the two classes.

    Args:
        labels: (N,). scores: (N,). threshold: decisions are scores > threshold.
        metrics: of auroc, f1, balanced_f1, fnr, fpr, balanced_accuracy, accuracy.
    """
    y = as_labels(labels)
    s = as_scores(scores, len(y))
    unknown = [m for m in metrics if m not in _METRICS]
    if unknown:
        raise InputError(f"unknown measure {unknown[0]!r}", f"known measures: {', '.join(_METRICS)}")
    weights = np.vstack([np.ones(len(y)), resample_weights(y, resamples, seed)])
    counts = confusion(y, s > threshold, weights)
    out = {}
    for name in metrics:
        values = auroc(y, s, weights) if name == "auroc" else getattr(counts, name)
        out[name] = interval(values[0], values[1:], level)
    return out


def bootstrap_change(
    labels: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    threshold: float,
    metric: str = "f1",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of measure(after) − measure(before) for the same samples under two conditions.

    Args:
        before, after: scores (N,) of the same samples, in the same order; the threshold is the same.
    """
    y = as_labels(labels)
    a, b = as_scores(before, len(y)), as_scores(after, len(y))
    if metric not in _METRICS:
        raise InputError(f"unknown measure {metric!r}", f"known measures: {', '.join(_METRICS)}")

    def measure(s: Array, w: Array) -> Array:
        return auroc(y, s, w) if metric == "auroc" else getattr(confusion(y, s > threshold, w), metric)

    return bootstrap(lambda w: measure(b, w) - measure(a, w), y, resamples, level, seed)
