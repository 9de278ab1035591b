"""What an encoder needs to know about the images it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.conditions import Condition
from pfungst.errors import ConfigError, InputError
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


class Normalise(nn.Module):
    """(x − mean) / std per channel; a grey image serves a network of three channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)
        if not bool((self.std > 0).all()):
            raise InputError(f"std {std} is not positive", "use the standard deviation of the pixels")

    def forward(self, x: Tensor) -> Tensor:
        channels = max(len(self.mean), len(self.std))
        if x.shape[1] == 1 and channels == 3:
            x = x.expand(-1, 3, -1, -1)
        if channels not in (1, x.shape[1]):
            raise InputError(
                f"images of {x.shape[1]} channels, normalised as {channels}", "give mean and std per channel"
            )
        return (x - self.mean.to(x)) / self.std.to(x)
