"""What the classifier audit writes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pfungst.audit.result import Interval, Model, Result


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
        description="geometric mean of concentration, reach (of gap and visual confidence the better) and off_object, in [0, 1]"
    )
    concentration: float = Field(
        description="how clearly α falls into two groups, times how much the gap between them can do, in [0, 1]"
    )
    share: float = Field(description="training images of the class in the upper group of α")
    gap: float = Field(description="mean α of the upper minus that of the lower group, in logits")
    visual_confidence: float | None = Field(None, description="confidence of the feature visualisation")
    off_object: float | None = Field(
        None, description="share of the heatmap off the object, where masks exist"
    )
    variance: float = Field(description="share of the class's variance explained")
    suspect: bool
    fixed: bool = False
    images: list[Shown]
    visual: Shown | None = None
    histogram: list[int] = Field([], description="α of the class's training images, equal bins over `limits`")
    limits: tuple[float, float] = (0.0, 0.0)
    split: float = Field(0.0, description="α between the two groups")


class SpuriousScores(Model):
    """Validation images of a class against images with only its spurious feature."""

    auc: Interval = Field(description="ROC AUC of the class's probability")
    average_precision: float = Field(description="the published code's number")
    triggered: Interval = Field(description="share of the spurious images predicted as the class")
    n_spurious: int
    n_validation: int


class ClassEntry(Model):
    """One class."""

    index: int
    name: str
    n_train: int
    n_validation: int
    components: list[Component] = Field(description="most harmful first")
    ranked: int = Field(description="components that were ranked; `components` are the first of them")
    judged: list[int] | None = Field(None, description="components that people judged spurious")
    fixed: list[int] = Field([], description="components that SpuFix switches off")
    accuracy: Interval | None = Field(None, description="share of the validation images predicted right")
    accuracy_fixed: Interval | None = None
    false_positives: float | None = Field(
        None, description="share of other classes' images predicted as this one"
    )
    scores: SpuriousScores | None = None
    scores_fixed: SpuriousScores | None = None
    notes: list[str] = Field([], description="what a reader should know of this class")


class ClassifierResult(Result):
    kind: Literal["classifier"] = "classifier"
    model: str
    fingerprint: dict[str, Any]
    layer: str
    weights: str
    preprocessing: dict[str, Any]
    chosen_by: Literal["people", "ranking", "nothing"] = Field(
        description="who chose the components that are fixed"
    )
    reference: Literal["mean", "absent"] = Field(
        "mean",
        description="the images of a class that SpuFix measures its components from: all, or those without the feature",
    )
    n_classes: int
    n_validation: int
    entries: list[ClassEntry]
    accuracy: Interval
    accuracy_fixed: Interval
    accuracy_loss: Interval = Field(description="paired bootstrap over the validation images")
    mauc: Interval | None = None
    mauc_fixed: Interval | None = None
    mauc_gain: Interval | None = None
    published_map: float | None = None
    published_map_fixed: float | None = None
    triggered: float | None = Field(None, description="mean over classes")
    triggered_fixed: float | None = None
    npfv_note: str = ""
    heat_layer: str | None = None
