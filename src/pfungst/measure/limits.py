"""Every threshold that a verdict, a mark or a flag rests on: its value, since when, and why that value.

A :class:`Limit` is a float. Texts quote it (``f"{FALL:.2f}"``) and never repeat the number. A value is
written here before the benchmark of truth (``benchmarks/truth.py``) runs on its reporting halves; changing
one means a new date and reason.
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

P_FALL = Limit(
    0.05,
    "2026-11-26",
    "a fall, paired over images, that a verdict calls one; the published P is for marks only",
)
OPEN_FALL = Limit(
    0.1, "2026-11-26", "a fall on a group that nobody would accept; its own 95 % interval must lie above 0"
)
P_OPEN = Limit(
    0.2,
    "2026-11-26",
    "after Holm, up to which such a fall is called open: of 167 tests on X-rays 3 have that size and P = 1",
)

# --- test sets -------------------------------------------------------------------------------------------
TEST_IMAGES = Limit(
    10,
    "2026-11-26",
    "of each class; from none wrong of 9 an error rate of 28 % is not excluded (95 %, rule of three)",
)

ABOVE_CHANCE = Limit(
    0.1,
    "2026-11-27",
    "of the way from what a constant answer gets right to everything, lower end of the interval, for a model "
    "to be judged as one; 180 untrained classifiers of even seeds reach -0.01",
)

# --- provenance ------------------------------------------------------------------------------------------
PROVENANCE_GAP = Limit(
    0.1, "2026-07-01", "AUROC pooled against within groups; half of what separates 0.8 from chance"
)
P_PROVENANCE = Limit(0.01, "2026-07-01", "difference of η² of group and label, by permutation")

# --- anomaly ---------------------------------------------------------------------------------------------
FIT_AUROC = Limit(0.8, "2026-07-01", "below it a detector is not called one")
MISSED = Limit(
    0.5,
    "2026-11-26",
    "of the defects, at its own threshold, is no detection: by reason; PatchCore misses 60 and 55 % on the "
    "two halves of the tiles, 2 % on rendered parts",
)
MISSES = Limit(0.2, "2026-11-26", "of the defects: said in the headline of a sound detector")
WIDE = Limit(
    0.4, "2026-11-26", "width of the 95 % interval of FNR or FPR: a rate of 50 % of fewer than 20 images"
)
INVERTED_AUROC = Limit(
    0.4, "2026-07-01", "below it the score ranks defects lower than good images, not at random"
)
LOST_SHARE = Limit(
    0.1, "2026-07-01", "of the relevance on what deployment removes, for explanation and fall to agree"
)
RECOVERED = Limit(0.5, "2026-07-01", "of the fall in F1, for the intervention to agree with the explanation")
OUTSIDE = Limit(
    0.5, "2026-07-01", "Clever Hans score from which a sound verdict asks to look at the heatmaps"
)
HIGH_BAND = Limit(
    190, "2026-07-01", "zigzag index from which frequencies count as high, as in the published pictures"
)

# --- similarity ------------------------------------------------------------------------------------------
EXCESS = Limit(0.1, "2026-07-01", "by which relevance on a pasted region exceeds its area")
TIMES = Limit(1.5, "2026-07-01", "by which it exceeds what the same place carries without what is pasted")
EQUAL_WORDS = Limit(0.5, "2026-07-01", "of the positive relevance of sentence pairs between equal words")
TELLS_APART = Limit(0.8, "2026-07-01", "AUROC from which similarity tells relations apart")
GATHER = Limit(0.5, "2026-07-01", "of the images turned wrong, in one class of several")
GATHER_OF_TWO = Limit(0.8, "2026-07-01", "the same of two classes, where one gets most errors anyway")
READABLE = Limit(
    0.5, "2026-07-01", "of the way from chance to 1, for a group to be read from a representation"
)
P_GROUP = Limit(
    0.05, "2026-11-26", "falls of groups, over images, after Holm: of audits of a clean model, 1 in 20"
)

# --- classifier ------------------------------------------------------------------------------------------
TRIGGERED = Limit(0.25, "2026-07-01", "share of images with only the feature that are taken for the class")
CURED = Limit(0.25, "2026-07-01", "share of these that the mended model answers otherwise")
SPURIOUS_IMAGES = Limit(
    5, "2026-11-26", "of a class, from which its share can be told from a quarter: 95 % Wilson"
)
TAKEN = Limit(0.25, "2026-11-26", "share of a fall that one class gains, from which it is said to take over")
REORDERED = Limit(
    0.2, "2026-11-26", "by which another order of classes, chosen on half of the images, fits the rest better"
)
P_SPURIOUS = Limit(0.05, "2026-11-26", "that pasting what a component reads raises the class; Holm")
RETAINED = Limit(0.5, "2026-11-26", "lower end of the share still recognised: the object is elsewhere")
CARRIED = Limit(
    0.1,
    "2026-11-26",
    "of the way to a class, lower end, that a component or a cluster must carry elsewhere, beyond other "
    "models; clean networks reach 0.06, planted marks 0.32",
)
APART = Limit(
    0.1, "2026-11-26", "two groups of α times √sufficiency; 27 clean networks of even seeds reach 0.02"
)
PARTED = Limit(
    0.08,
    "2026-11-26",
    "how a look parts a class (spurious/looks.py); 18 clean networks of seeds 2 and 4 reach 0.04, planted "
    "casts and blurs of seeds 2 to 6 that are relied on have 0.11 and more",
)
PLACED = Limit(
    0.06,
    "2026-11-27",
    "the same of what is in the place of a component's region; 36 clean networks of seeds 2 to 8 reach 0.04, "
    "planted tags, marks and grounds of seeds 2 and 4 that are relied on have 0.07 and more",
)
CARRIED_ALONE = Limit(
    0.45, "2026-11-26", "of the way to the class, lower end, without witnesses; 27 clean networks reach 0.36"
)
WITNESSES = Limit(
    2, "2026-11-26", "with one, 2 of 8 clean networks gave a false alarm; with two, 0 of 6 others"
)

# --- discovery -------------------------------------------------------------------------------------------
DECIDES = Limit(
    0.15,
    "2026-11-27",
    "of the way to a class, lower end, that what a cluster shares must carry elsewhere; of 19 clean networks "
    "of even seeds 3 gave a false alarm at 10 %, one at 15 %, none at 20 %; planted marks carry 54 %",
)
STABLE = Limit(0.8, "2026-11-26", "adjusted Rand index over resamples, from which clusters are believed")

# --- faithfulness ----------------------------------------------------------------------------------------
FAITHFUL_IMAGES = Limit(
    6, "2026-11-26", "fewer images cannot show it: five that agree have P = 0.06, two-sided"
)
SAME_MAP = Limit(
    0.5,
    "2026-11-26",
    "|rank correlation| of maps with those of a model whose weights say nothing; half of agreement",
)

# --- comparisons -----------------------------------------------------------------------------------------
COMPARED_IMAGES = Limit(20, "2026-11-26", "in common: with fewer McNemar misses a quarter turned wrong")
SHIFTED = Limit(0.2, "2026-11-26", "distance of distributions from which a certain shift is worth an alarm")
P_SHIFT = Limit(0.01, "2026-11-26", "of it by chance, after Holm over all quantities watched")
