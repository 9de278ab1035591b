"""Configuration of the anomaly audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pfungst.audit.config import Discovering, Repeated
from pfungst.audit.given import LabelledOptions
from pfungst.registry import CONDITIONS, DETECTORS

Edge = Annotated[int, Field(ge=8, le=2048)]


class AnomalyConfig(LabelledOptions, Repeated, Discovering):
    """``pfungst audit anomaly``."""

    data: Path | Literal["synthetic", "digits-c"] = Field(
        description="Folders good and bad, CSV, Parquet, MVTec, VisA, COCO, …, MNIST-C, MNIST (corrupted "
        "here), 'synthetic' or 'digits-c'"
    )
    model: list[str] = Field(
        ["d2neighbors"],
        description="Detectors, comma-separated, such as kde, bag:A+B or FILE.py:FUNCTION: "
        + ", ".join(DETECTORS.names()),
    )
    original: str = Field("opencv-nearest", description="Condition before deployment")
    deployed: str = Field(
        "pillow-bilinear",
        description=f"Condition after deployment, such as pillow-bilinear+jpeg:50 ({', '.join(CONDITIONS)})",
    )
    mitigate: str = Field("blur", description="blur, blur:KERNEL,SIGMA, lowpass, lowpass:CUTOFF or none")
    size: Edge | tuple[Edge, Edge] = Field(
        224, description="Side of the prepared images in pixels, or HEIGHTxWIDTH such as 256x512"
    )
    category: list[str] = Field([], description="Categories, comma-separated [all]")
    normal: str | None = Field(None, description="What normal images are labelled [good, OK, normal, 0, …]")
    groups: list[str] = Field(["auto"], description="Columns that say where images come from; auto, or none")
    keep_together: str = Field(
        "auto",
        description="Column never split where training and test images are drawn; auto: patient, or none",
    )
    protocol: Literal["held-out", "published"] = Field(
        "held-out",
        description="held-out: threshold from normal images not fitted; published: best F1 on the test set",
    )
    outliers: int = Field(
        0,
        ge=0,
        description="Defective test images per category that choose the ridge of one-class, by AUROC, and "
        "are not tested [0]; 0: chosen by likelihood",
    )
    quantile: float = Field(0.95, gt=0, lt=1, description="Of held-out normal scores, for the threshold")
    examples: int = Field(6, ge=1, le=50, description="Images shown per category and detector")

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="Processes that categories and detectors are shared out to; 0, auto: this one"
    )
    ray: str | None = Field(
        None, description="Share categories and detectors out to a Ray cluster: HOST:PORT, or auto [no]"
    )

    @field_validator("size", mode="before")
    @classmethod
    def _sides(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.lower().replace("×", "x").split("x")
        if len(parts) > 2 or not all(p.strip().isdecimal() for p in parts):
            raise ValueError("is no size: write 224, or HEIGHTxWIDTH such as 256x512")
        return tuple(map(int, parts)) if len(parts) == 2 else int(parts[0])

    @field_validator("model")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("no detector is named")
        return value
