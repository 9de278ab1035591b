"""What an encoder needs to know about the images it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pfungst.conditions import Condition
from pfungst.errors import ConfigError
from pfungst.suggest import suggest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How images become the tensors of an encoder.

    Attributes:
        size: height and width in pixels.
        condition: how files are brought to that size, in the notation of `pfungst.conditions`.
        mean: per channel, subtracted inside the model; images stay in [0, 1] outside.
        std: per channel, divided by inside the model.
    """

    size: int = 224
    condition: str = "crop:0.875+pillow-bilinear"
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        object.__setattr__(self, "condition", str(Condition.parse(self.condition)))
        if self.size < 1:
            raise ConfigError(f"image size {self.size} is not positive", "give the size in pixels")
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"{len(self.mean)} channel means but {len(self.std)} standard deviations",
                "give one of each per channel",
            )
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ConfigError(
                f"mean {self.mean} and std {self.std} cannot normalise images",
                "means must be finite and standard deviations positive",
            )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocessing:
        """What :meth:`to_dict` described. Raises ConfigError for unknown keys."""
        known = ("size", "condition", "mean", "std")
        for key in data:
            if key not in known:
                raise ConfigError(f"unknown preprocessing key {key!r}", suggest(key, known))
        return cls(**data)


def condition_of(interpolation: str, crop: float) -> str:
    """The condition that resizes and crops Pillow images as torchvision, timm and open_clip do.

    Args:
        interpolation: its name, in the spelling of any of them.
        crop: side of the square in the centre that is kept, relative to the shorter side.
    """
    name = str(interpolation).rsplit(".", 1)[-1].lower()
    resizer = name if name in ("bilinear", "bicubic", "lanczos", "nearest") else "bilinear"
    return f"crop:{round(crop, 4):g}+pillow-{resizer}"
