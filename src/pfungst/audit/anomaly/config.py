"""Configuration of the anomaly audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pfungst.audit.config import AuditConfig, listed
from pfungst.registry import DETECTORS


class AnomalyConfig(AuditConfig):
    """``pfungst audit anomaly``."""

    data: Path | str = Field(description="MVTec folder, CSV, Parquet, image folder, synthetic, or digits-c")
    category: list[str] = Field([], description="categories to audit; all if not given")
    model: list[str] = Field(
        ["d2neighbors"],
        description=f"detectors, for example d2neighbors:p=1, of {', '.join(DETECTORS.names())}",
    )
    original: str = Field("opencv-nearest", description="how images are prepared before deployment")
    deployed: str = Field("pillow-bilinear", description="how images are prepared after deployment")
    mitigate: str = Field("blur", description="blur, blur:KERNEL,SIGMA, lowpass, lowpass:CUTOFF, or none")
    size: int = Field(224, ge=8, le=2048, description="side of the prepared images in pixels")
    groups: list[str] = Field(["auto"], description="columns that say where images come from; auto, or none")
    protocol: Literal["held-out", "published"] = Field(
        "held-out",
        description="held-out: threshold from normal images that were not fitted; published: best F1 on the test set",
    )
    quantile: float = Field(0.95, gt=0, lt=1, description="of held-out normal scores, for the threshold")
    examples: int = Field(6, ge=1, le=50, description="images shown per category and detector")

    @field_validator("category", "model", "groups", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("model")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("no detector is named")
        return value
