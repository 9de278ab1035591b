"""What the anomaly audit writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pfungst.audit.result import Interval, Model, Result, Skipped


class Scores(Model):
    """One detector on one test set, mean over seeds; rates at the detector's own threshold."""

    auroc: Interval
    f1: Interval
    f1_balanced: Interval
    fnr: Interval
    fpr: Interval
    balanced_accuracy: Interval
    clever_hans: Interval | None = Field(None, description="AUROC minus mean cosine of relevance and mask")
    mark: Literal["", "↓", "↓↓", "↑"] = Field("", description="of F1 against the column to compare with")
    p_value: float | None = Field(None, description="two-sided t-test over seeds; None for fewer than 3")


class Group(Model):
    name: str
    n_good: int
    n_defect: int
    mean_score: float
    auroc: float | None = Field(None, description="None where a class is missing")


class Provenance(Model):
    """Does the score follow where an image came from?"""

    column: str
    eta2_group: float
    eta2_label: float
    auroc_pooled: float
    auroc_within: float | None
    follows: bool
    reasons: list[str] = []
    groups: list[Group]


class Spectrum(Model):
    """Where in frequency the relevance lies, share per band (bands of the zigzag index)."""

    edges: list[int]
    original: list[float]
    mitigated: list[float] | None = None
    kept: list[float] = Field(description="energy of the deployed images relative to the original, per band")


class Example(Model):
    """One test image shown; its pictures are row `row` of the entry's arrays."""

    id: str
    row: int
    label: str
    defect: bool
    groups: dict[str, str] = {}
    score_original: float
    score_deployed: float
    score_mitigated: float | None = None
    flagged_original: bool
    flagged_deployed: bool
    flagged_mitigated: bool | None = None
    why: str = Field(description="why it is shown, for example 'missed after deployment'")


class Entry(Model):
    """One category and one detector.

    Arrays (npz): ``labels`` (N,) 1 = defect; ``kinds`` and ``ids`` (N,) str; ``scores_VARIANT`` (N,) and
    ``threshold_VARIANT`` () of the first seed, VARIANT one of the keys of `variants`; for the examples
    ``image``, ``image_deployed`` (E, S, S, 3) uint8, ``mask`` (E, S, S) uint8, ``heat``, ``heat_mitigated``
    (E, S, S) and ``joint`` (E, 3, S, S) float16, low, middle and high frequencies, all relevance of the image
    under the original condition; ``group_COLUMN`` (N,) str.
    """

    category: str
    model: str
    n_train: int
    n_good: int
    n_defect: int
    kinds: dict[str, int]
    variants: dict[str, Scores] = Field(
        description="original, deployed and, with a mitigation, mitigated_original, mitigated (both conditions)"
    )
    trivial_f1: float = Field(description="plain F1 of flagging everything")
    threshold: float
    spectrum: Spectrum | None = None
    exposure: dict[str, float] = Field(
        {}, description="high, outside_mask, lost_in_deployment: shares in [0, 1]"
    )
    per_seed: dict[str, dict[str, list[float]]] = Field(
        {}, description="variant → metric → value of each seed"
    )
    provenance: list[Provenance] = []
    examples: list[Example] = []
    arrays: str = Field(description="npz file, relative to the result")
    notes: list[str] = []
    skipped: list[Skipped] = []


class AnomalyResult(Result):
    kind: Literal["anomaly"] = "anomaly"
    original: str
    deployed: str
    mitigation: str | None
    protocol: Literal["held-out", "published"]
    size: int
    seeds: list[int]
    entries: list[Entry]
    mean: dict[str, dict[str, Scores]] = Field(description="per model, per variant: mean over categories")
