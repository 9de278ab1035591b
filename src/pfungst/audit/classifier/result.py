"""What the classifier audit writes."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field

from pfungst.audit.findings.result import Discovered
from pfungst.audit.result import Interval, Model, Result, Variant

ChosenBy = Literal["people", "rule", "evidence", "transfer", "nothing"]


class Shown(Model):
    """A training image of high α, or the feature visualisation; files are relative to the result."""

    id: str
    file: str
    region: str | None = Field(None, description="the same with the region outlined that α comes from")
    alpha: float
    confidence: float = Field(description="softmax probability of the class")


class Tested(Model):
    """What interventions on a component's region did, see :class:`pfungst.spurious.Evidence`."""

    on: Literal["validation", "training"] = Field(description="where the images are from")
    images: int
    necessity: list[Interval] = Field(description="nats lost without the region; this model, then witnesses")
    sufficiency: list[Interval] = Field(description="share of the class that it carries into other images")
    excess: Interval = Field(description="sufficiency of this model beyond that of any witness")
    retained: Interval = Field(description="share of the images that are recognised without it")
    flips: tuple[float, float] = Field(description="share taken for the class then, and with other content")
    p: float
    corrected: float = Field(description="p, corrected for all components of all classes (Holm)")
    beside: float = Field(
        description="how surely it acts on a part of the class only and carries it elsewhere"
    )
    divides: bool = Field(description="whether the class is shown to have images without it")
    how: str = Field(description="what was changed: the region, or a look of whole images (looks.py)")
    word: Literal["spurious", "core", "unclear"]
    suspect: bool = Field(description="spurious, or but for the number of witnesses")
    reason: str


class Component(Model):
    """One neural PCA component of a class, and what interventions say of it."""

    component: int = Field(description="index by falling variance, from 0")
    variance: float = Field(description="share of the class's variance explained")
    adds: float = Field(description="mean α of its training images of highest α, in logits")
    off_object: float | None = Field(
        None, description="share of the relevance of α off the object, where masks exist"
    )
    tested: Tested | None = Field(None, description="None where there are too few images")
    images: list[Shown]
    visual: Shown | None = None
    histogram: list[int] = Field(description="α of the class's training images, equal bins over `limits`")
    limits: tuple[float, float]

    @property
    def spurious(self) -> bool:
        """Whether interventions prove it."""
        return self.tested is not None and self.tested.word == "spurious"

    @property
    def suspect(self) -> bool:
        """Whether it is, or would be with enough witnesses (not needed with images of only the feature)."""
        return self.tested is not None and self.tested.suspect

    @property
    def order(self) -> tuple[bool, float, float, float]:
        """Sorts what to look at first when sorted in falling order: what is proven, then what divides the
        class and carries it, then what carries it, and what is not shown to do so by what it adds."""
        if self.tested is None:
            return self.spurious, 0.0, 0.0, self.adds
        carried = max(self.tested.sufficiency[0].low or 0.0, 0.0)
        return self.spurious, round(self.tested.beside, 2), carried, self.adds


class SpuriousScores(Model):
    """Validation images of a class against images with only its spurious feature."""

    auc: Interval = Field(description="ROC AUC of the class's probability")
    average_precision: float = Field(description="the published code's number")
    triggered: Interval = Field(description="share of the spurious images predicted as the class")
    n_spurious: int
    n_validation: int


class ClassScores(Model):
    """One class under one variant."""

    variant: Variant
    accuracy: Interval | None = Field(description="share of its validation images predicted right")
    spurious: SpuriousScores | None = None


class Gain(Model):
    """A class that takes images over under a condition; before and after."""

    index: int
    name: str
    predicted: tuple[int, int] = Field(description="validation images predicted as it")
    probability: tuple[float, float] = Field(description="its mean probability over the validation images")
    times: float = Field(description="its probability after over before, median over the images")


class Scores(Model):
    """The whole model under one variant."""

    variant: Variant
    accuracy: Interval
    fall: Interval | None = Field(
        None, description="accuracy under the original condition minus this on the same images (Newcombe)"
    )
    gains: list[Gain] = Field([], description="classes that gain predictions from the original condition")
    rises: Gain | None = Field(None, description="the class whose probability rises most, median over images")
    among: float | None = Field(
        None,
        description="accuracy with answers limited to the classes of the validation images, if more exist",
    )
    mauc: Interval | None = None
    published_map: float | None = None
    triggered: float | None = Field(None, description="mean over classes")


class Explained(Model):
    """A class with its components, before anything is measured."""

    index: int
    name: str
    n_train: int
    components: list[Component] = Field(description="proven spurious first, then by sufficiency")
    ranked: int = Field(description="components that were ranked; `components` are the first of them")


class ClassEntry(Explained):
    """One class."""

    n_validation: int
    judged: list[int] | None = Field(description="components that people judged spurious")
    fixed: list[int] = Field(description="components that SpuFix switches off")
    transferred: list[int] = Field([], description="the same, of the model that they are carried over from")
    false_positives: float | None = Field(description="share of other classes' images predicted as this one")
    scores: list[ClassScores] = Field(description="the original condition as it is, and with SpuFix, first")
    notes: list[str] = Field([], description="what a reader should know of this class")

    def under(self, condition: str = "original", mitigated: bool = False) -> ClassScores:
        """Its scores under a condition; where nothing was switched off, the mended model is the model."""
        return _under(self.scores, condition, mitigated)

    @property
    def mended(self) -> bool:
        """Whether SpuFix changes its logit."""
        return bool(self.fixed or self.transferred)

    @property
    def suspects(self) -> list[int]:
        """Components that people judged spurious, or, where nobody looked, that interventions suspect."""
        return self.judged if self.judged is not None else [c.component for c in self.components if c.suspect]

    @property
    def proven(self) -> list[Component]:
        """The suspects that interventions prove spurious, the strongest first."""
        return [c for c in self.components if c.spurious and c.component in self.suspects]

    @property
    def carried(self) -> float:
        """What its strongest component carries elsewhere, for certain: the lower end of the sufficiency."""
        return max((c.tested.sufficiency[0].low or 0.0 for c in self.components if c.tested), default=0.0)

    @property
    def seriousness(self) -> tuple[float, int, float]:
        """Orders classes: the most triggered first, then the proven, then by what components carry."""
        spurious = self.under().spurious
        return (spurious.triggered.value if spurious else -1.0, len(self.proven), self.carried)


class Faithful(Model):
    """Whether the regions shown are those that α depends on: patches replaced in their order, 0 is random."""

    value: Interval
    images: int
    beats_random: bool
    words: str


class ClassifierResult(Result):
    """What the classifier audit writes."""

    kind: Literal["classifier"] = "classifier"
    model: str
    fingerprint: dict[str, Any]
    layer: str
    weights: str
    preprocessing: dict[str, Any]
    named_by: str = Field(description="how labels were matched to the model's outputs")
    conditions: dict[str, str] = Field(description="what each condition does, by name; the original first")
    chosen_by: ChosenBy = Field(
        description="who chose the components that are fixed; rule: a file that no person made; transfer: "
        "the audit of another model"
    )
    transferred_from: str = Field("", description="the model whose components are carried over")
    reference: Literal["mean", "absent"] = Field(
        description="images of a class that SpuFix measures from: all, or those without the feature"
    )
    n_classes: int
    n_validation: int
    entries: list[ClassEntry]
    scores: list[Scores] = Field(description="as the model is and with SpuFix, under each condition")
    accuracy_loss: Interval = Field(description="that SpuFix costs on the validation images (Newcombe)")
    mauc_gain: Interval | None = None
    npfv_note: str = ""
    rule: Literal["alpha", "npfv"]
    witnesses: list[str] = Field(description="other models that know the classes")
    faithfulness: Faithful | None = None
    discovery: Discovered | None = Field(None, description="what nobody named, where it was looked for")
    arrays: str = Field(
        "",
        description="npz: ids (N,) and labels (N,) of the validation images, predicted_KEY (N,) per variant",
    )

    def under(self, condition: str = "original", mitigated: bool = False) -> Scores:
        """The scores under a condition; where nothing was switched off, the mended model is the model."""
        return _under(self.scores, condition, mitigated)

    @property
    def accuracy(self) -> Interval:
        """Of the model as it is, under the original condition."""
        return self.under().accuracy


S = TypeVar("S", ClassScores, Scores)


def _under(scores: list[S], condition: str, mitigated: bool) -> S:
    found = {s.variant: s for s in scores}
    return found.get(Variant(condition=condition, mitigated=mitigated)) or found[Variant(condition=condition)]
