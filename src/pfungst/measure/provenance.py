"""Does the score follow what is in the image, or where the image came from?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure import limits
from pfungst.measure.intervals import Interval, bootstrap
from pfungst.measure.scores import Array, as_labels, as_scores, auroc


def eta_squared(values: ArrayLike, groups: ArrayLike) -> float:
    """Share of the variance of `values` that the group means explain, in [0, 1]; 0 for constant values."""
    v = np.asarray(values, dtype=np.float64)
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    if v.shape != code.shape or v.ndim != 1:
        raise InputError(
            f"groups of shape {code.shape} for values of shape {v.shape}", "pass one group per value"
        )
    v = v - v.mean()
    total = (v**2).sum()
    if not total > 0:
        return 0.0
    counts = np.bincount(code)
    means = np.bincount(code, v) / counts
    return float(np.clip((counts * means**2).sum() / total, 0, 1))


def corrected_eta_squared(eta2: float, groups: int, count: int) -> float:
    """ε²: η² less what as many random groups would explain (Kelley 1935); at least 0."""
    if count <= groups:
        return 0.0
    return max(0.0, 1 - (1 - eta2) * (count - 1) / (count - groups))


@dataclass(frozen=True)
class GroupScores:
    """One group: its name, its numbers of samples, its mean score, its AUROC (None with one class only)."""

    group: Any
    normal: int
    abnormal: int
    mean: float
    auroc: float | None


@dataclass(frozen=True)
class Provenance:
    """Where the variance of a score comes from.

    Attributes:
        eta2_group, eta2_label: share of the variance explained by the group column and by the label.
        eta2_group_within_label: the group's share beyond the label's: Σ variance of group means within
            labels.
        p_group: of a Kruskal–Wallis test that all groups score alike, within normal samples where they come
            from several groups, else over all samples.
        auroc_pooled: over all samples. auroc_within: mean over the groups that have both classes, or None.
        gap: pooled − within with its bootstrap interval, None where no group has both classes.
        groups: one entry per group.
        nested: every group holds one class only, so the group names the label.
        follows_group: the verdict (METHODS of the project, Clever Hans measures).
        reasons: why, in words.
    """

    eta2_group: float
    eta2_label: float
    eta2_group_within_label: float
    p_group: float
    auroc_pooled: float
    auroc_within: float | None
    gap: Interval | None
    groups: tuple[GroupScores, ...]
    nested: bool
    follows_group: bool
    reasons: tuple[str, ...]


def provenance(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, resamples: int = 1000, seed: int = 0
) -> Provenance:
    """Compare what the group explains of a score with what the label explains.

    The score follows the group when |AUROC pooled − AUROC within groups| ≥ 0.1, or when the group explains
    more variance than the label. Both are guarded against chance: the bootstrap interval of the difference
    must exclude 0, and the groups must differ (P < 0.01). Variance shares are compared after correction for
    the number of groups. Where every group holds one class only, a group always explains at least as much
    as the label; then its share *within* labels is what is compared.

    Args:
        scores: (N,). labels: (N,) 1 = abnormal. groups: (N,) of any values.
    """
    y = as_labels(labels)
    s = as_scores(scores, len(y))
    g = np.asarray(groups)
    if g.shape != y.shape:
        raise InputError(f"groups of shape {g.shape} for {len(y)} labels", "pass one group per sample")
    if not y.any() or y.all():
        raise InputError("labels of one class only", "provenance compares the group with the label")
    names, code = np.unique(g, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"one group only ({names[0]!r})", "name a column with two or more values")

    table = tuple(_describe(names[k], y[code == k], s[code == k]) for k in range(len(names)))
    both = [k for k, entry in enumerate(table) if entry.auroc is not None]
    cells = 2 * code + y
    eta_group, eta_label = eta_squared(s, code), eta_squared(s, y)
    n_cells = len(np.unique(cells))
    eta_within = max(0.0, eta_squared(s, cells) - eta_label)
    p = _kruskal(s[~y], code[~y])
    if np.isnan(p):
        p = _kruskal(s, code)

    pooled = float(auroc(y, s))
    within: float | None = None
    gap: Interval | None = None
    if both:
        within = float(np.mean([table[k].auroc for k in both]))
        gap = bootstrap(lambda w: auroc(y, s, w) - _within(y, s, code, both, w), cells, resamples, seed=seed)

    nested = all(entry.normal == 0 or entry.abnormal == 0 for entry in table)
    reasons = []
    if gap is not None and abs(gap.value) >= limits.PROVENANCE_GAP and (gap.low > 0 or gap.high < 0):
        reasons.append(f"AUROC is {pooled:.2f} over all samples but {within:.2f} within groups")
    label = corrected_eta_squared(eta_label, 2, len(y))
    if nested:
        whole = corrected_eta_squared(eta_label + eta_within, n_cells, len(y))
        group, what = max(0.0, whole - label), "the group explains, beyond the label,"
    else:
        group, what = corrected_eta_squared(eta_group, len(names), len(y)), "the group explains"
    if group > label and p < limits.P_PROVENANCE:
        reasons.append(f"{what} {group:.0%} of the score's variance, the label {label:.0%}")
    return Provenance(
        eta2_group=eta_group,
        eta2_label=eta_label,
        eta2_group_within_label=eta_within,
        p_group=p,
        auroc_pooled=pooled,
        auroc_within=within,
        gap=gap,
        groups=table,
        nested=nested,
        follows_group=bool(reasons),
        reasons=tuple(reasons),
    )


def _describe(name: Any, y: Any, s: Array) -> GroupScores:
    one_class = y.all() or not y.any()
    value = None if one_class else float(auroc(y, s))
    name = name.item() if hasattr(name, "item") else name
    return GroupScores(name, int((~y).sum()), int(y.sum()), float(s.mean()), value)


def _within(y: Any, s: Array, code: Any, both: list[int], weights: Array) -> Array:
    return np.mean([auroc(y[code == k], s[code == k], weights[:, code == k]) for k in both], axis=0)


def _kruskal(s: Array, code: Any) -> float:
    parts = [s[code == k] for k in np.unique(code)]
    if len(parts) < 2:
        return float("nan")
    if np.ptp(s) == 0:
        return 1.0
    from scipy import stats  # takes a third as long as torch

    return float(stats.kruskal(*parts).pvalue)
