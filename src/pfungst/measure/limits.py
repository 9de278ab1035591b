"""Every threshold that a verdict, a mark or a flag rests on: its value, since when, and why that value.

A :class:`Limit` is a float. Texts quote it (``f"{FALL:.2f}"``) and never repeat the number. A value is written here before
the benchmark of truth (``benchmarks/truth.py``) runs on its reporting halves; changing one means a new date and reason.
"""

from __future__ import annotations

from typing import Self


class Limit(float):
    """A threshold.

    Attributes:
        since: ISO date from which the value holds.
        why: where it comes from.
    """

    since: str
    why: str

    def __new__(cls, value: float, since: str, why: str) -> Self:
        limit = super().__new__(cls, value)
        limit.since, limit.why = since, why
        return limit


_PAPER = "marks of Kauffmann et al. 2025, tables 1 and 2"

# --- marks: what deployment takes and mending gives back ------------------------------------------------
FALL = Limit(0.03, "2026-07-01", _PAPER)
LARGE_FALL = Limit(0.06, "2026-07-01", _PAPER)
P_MARK = Limit(0.001, "2026-07-01", _PAPER)

# --- provenance ------------------------------------------------------------------------------------------
PROVENANCE_GAP = Limit(
    0.1, "2026-07-01", "AUROC pooled against within groups; half of what separates 0.8 from chance"
)
P_PROVENANCE = Limit(0.01, "2026-07-01", "difference of η² of group and label, by permutation")

# --- anomaly ---------------------------------------------------------------------------------------------
FIT_AUROC = Limit(0.8, "2026-07-01", "below it a detector is not called one")
LOST_SHARE = Limit(
    0.1, "2026-07-01", "of the relevance on what deployment removes, for explanation and fall to agree"
)
OUTSIDE = Limit(
    0.5, "2026-07-01", "Clever Hans score from which a sound verdict asks to look at the heatmaps"
)
HIGH_BAND = 190  # zigzag index from which a band counts as high, as in the published pictures

# --- similarity ------------------------------------------------------------------------------------------
EXCESS = Limit(0.1, "2026-07-01", "by which relevance on a pasted region exceeds its area")
TIMES = Limit(1.5, "2026-07-01", "by which it exceeds what the same place carries without what is pasted")
EQUAL_WORDS = Limit(0.5, "2026-07-01", "of the positive relevance of sentence pairs between equal words")
TELLS_APART = Limit(0.8, "2026-07-01", "AUROC from which similarity tells relations apart")

# --- classifier ------------------------------------------------------------------------------------------
TRIGGERED = Limit(0.25, "2026-07-01", "share of images with only the feature that are taken for the class")
CURED = Limit(0.25, "2026-07-01", "share of these that the mended model answers otherwise")
P_SPURIOUS = Limit(0.05, "2026-11-26", "that pasting what a component reads raises the class; Holm")
RETAINED = Limit(0.5, "2026-11-26", "lower end of the share still recognised: the object is elsewhere")
CARRIED = Limit(
    0.1,
    "2026-11-26",
    "of the way to the class, lower end, beyond other models; clean digit networks of seeds 0 to 5 reach 0.06, planted marks 0.32",
)
WITNESSES = Limit(
    2, "2026-11-26", "with one, 2 of 8 clean networks gave a false alarm; with two, 0 of 6 others"
)
