"""Configuration of discovery."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pfungst.audit.given import LabelledOptions


class DiscoveryConfig(LabelledOptions):
    """``pfungst discover``."""

    _irrelevant = (*LabelledOptions._irrelevant, "batch_size")

    model: str = Field(description="timm:NAME, torchvision:NAME, package.module:function or file.py:function")
    checkpoint: Path | None = Field(None, description="Weights: safetensors or a state dict")
    trust_checkpoint: bool = Field(False, description="Also read checkpoints that can run code")
    images: Path = Field(
        description="Labelled images, best not those of training: CLASS/*.jpg, CSV or Parquet"
    )
    witness: list[str] = Field(
        [],
        description="Other models of the same outputs: what they take for a class too is the object. "
        "May be repeated",
    )
    classes: list[str] = Field([], description="Classes, comma-separated, by name, WordNet id or index [all]")
    class_names: Path | None = Field(
        None,
        description="Names in the order of the model's outputs: JSON list, or one a line "
        "[ImageNet's, or sorted]",
    )
    group: list[str] = Field(
        ["auto", "files"], description="Columns that clusters are compared with: names, auto, files or none"
    )
    layer: str | None = Field(None, description="The final linear layer [found by itself]")
    size: int | None = Field(None, ge=4, le=2048, description="Side of the images in pixels [the model's]")
    original: str | None = Field(None, description="How files become images [as for the published weights]")
    per_class: int = Field(500, ge=6, description="Images of a class that are explained, drawn at random")
    most: int = Field(6, ge=1, le=20, description="Clusters per class and kind of explanation")
    changed: int = Field(40, ge=6, description="Images of a cluster that are changed to prove it")
    batch_size: int = Field(16, ge=1, description="Images at a time")

    def no_pass(self) -> str:
        """Explanations need gradients, which the pass over images for workers does not give."""
        return "discovery explains image by image, in one process"
