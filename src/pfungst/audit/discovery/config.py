"""Configuration of discovery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from pfungst.audit.config import AuditConfig
from pfungst.audit.given import ImageOptions, LabelledOptions

if TYPE_CHECKING:
    from pfungst.audit.findings.topics import Effort


class DiscoveryConfig(LabelledOptions):
    """``pfungst discover``."""

    _irrelevant = (*LabelledOptions._irrelevant, "batch_size")

    model: str | None = Field(
        None,
        description="A classifier: timm:NAME, torchvision:NAME, package.module:function or file.py:function",
    )
    encoder: str | None = Field(None, description="Or an encoder, with a probe: efficientnet-lite0, …")
    detector: str | None = Field(
        None, description="Or an anomaly detector, fitted to the normal images: kde, …"
    )
    checkpoint: Path | None = Field(None, description="Weights: safetensors or a state dict")
    trust_checkpoint: bool = Field(False, description="Also read checkpoints that can run code")
    images: Path | None = Field(
        None,
        description="Labelled images, best not those of training: CLASS/*.jpg, CSV or Parquet; for a "
        "detector an MVTec folder, CSV or Parquet",
    )
    series: Path | None = Field(
        None,
        description="Or labelled time series: CSV or Parquet, a row each, or .npz with series (N, C, T)",
    )
    texts: Path | None = Field(
        None,
        description="Or labelled texts, for a sentence encoder: CSV or Parquet with a column text",
    )
    keep_together: str = Field(
        "auto",
        description="Of texts, the column never split between training and test, as author; auto, or none",
    )
    labels: str = Field("label", description="Column that the probe of an encoder predicts")
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
        ["auto", "files"],
        description="Columns compared and tried: names, auto, files (of series: level, spread, roughness), "
        "text, people, none",
    )
    groups_file: Path | None = Field(
        None, description="CSV with more columns of the images, such as that of `pfungst people`"
    )
    layer: str | None = Field(None, description="The final linear layer [found by itself]")
    size: int | None = Field(None, ge=4, le=2048, description="Side of the images in pixels [the model's]")
    original: str | None = Field(
        None,
        description="How files become images; pillow-bicubic: whole, without a crop [as for the published "
        "weights]",
    )
    per_class: int = Field(
        500, ge=6, description="Images of a class (or of a detector, normal and defective) that are explained"
    )
    most: int = Field(6, ge=1, le=20, description="Clusters per class and kind of explanation")
    changed: int = Field(40, ge=6, description="Images of a cluster that are changed to prove it")
    answers: Path | None = Field(
        None, description="What people said of the findings: findings.json of `pfungst label`; with --resume"
    )
    batch_size: int = Field(8, ge=1, description="Images at a time")

    def no_pass(self) -> str:
        """Explanations need gradients, which the pass over images for workers does not give."""
        return "discovery explains image by image, in one process"

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        given = [name for name in ("model", "encoder", "detector") if getattr(self, name)]
        if len(given) != 1:
            named = " and ".join(f"--{name}" for name in given) or "none"
            raise ValueError(f"give one of --model, --encoder and --detector, not {named}")
        idle = {
            "encoder": ("witness", "layer", "class_names"),
            "detector": ("witness", "layer", "class_names", "classes"),
        }
        if unread := [o for o in idle.get(given[0], ()) if getattr(self, o)]:
            raise ValueError(f"--{unread[0].replace('_', '-')} does nothing for --{given[0]}; leave it out")
        if sum(given is not None for given in (self.images, self.series, self.texts)) != 1:
            raise ValueError("give one of --images, --series and --texts")
        if self.texts is None and self.keep_together != "auto":
            raise ValueError("--keep-together is of --texts; images keep a column patient together")
        if self.texts is not None:
            idle_too = {"checkpoint", "label_column"}
            self._no_images("texts", "encoder", "a sentence encoder", given[0], idle_too)
        if self.series is not None:
            self._no_images("series", "model", "a classifier", given[0], {"labels"})
        return self

    def _no_images(self, things: str, option: str, reader: str, given: str, idle: set[str]) -> None:
        """What is said of images says nothing of other things."""
        if given != option:
            raise ValueError(f"--{things} are read by {reader}: give --{option}, not --{given}")
        told = {n for n, f in type(self).model_fields.items() if getattr(self, n) != f.default}
        idle |= {*ImageOptions.model_fields} - {*AuditConfig.model_fields} - {"dry_run"}
        if unread := sorted(told & (idle | {"size", "original", "groups_file", "skip_bad"})):
            raise ValueError(f"--{unread[0].replace('_', '-')} is about images; leave it out for --{things}")
        if of_pictures := [g for g in self.group if g in ("text", "people")]:
            raise ValueError(f"--group {of_pictures[0]} reads images; leave it out for --{things}")

    @property
    def data(self) -> Path:
        """What is gone through."""
        given = self.images or self.series or self.texts
        assert given is not None
        return given

    @property
    def noun(self) -> str:
        """What that holds, in the plural."""
        return "series" if self.series else "texts" if self.texts else "images"

    @property
    def audited(self) -> str:
        """The model that was named."""
        return self.model or self.encoder or self.detector or ""

    @property
    def effort(self) -> Effort:
        from pfungst.audit.findings.topics import Effort  # with torch

        return Effort(self.per_class, self.most, self.changed, self.batch_size, self.seed)

    def shared(self, *names: str) -> dict[str, Any]:
        """What the configuration of an audit takes over, where it was given."""
        common = ("seed", "skip_bad", "device", "out", "overwrite", "resume")
        return {n: value for n in (*common, *names) if (value := getattr(self, n)) is not None}
