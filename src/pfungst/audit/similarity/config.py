"""Configuration of the similarity audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pfungst.audit.config import AuditConfig, listed


class SimilarityConfig(AuditConfig):
    """``pfungst audit similarity``."""

    _irrelevant: ClassVar[tuple[str, ...]] = (*AuditConfig._irrelevant, "cache")

    encoder: str = Field(
        description="for example torchvision:resnet50, timm:resnet18, sentence-transformers:PATH"
    )
    checkpoint: Path | None = Field(None, description="weights of the encoder; random ones without")
    trust_checkpoint: bool = Field(False, description="also read checkpoints that can run code")
    size: int | None = Field(None, ge=8, le=2048, description="side of the images in pixels [the encoder's]")
    images: Path | str | None = Field(None, description="folder, CSV or Parquet of images, or synthetic")
    texts: Path | None = Field(
        None, description="CSV of sentence pairs with the columns first, second, relation"
    )
    category: str | None = Field(None, description="category, where the data have several")
    labels: str = Field("label", description="column that the probe predicts")
    positive: str | None = Field(
        None, description="of two labels the one that false positives are counted for"
    )
    groups: list[str] = Field(["auto"], description="columns that say where images come from; auto, or none")
    keep_together: str = Field(
        "auto", description="column whose values are never split between training and test; auto, or none"
    )
    split: Literal["auto", "given", "folds"] = Field(
        "auto", description="given: the data's training and test images; folds: every image is tested once"
    )
    folds: int = Field(5, ge=2, le=50, description="number of folds")
    condition: list[str] = Field([], description="what to test under, for example logo:tag.png, jpeg:30")
    probe: Literal["logreg", "svm"] = Field("logreg", description="logreg or svm")
    mitigate: str = Field("none", description="prune:LAYER:5, prune:LAYER:5:rows=90-, prune:auto, or none")
    sweep: list[int] = Field([1, 2, 5, 10, 20], description="numbers of filters to try in the sweep")
    patches: int | None = Field(
        None, ge=1, description="side of the patches in pixels [about a 14th of the image]"
    )
    pairs: int = Field(2, ge=1, le=20, description="most similar pairs shown per class")
    explain: int = Field(
        40, ge=2, description="number of images for averages; those of the pairs shown come on top"
    )
    limit: int | None = Field(None, ge=2, description="use this many images, drawn at random")
    cache: Path | None = Field(None, description="folder of the embeddings [in the output folder]")

    @field_validator("groups", "condition", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        # Options of a logo are separated by commas too: conditions are separated by semicolons.
        if isinstance(value, str) and ("logo:" in value or ";" in value):
            return [part.strip() for part in value.split(";") if part.strip()]
        return listed(value)

    @field_validator("sweep", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return [int(part) for part in listed(value)] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.images is None) == (self.texts is None):
            raise ValueError("give either images or texts")
        if self.mitigate != "none" and not self.condition:
            raise ValueError("a mitigation needs a condition that shows the artefact, for example logo:FILE")
        return self
