"""What the anomaly audit writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pfungst.audit.findings.result import Discovered, DiscoveryEntry
from pfungst.audit.result import Interval, Model, Result, Skipped, Variant
from pfungst.errors import DataError
from pfungst.measure import Change
from pfungst.measure import Interval as Span


class Scores(Model):
    """One detector on the test images of one variant, mean over seeds; rates at its own threshold."""

    variant: Variant
    auroc: Interval
    f1: Interval
    f1_balanced: Interval
    fnr: Interval
    fpr: Interval
    balanced_accuracy: Interval
    clever_hans: Interval | None = Field(None, description="AUROC minus mean cosine of relevance and mask")
    mark: Literal["", "↓", "↓↓", "↑"] = Field("", description="of F1 against the variant to compare with")
    p_value: float | None = Field(
        None, description="two-sided, by exchanging what is said of each image in the two variants"
    )
    change: Interval | None = Field(None, description="of F1, over the same images; positive where it rose")
    spread: float | None = Field(None, description="of the change, were the two variants exchangeable")
    per_seed: dict[str, list[float]] = Field({}, description="measure → value of each seed")

    @property
    def compared(self) -> Change | None:
        """The change of F1 as it was measured."""
        if self.change is None or self.p_value is None or self.spread is None:
            return None
        value, low, high = self.change.value, self.change.low, self.change.high
        assert low is not None
        assert high is not None
        before = self.f1.value - value
        return Change(before, self.f1.value, Span(value, low, high), self.p_value, self.spread, self.mark)


class Scored(Model):
    """Scores of one detector: original, deployed and, with a mitigation, both mended."""

    scores: list[Scores]

    def of(self, condition: str, mitigated: bool = False) -> Scores:
        """The scores of a variant. Raises DataError where there are none."""
        wanted = Variant(condition=condition, mitigated=mitigated)
        found = next((s for s in self.scores if s.variant == wanted), None)
        if found is None:
            raise DataError(f"the result has no scores of {wanted} images", "run the audit again")
        return found

    @property
    def original(self) -> Scores:
        return self.of("original")

    @property
    def deployed(self) -> Scores:
        return self.of("deployed")

    @property
    def mended(self) -> Scores | None:
        """The mended detector on the deployed images, None without a mitigation."""
        return self.of("deployed", True) if any(s.variant.mitigated for s in self.scores) else None

    @property
    def fall(self) -> float:
        """Of F1 through deployment."""
        return self.original.f1.value - self.deployed.f1.value


class Group(Model):
    """One group of a column."""

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
    """Where in frequency the relevance lies: mean over the defective test images of the share per band
    (bands of the zigzag index), as in figure 4 b of Kauffmann et al. 2025."""

    edges: list[int]
    original: list[float]
    mitigated: list[float] | None = None
    kept: list[float] = Field(description="energy of the deployed images relative to the original, per band")


class Exposure(Model):
    """Shares of the relevance on the defective images, original condition, in [0, 1]."""

    high: float = Field(description="on high frequencies")
    lost_in_deployment: float = Field(description="on what the deployed condition removes")
    outside_mask: float | None = Field(None, description="off the defect; None without masks")


class Faithfulness(Interval):
    """How much better the pixel explanation of the original detector is than a random order of patches: 0 is
    random, see :class:`pfungst.measure.faithfulness.Faithfulness`."""

    images: int = Field(description="whose patches were replaced by normal ones")

    @property
    def beats_random(self) -> bool:
        return self.low is not None and self.low > 0


class Answer(Model):
    """What one variant said of an example, first seed."""

    variant: Variant
    score: float
    flagged: bool


class Example(Model):
    """One test image shown; its pictures are row `row` of the entry's arrays."""

    id: str
    row: int
    label: str
    defect: bool
    groups: dict[str, str] = {}
    answers: list[Answer] = Field(
        description="original, deployed and, with a mitigation, deployed and mended"
    )
    bands: list[float] = Field(
        [], description="share of the original detector's relevance per frequency band"
    )
    why: str = Field(description="why it is shown, for example 'missed after deployment'")


class Entry(Scored):
    """One category and one detector.

    Arrays (npz): ``labels`` (N,) 1 = defect; ``kinds`` and ``ids`` (N,) str; ``scores_KEY`` (N,) and
    ``threshold_KEY`` () of the first seed, KEY that of each variant in `scores`; for the examples ``image``,
    ``image_deployed`` (E, S, S, 3) uint8, ``mask`` (E, S, S) uint8, ``heat``, ``heat_mended`` (E, S, S) and
    ``joint`` (E, 3, S, S) float16, low, middle and high frequencies, all relevance of the image under the
    original condition; ``group_COLUMN`` (N,) str.
    """

    category: str
    model: str
    n_train: int
    n_good: int
    n_defect: int
    kinds: dict[str, int]
    trivial_f1: float = Field(description="plain F1 of flagging everything")
    threshold: float
    spectrum: Spectrum | None = Field(None, description="None where the detector is not explained")
    exposure: Exposure | None = Field(None, description="None where the detector is not explained")
    faithfulness: Faithfulness | None = Field(None, description="None where it could not be measured")
    provenance: list[Provenance] = []
    examples: list[Example] = []
    discovered: list[DiscoveryEntry] = Field([], description="moved into the result when all are done")
    arrays: str = Field(description="npz file, relative to the result")
    notes: list[str] = []
    skipped: list[Skipped] = []

    @property
    def name(self) -> str:
        return f"{self.category} / {self.model}"


class AnomalyResult(Result):
    """What the anomaly audit writes."""

    kind: Literal["anomaly"] = "anomaly"
    original: str
    deployed: str
    mitigation: str | None
    protocol: Literal["held-out", "published"]
    size: int | tuple[int, int] = Field(description="side of the images in pixels, or height and width")
    seeds: list[int]
    entries: list[Entry]
    mean: dict[str, Scored] = Field(description="per model: mean over categories")
    discovery: Discovered | None = Field(None, description="what nobody named, where it was looked for")
