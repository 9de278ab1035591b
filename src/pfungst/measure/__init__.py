"""Measures: NumPy arrays in, floats out. Label 1 is abnormal; a score above the threshold is flagged."""

from pfungst.measure.clever_hans import clever_hans_score, mask_agreement
from pfungst.measure.degradation import Change, balanced, degradation, f1_of_flags, mean_change
from pfungst.measure.exposure import (
    ConfusionShare,
    capped_weights,
    confusion_share,
    share,
    share_above,
    share_on_region,
    share_outside,
)
from pfungst.measure.intervals import Interval, bootstrap, bootstrap_change, bootstrap_scores, interval
from pfungst.measure.proportions import mean_share, wilson_of
from pfungst.measure.provenance import GroupScores, Provenance, eta_squared, provenance
from pfungst.measure.scores import (
    Confusion,
    auroc,
    balanced_accuracy,
    confusion,
    f1,
    fnr,
    fpr,
    trivial_f1,
)
from pfungst.measure.split import Split, best_split
from pfungst.measure.subgroups import Fall, SubgroupFall, holm, subgroup_fall
from pfungst.measure.thresholds import best_f1_threshold, choose_threshold, held_out_threshold

__all__ = [
    "Change",
    "Confusion",
    "ConfusionShare",
    "Fall",
    "GroupScores",
    "Interval",
    "Provenance",
    "Split",
    "SubgroupFall",
    "auroc",
    "balanced",
    "balanced_accuracy",
    "best_f1_threshold",
    "best_split",
    "bootstrap",
    "bootstrap_change",
    "bootstrap_scores",
    "capped_weights",
    "choose_threshold",
    "clever_hans_score",
    "confusion",
    "confusion_share",
    "degradation",
    "eta_squared",
    "f1",
    "f1_of_flags",
    "fnr",
    "fpr",
    "held_out_threshold",
    "holm",
    "interval",
    "mask_agreement",
    "mean_change",
    "mean_share",
    "provenance",
    "share",
    "share_above",
    "share_on_region",
    "share_outside",
    "subgroup_fall",
    "trivial_f1",
    "wilson_of",
]
