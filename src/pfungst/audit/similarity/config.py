"""Configuration of the similarity audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pfungst.audit.config import Discovering, Repeated
from pfungst.audit.given import ImageOptions
from pfungst.registry import CONDITIONS


class SimilarityConfig(ImageOptions, Repeated, Discovering):
    """``pfungst audit similarity``."""

    _irrelevant: ClassVar[tuple[str, ...]] = (*ImageOptions._irrelevant, "cache")

    images: Path | Literal["synthetic"] | None = Field(
        None, description="Folder, CSV or Parquet of images, or 'synthetic'"
    )
    encoder: str = Field(
        description="torchvision:NAME, timm:NAME, open_clip:NAME, sentence-transformers:PATH, …; several: "
        "A,B or A,checkpoint=FILE,size=PIXELS,B"
    )
    texts: Path | None = Field(None, description="CSV of sentence pairs: first, second, relation")
    checkpoint: Path | None = Field(None, description="Weights of the encoder; random ones without")
    trust_checkpoint: bool = Field(False, description="Also read checkpoints that can run code")
    size: int | None = Field(None, ge=8, le=2048, description="Side of the images in pixels [the encoder's]")
    original: str | None = Field(
        None,
        description="How files become images; pillow-bicubic: whole, without a crop [as for the published "
        "weights]",
    )
    category: str | None = Field(None, description="Category, where the data have several")
    labels: str = Field("label", description="Column that the probe predicts")
    classes: list[str] = Field([], description="Labels to audit, comma-separated [all]")
    positive: str | None = Field(None, description="Of two labels the one false positives are counted for")
    groups: list[str] = Field(
        ["auto"],
        description="Columns that say where images come from, or COLUMN>NUMBER; auto; files, text, "
        "people: what the files themselves tell; or none",
    )
    groups_file: Path | None = Field(
        None, description="CSV with more columns of the images, which its column path (or id) names"
    )
    keep_together: str = Field(
        "auto", description="Column never split between training and test, such as patient; auto, or none"
    )
    split: Literal["auto", "given", "folds"] = Field(
        "auto", description="given: the data's training and test images; folds: every image is tested once"
    )
    folds: int = Field(5, ge=2, le=50, description="Number of folds")
    condition: list[str] = Field(
        [],
        description=f"Test under it too, such as jpeg:30 ({', '.join(CONDITIONS)}). May be repeated",
    )
    probe: Literal["logreg", "svm"] = Field("logreg", description="logreg or svm")
    mitigate: str = Field("none", description="prune:LAYER:5, prune:LAYER:5:rows=90-, prune:auto or none")
    sweep: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 2, 5, 10, 20], min_length=1, description="Numbers of filters to try"
    )
    patches: int | None = Field(
        None, ge=1, description="Side of the patches in pixels [about a 14th of the image]"
    )
    pairs: int = Field(2, ge=1, le=20, description="Most similar pairs shown per class")
    explain: int = Field(40, ge=2, description="Images averaged over, besides those of the pairs shown")
    rank: int | None = Field(
        None,
        ge=0,
        description="Directions that explain a representation; what they leave out is said. 0: all "
        "[16 for more than 1,000 values]",
    )
    metric: Literal["cosine", "dot"] = Field(
        "cosine",
        description="What is explained: the cosine similarity, or dot, the product",
    )
    composite: str = Field(
        "auto",
        description="Rules of the explanation, such as paper_resnet [by the network: transformer, or "
        "epsilon_gamma_box]",
    )
    limit: int | None = Field(None, ge=2, description="Use this many images, drawn at random")
    cache: Path | None = Field(None, description="Folder of the embeddings [in OUT]")

    def no_pass(self) -> str:
        return "" if self.texts is None else "texts are no images"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.images is None) == (self.texts is None):
            raise ValueError("give either images or texts")
        if self.discover and self.texts is not None:
            raise ValueError("discovery goes through images, not texts; leave --discover out")
        if self.mitigate != "none" and not self.condition:
            raise ValueError("a mitigation needs a condition that shows the artefact, for example logo:FILE")
        return self

    def open_encoder(self) -> Any:
        """The encoder, of images or of texts; see :func:`pfungst.encoders.load`."""
        from pfungst.encoders import load  # with torch

        return load(
            self.encoder,
            checkpoint=self.checkpoint,
            trust_checkpoint=self.trust_checkpoint,
            size=self.size,
            condition=self.original,
        )

    def directions(self, width: int) -> int:
        """How many stand for a representation of this width; 0 for all."""
        return (16 if width > 1000 else 0) if self.rank is None else self.rank

    def patch(self, size: int) -> int:
        """Side of the patches in images of this size: as asked, else the smallest that gives at most 16 × 16,
        dividing the image if possible."""
        if self.patches is not None:
            return self.patches
        least = -(-size // 16)
        return next((p for p in range(least, 2 * least) if size % p == 0), least)
