"""Configuration of the classifier audit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pfungst.audit.config import AuditConfig


class ClassifierConfig(AuditConfig):
    """``pfungst audit classifier``."""

    _irrelevant = (*AuditConfig._irrelevant, "batch_size", "features")

    model: str = Field(description="timm:NAME, torchvision:NAME, package.module:function or file.py:function")
    checkpoint: Path | None = Field(None, description="Weights: safetensors or a state dict")
    trust_checkpoint: bool = Field(False, description="Also read checkpoints that can run code")
    train: Path = Field(description="Training images: CLASS/*.jpg, CSV or Parquet")
    val: Path = Field(description="Validation images of the same classes")
    spurious: Path | None = Field(
        None, description="Images with only the feature: folders …_CLASS_component_L"
    )
    components: Path | None = Field(None, description="Components judged spurious, from the labelling app")
    classes: list[str] = Field([], description="Classes, comma-separated, by index or name [all]")
    class_names: Path | None = Field(
        None,
        description="Names in the order of the model's outputs: JSON list, or one a line [sorted folders]",
    )
    masks: Path | None = Field(None, description="Masks of the object, same paths, .png")
    layer: str | None = Field(None, description="The final linear layer [found by itself]")
    size: int | None = Field(None, ge=4, le=2048, description="Side of the images in pixels [the model's]")
    condition: str | None = Field(
        None, description="How files become images [as for the model's published weights]"
    )
    n_components: int = Field(128, ge=1, description="Components per class")
    candidates: int = Field(128, ge=1, description="Components that are ranked, per class")
    shown: int = Field(10, ge=1, le=128, description="Components that are kept, per class")
    steps: int = Field(200, ge=0, description="Of the feature visualisation; 0 leaves it out")
    fix: int = Field(3, ge=0, description="Suspects switched off per class without a components file")
    reference: Literal["mean", "absent"] = Field(
        "absent", description="SpuFix measures from images without the feature (absent), or all (mean)"
    )
    features: Path | None = Field(None, description="Folder to keep features in for later audits")
    batch_size: int = Field(32, ge=1, description="Images at a time")
