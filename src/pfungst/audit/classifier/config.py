"""Configuration of the classifier audit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pfungst.audit.config import Discovering
from pfungst.audit.given import LabelledOptions


class ClassifierConfig(LabelledOptions, Discovering):
    """``pfungst audit classifier``."""

    _irrelevant = (*LabelledOptions._irrelevant, "batch_size", "features")
    _audits = ("transfer",)

    model: str = Field(
        description="timm:NAME, torchvision:NAME, package.module:function or file.py:function; several: A,B "
        "or A,checkpoint=FILE,size=PIXELS,B"
    )
    checkpoint: Path | None = Field(None, description="Weights: safetensors or a state dict")
    trust_checkpoint: bool = Field(False, description="Also read checkpoints that can run code")
    train: Path = Field(description="Training images: CLASS/*.jpg, CSV or Parquet")
    val: Path = Field(description="Validation images of the same classes")
    spurious: Path | None = Field(
        None,
        description="Images with only the feature: folders …_CLASS_component_L, CLASS a label or an index",
    )
    components: Path | None = Field(None, description="Components judged spurious, from the labelling app")
    transfer: Path | Literal["first"] | None = Field(
        None,
        description="Switch off what this audit of another model switches off, carried over to this one; "
        "first: the first one's of several models",
    )
    classes: list[str] = Field([], description="Classes, comma-separated, by name, WordNet id or index [all]")
    class_names: Path | None = Field(
        None,
        description="Names in the order of the model's outputs: JSON list, or one a line "
        "[ImageNet's classes, or sorted]",
    )
    masks: Path | None = Field(None, description="Masks of the object, same paths, .png")
    layer: str | None = Field(None, description="The final linear layer [found by itself]")
    size: int | None = Field(None, ge=4, le=2048, description="Side of the images in pixels [the model's]")
    original: str | None = Field(
        None, description="How files become images [as for the model's published weights]"
    )
    deployed: str | None = Field(None, description="Condition after deployment, measured on --val too")
    condition: list[str] = Field(
        [], description="Measure --val under it too: logo:FILE, jpeg:30, … May be repeated"
    )
    witness: list[str] = Field(
        [],
        description="Another model that knows the classes, SPEC[,checkpoint=FILE]; none: no other. May be "
        "repeated; two prove most [of ImageNet's classes two installed networks]",
    )
    n_components: int = Field(128, ge=1, description="Components per class")
    rule: Literal["alpha", "npfv"] = Field(
        "alpha",
        description="Which components are tested: those that add most to the logit (alpha), or whose "
        "visualisation is most confident (npfv, as published; for adversarially robust models)",
    )
    candidates: int = Field(128, ge=1, description="Components that --rule npfv visualises, per class")
    shown: int = Field(3, ge=1, le=128, description="Components that are tested and shown, per class")
    steps: int | None = Field(
        None, ge=0, description="Of the feature visualisation; 0 leaves it out [200 with --rule npfv, else 0]"
    )
    fix: int = Field(
        3, ge=0, description="Components proven spurious that are switched off per class without a file"
    )
    reference: Literal["mean", "absent"] = Field(
        "absent", description="SpuFix measures from images without the feature (absent), or all (mean)"
    )
    features: Path | None = Field(None, description="Folder to keep features in for later audits")
    batch_size: int = Field(32, ge=1, description="Images at a time")

    @property
    def visual_steps(self) -> int:
        """Of the feature visualisation, 0 for none."""
        return self.steps if self.steps is not None else 200 * (self.rule == "npfv")
