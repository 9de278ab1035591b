"""Configuration of the classifier audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pfungst.audit.config import AuditConfig


class ClassifierConfig(AuditConfig):
    """``pfungst audit classifier``."""

    paths: ClassVar[tuple[str, ...]] = (
        "out", "train", "val", "spurious", "components", "checkpoint", "masks", "features", "class_names",
    )  # fmt: skip
    _irrelevant = ("out", "resume", "overwrite", "device", "batch_size", "workers", "features")

    model: str = Field(description="timm:NAME, torchvision:NAME, package.module:function or file.py:function")
    checkpoint: Path | None = Field(None, description="weights: safetensors or a state dict")
    trust_checkpoint: bool = Field(False, description="also read checkpoints that can run code")
    layer: str | None = Field(None, description="the final linear layer, where it is not found by itself")
    train: Path = Field(description="training images, CLASS/*.jpg, CSV or Parquet")
    val: Path = Field(description="validation images of the same classes")
    class_names: Path | None = Field(
        None,
        description="names in the order of the model's outputs: JSON list, or one a line; else sorted folders",
    )
    spurious: Path | None = Field(
        None, description="images that show only a spurious feature: folders …_CLASS_component_L"
    )
    components: Path | None = Field(
        None, description="components that people judged spurious (from the labelling app)"
    )
    masks: Path | None = Field(
        None, description="masks of the object, same paths as the training images, .png"
    )
    classes: list[int | str] = Field([], description="classes to audit, by index or name; all if not given")
    size: int | None = Field(None, ge=4, le=2048, description="side of the images in pixels")
    condition: str | None = Field(None, description="how files are brought to that size")
    n_components: int = Field(128, ge=1, description="components per class")
    candidates: int = Field(
        128, ge=1, description="components of highest variance that are looked at, per class"
    )
    shown: int = Field(10, ge=1, le=128, description="components kept per class")
    steps: int = Field(200, ge=0, description="of the feature visualisation; 0 leaves it out")
    fix: int = Field(3, ge=0, description="suspects switched off per class where no components file is given")
    reference: Literal["mean", "absent"] = Field(
        "absent",
        description="what SpuFix measures from: images of the class that lack the feature (absent), or all (mean, as published)",
    )
    batch_size: int = Field(32, ge=1, description="images at a time")
    workers: int = Field(0, ge=0, description="processes that load images")
    features: Path | None = Field(
        None, description="folder to keep features in for later audits of the same model"
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _classes(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, list | tuple):
            return [int(v) if isinstance(v, str) and v.isdigit() else v for v in value]
        return value
