"""What a similarity audit writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pfungst.audit.findings.result import Discovered
from pfungst.audit.result import Interval, Model, Result, Variant

Mark = Literal["", "↓", "↓↓", "↑"]


def named(column: str, group: str) -> str:
    """A group in words: its column is named where the group does not."""
    return group if not column or group.startswith(column.partition(">")[0].strip()) else f"{column} {group}"


class Confusion(Model):
    """Which class attracts errors, first repetition; `matrix`: rows of true, columns of predicted ones."""

    matrix: list[list[int]]
    into: str | None = Field(description="the class most errors fall into")
    share: float
    errors: int
    turned: int = Field(0, description="images that are right without the condition and wrong under it")
    turned_share: float = Field(0.0, description="of these, the share that is taken for the class `into`")


class ProbeScores(Model):
    """The probe on the images of one group under one variant, mean over repetitions."""

    variant: Variant
    column: str = Field("", description="group column; empty for all images")
    group: str = ""
    n: int
    counts: dict[str, int] = Field(description="images per class")
    accuracy: Interval = Field(description="class-balanced")
    rebalanced: Interval = Field(description="accuracy with each class's weight capped at that of 10 images")
    fpr: Interval | None = Field(None, description="two classes only")
    fnr: Interval | None = None
    per_seed: list[float] = Field([], description="class-balanced accuracy of each repetition")
    mark: Mark = Field(
        "", description="of the accuracy against the original images (mended: the same condition)"
    )
    change: Interval | None = Field(None, description="of the accuracy, over the same images or patients")
    p_value: float | None = Field(
        None, description="two-sided, by exchanging what is said of each image (patient) in the two variants"
    )


class Fall(Model):
    """The probe on a group of the original images against the others, of one class or class-balanced."""

    classes: list[str]
    n: int = Field(description="images of the group, of these classes")
    inside: float = Field(description="accuracy in the group")
    outside: float = Field(description="accuracy of the other images")
    fall: Interval = Field(description="outside less inside; bootstrap over images or their units")
    p_value: float = Field(
        description="permutation over images or their units, adjusted over all of the audit (Holm)"
    )
    mark: Literal["", "↓", "↓↓"] = ""
    into: str | None = Field(
        None, description="the class that images of the group are taken for more than others"
    )
    into_inside: float = Field(0.0, description="share of the group's images taken for it")
    into_outside: float = 0.0


class Subgroup(Model):
    """One group against all other images of the same classes."""

    column: str
    group: str
    n: int = Field(description="tested images of the group")
    whole: Fall | None = Field(
        None, description="class-balanced; None: no class has enough images on both sides"
    )
    classes: list[Fall] = Field([], description="each class by itself")
    alike: float | None = Field(
        None, description="marked groups: mean similarity of images of different classes, both in the group"
    )
    alike_outside: float | None = Field(None, description="the same of the others")
    alike_excess: Interval | None = None

    def __str__(self) -> str:
        return named(self.column, self.group)

    @property
    def falls(self) -> list[Fall]:
        """What is marked, the whole first, then classes, the largest fall first."""
        every = sorted(self.classes, key=lambda f: -f.fall.value)
        return [f for f in [self.whole, *every] if f is not None and f.mark]


class Provenance(Model):
    """Does the probe's score follow where an image came from?"""

    column: str
    label: str = Field(description="the class whose score was tested against the others")
    eta2_group: float
    eta2_label: float
    auroc_pooled: float
    auroc_within: float | None
    accuracy_pooled: float
    accuracy_within: float | None = Field(description="mean over the groups with several classes")
    by_group_alone: float = Field(
        description="class-balanced accuracy of naming each group's commonest class"
    )
    group_readable: float = Field(description="class-balanced accuracy of a probe for the group itself")
    group_chance: float
    p_value: float = Field(
        description="that the score knows no more of the group than the label tells; over units, adjusted "
        "over all classes and columns tried (Holm)"
    )
    follows: bool
    reasons: list[str] = Field([])


class Region(Model):
    """Share of the relevance of similarities on a region, and share of the area."""

    name: str
    column: str = ""
    group: str = Field("", description="class or group whose pairs were averaged; empty for all")
    share: float
    area: float


class Erased(Model):
    """What burnt-in text does to similarity: pairs of images of different classes, both with text."""

    images: float = Field(description="share of the tested images that have text")
    alike: float = Field(description="mean cosine similarity less that of pairs without text")
    alike_erased: float = Field(description="the same with the text erased")
    alike_opposite: float = Field(description="the same with as much erased at the opposite place")


class Faithful(Model):
    """Whether the explanations are any: patches replaced in their order against a random order."""

    value: Interval = Field(description="0 is a random order; see pfungst.measure.faithfulness")
    images: int

    @property
    def beats_random(self) -> bool:
        """Whether the whole interval lies above what a random order has."""
        return self.value.low is not None and self.value.low > 0

    def __str__(self) -> str:
        said = "beats" if self.beats_random else "does not beat"
        ends = f"{self.value.low:+.2f} to {self.value.high:+.2f}"
        return f"{self.value.value:+.2f} ({ends}) over {self.images} images: {said} a random order of patches"


class Artefact(Model):
    """What pasting something into the images does to the similarity of images of different classes."""

    condition: str
    area: float = Field(description="share of the patches that hold it")
    share: float = Field(description="of the relevance on these patches, with it")
    share_without: float = Field(description="of the relevance on these patches, without it")
    similarity: float = Field(description="mean cosine similarity with it")
    similarity_without: float
    evidence: float = Field(
        description="share on these patches of the probe's evidence for the class that errors fall into "
        "against the true class, with it"
    )
    evidence_without: float


class Trial(Model):
    """One row of the mitigation sweep, on validation images; the first is the encoder as it is."""

    layer: str
    k: int
    where: str = Field("", description="everywhere, or rows and columns of the feature map")
    share: float = Field(description="of the positive response of the layer that the k filters hold")
    accuracy: float
    conditions: dict[str, float]


class Mitigation(Model):
    """What was pruned, and how it was chosen."""

    spec: str
    filters: list[int] = Field(description="the filters set to zero")
    trials: list[Trial]
    chosen: int = Field(description="the row of the trials that was taken")
    images: int = Field(description="validation images")
    recovered: dict[str, float | None] = Field(
        {}, description="per condition: share of the fall that came back"
    )


class Group(Model):
    """BiLRP averaged over pairs within a class or group; its heatmap is a row of the array ``profiles``."""

    column: str = Field(description="empty for the label")
    name: str
    pairs: int
    similarity: float
    top_share: float = Field(description="share of the relevance that the ten strongest patch pairs carry")
    bias_share: float
    row: int


class Pair(Model):
    """One explained pair; `array` names its matrix (P, Q) in the arrays."""

    array: str
    title: str
    first: str
    second: str
    tags: list[list[str]] = Field([[], []], description="label and groups of each side")
    similarity: float
    bias_share: float
    grids: tuple[list[int], list[int]]
    rows: tuple[int, int] = Field((0, 0), description="rows of the array ``pictures``")
    tokens: tuple[list[str], list[str]] | None = None


class Relation(Model):
    """Text pairs of one relation."""

    name: str
    n: int
    similarity: Interval
    shared_tokens: float = Field(description="share of the positive relevance between equal tokens")
    special_tokens: float = Field(description="share of the relevance on separators and punctuation")
    bias_share: float


SIMILARITY = {"cosine": "cosine similarity", "dot": "dot product"}
"""Metrics in words."""


class Findings(Model):
    """All that was measured and explained; the verdict is made of it."""

    encoder: str
    trained: bool
    width: int = Field(description="values of a representation")
    modality: Literal["images", "texts"]
    n: int
    classes: list[str]
    columns: list[str] = Field([])
    split: str
    kept_together: str | None = None
    variants: list[Variant] = Field(
        [], description="original, the conditions, and with a mitigation all of them mended"
    )
    seeds: list[int] = Field([])
    scores: list[ProbeScores] = Field([])
    subgroups: list[Subgroup] = Field([])
    confusion: dict[str, Confusion] = Field({}, description="by the key of a variant")
    provenance: list[Provenance] = Field([])
    artefacts: list[Artefact] = Field([])
    regions: list[Region] = Field([])
    erased: Erased | None = Field(None, description="None: text was not looked for, or is too rare")
    faithfulness: Faithful | None = Field(None, description="None: too few images, or texts")
    summaries: list[Group] = Field([])
    mitigation: Mitigation | None = None
    discovery: Discovered | None = Field(None, description="what nobody named, where it was looked for")
    pairs: list[Pair] = Field([])
    relations: list[Relation] = Field([])
    auroc: float | None = Field(
        None, description="texts: similarity of the first relation against the second"
    )
    basis: str
    metric: Literal["cosine", "dot"] = Field("cosine", description="the similarity that is explained")
    composite: str = Field(description="the rules")
    conservation: float = Field(description="largest |sum + bias − similarity| relative to the similarity")
    remainder: float | None = Field(
        None,
        description="largest relative size of what a decomposition left out of a pair; None for exact ones",
    )

    def pooled(self, variant: Variant) -> ProbeScores | None:
        """The scores over all images."""
        return next((s for s in self.scores if s.variant == variant and not s.column), None)

    def score(self, variant: Variant) -> ProbeScores:
        """The same of a variant that there is."""
        found = self.pooled(variant)
        assert found is not None
        return found

    @property
    def conditions(self) -> list[Variant]:
        """The conditions, without the original images and without the mended encoder."""
        return [v for v in self.variants[1:] if not v.mitigated]

    @property
    def falling(self) -> list[Subgroup]:
        """The groups with a mark, the largest fall first."""
        return sorted((g for g in self.subgroups if g.falls), key=lambda g: -g.falls[0].fall.value)


class SimilarityResult(Result, Findings):
    """What the similarity audit writes.

    Arrays (npz): images: ``embedding`` (N, 2), ``ids``, ``labels``, ``predicted`` (N,) str,
    ``group_COLUMN`` (N,) str, ``stamped_I`` (2 M, 2) of M images as they are, then with the logo of condition
    I, ``stamped_labels`` (M,) str, ``pictures`` (E, S, S, 3) uint8, ``profiles`` (G, H, W), ``background``
    (G, S, S) uint8, ``pair_I`` (P, Q).
    Texts: ``similarities`` (N,), ``relations`` (N,) str, ``pair_I``."""

    kind: Literal["similarity"] = "similarity"
    arrays: str = ""
