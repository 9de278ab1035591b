"""Configuration of the anomaly audit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pfungst.audit.config import Repeated
from pfungst.registry import CONDITIONS, DETECTORS


class AnomalyConfig(Repeated):
    """``pfungst audit anomaly``."""

    data: Path | Literal["synthetic", "digits-c"] = Field(
        description="MVTec folder, CSV, Parquet, image folder, 'synthetic' or 'digits-c'"
    )
    model: list[str] = Field(
        ["d2neighbors"],
        description=f"Detectors, comma-separated, such as kde or bag:A+B: {', '.join(DETECTORS.names())}",
    )
    original: str = Field("opencv-nearest", description="Condition before deployment")
    deployed: str = Field(
        "pillow-bilinear",
        description=f"Condition after deployment, such as pillow-bilinear+jpeg:50 ({', '.join(CONDITIONS)})",
    )
    mitigate: str = Field("blur", description="blur, blur:KERNEL,SIGMA, lowpass, lowpass:CUTOFF or none")
    size: int = Field(224, ge=8, le=2048, description="Side of the prepared images in pixels")
    category: list[str] = Field([], description="Categories, comma-separated [all]")
    groups: list[str] = Field(["auto"], description="Columns that say where images come from; auto, or none")
    protocol: Literal["held-out", "published"] = Field(
        "held-out",
        description="held-out: threshold from normal images not fitted; published: best F1 on the test set",
    )
    quantile: float = Field(0.95, gt=0, lt=1, description="Of held-out normal scores, for the threshold")
    discover: bool = Field(
        False, description="Also cluster the explanations and prove what decides that nobody named"
    )
    examples: int = Field(6, ge=1, le=50, description="Images shown per category and detector")

    def no_pass(self) -> str:
        return "detectors are fitted in this process, whose threads prepare images on all cores"

    @field_validator("model")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("no detector is named")
        return value
