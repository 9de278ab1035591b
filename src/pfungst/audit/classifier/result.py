"""What the classifier audit writes."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field

from pfungst.audit.result import Interval, Model, Result, Variant


class Shown(Model):
    """A training image of high α, or the feature visualisation; files are relative to the result."""

    id: str
    file: str
    gradcam: str | None = None
    alpha: float
    confidence: float = Field(description="softmax probability of the class")


class Component(Model):
    """One neural PCA component of a class, and why it may be spurious."""

    component: int = Field(description="index by falling variance, from 0")
    harm: float = Field(
        description="geometric mean of concentration, reach (of gap and visual confidence the better) and "
        "off_object, in [0, 1]"
    )
    concentration: float = Field(
        description="how clearly α falls into two groups, times how much their gap can do, in [0, 1]"
    )
    share: float = Field(description="training images of the class in the upper group of α")
    gap: float = Field(description="mean α of the upper minus that of the lower group, in logits")
    off_object: float | None = Field(
        None, description="share of the heatmap off the object, where masks exist"
    )
    variance: float = Field(description="share of the class's variance explained")
    suspect: bool
    images: list[Shown]
    visual: Shown | None = None
    histogram: list[int] = Field(description="α of the class's training images, equal bins over `limits`")
    limits: tuple[float, float]
    split: float = Field(description="α between the two groups")


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
        None, description="accuracy under the original condition minus this, paired bootstrap over the images"
    )
    gains: list[Gain] = Field([], description="classes that gain predictions from the original condition")
    mauc: Interval | None = None
    published_map: float | None = None
    triggered: float | None = Field(None, description="mean over classes")


class Explained(Model):
    """A class with its components, before anything is measured."""

    index: int
    name: str
    n_train: int
    components: list[Component] = Field(description="most harmful first")
    ranked: int = Field(description="components that were ranked; `components` are the first of them")


class ClassEntry(Explained):
    """One class."""

    n_validation: int
    judged: list[int] | None = Field(description="components that people judged spurious")
    fixed: list[int] = Field(description="components that SpuFix switches off")
    false_positives: float | None = Field(description="share of other classes' images predicted as this one")
    scores: list[ClassScores] = Field(description="the original condition as it is, and with SpuFix, first")
    notes: list[str] = Field([], description="what a reader should know of this class")

    def under(self, condition: str = "original", mitigated: bool = False) -> ClassScores:
        """Its scores under a condition; where nothing was switched off, the mended model is the model."""
        return _under(self.scores, condition, mitigated)

    @property
    def harm(self) -> float:
        """Of its most harmful-looking component."""
        return max((c.harm for c in self.components), default=0.0)

    @property
    def suspects(self) -> list[int]:
        """Components that people judged spurious, or, where nobody looked, that the ranking suspects."""
        return self.judged if self.judged is not None else [c.component for c in self.components if c.suspect]

    @property
    def seriousness(self) -> tuple[float, float]:
        """Orders classes: the most triggered first, then the most harmful-looking."""
        spurious = self.under().spurious
        return (spurious.triggered.value if spurious else -1.0, self.harm)


class ClassifierResult(Result):
    kind: Literal["classifier"] = "classifier"
    model: str
    fingerprint: dict[str, Any]
    layer: str
    weights: str
    preprocessing: dict[str, Any]
    named_by: str = Field(description="how labels were matched to the model's outputs")
    conditions: dict[str, str] = Field(description="what each condition does, by name; the original first")
    chosen_by: Literal["people", "ranking", "nothing"] = Field(
        description="who chose the components that are fixed"
    )
    reference: Literal["mean", "absent"] = Field(
        description="images of a class that SpuFix measures from: all, or those without the feature"
    )
    n_classes: int
    n_validation: int
    entries: list[ClassEntry]
    scores: list[Scores] = Field(description="as the model is and with SpuFix, under each condition")
    accuracy_loss: Interval = Field(
        description="that SpuFix costs; paired bootstrap over the validation images"
    )
    mauc_gain: Interval | None = None
    npfv_note: str = ""
    heat_layer: str | None = None

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
