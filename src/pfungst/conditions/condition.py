"""A condition: the named chain of steps from the image as it was taken to the tensor that a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from pfungst.errors import ConfigError
from pfungst.files import mixed, stamp

from .pasted import Pasted
from .resize import RESIZERS, Size, as_float, sides
from .step import Resize, Step


@dataclass(frozen=True)
class Condition:
    """How an image gets from its original resolution into a model.

    Exactly one step is a resizer. Steps written before it act on the original resolution (a JPEG camera),
    steps after it on the resized image. Two conditions are equal when their steps are, whatever they are
    called.

    Args:
        steps: the steps in order.
        name: what to call it, for example "deployed"; not part of what it does.

    Example:
        >>> str(Condition.parse("pillow-bilinear + jpeg:50"))
        'pillow-bilinear+jpeg:50'
    """

    steps: tuple[Step, ...]
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        resizers = [s.name for s in self.steps if isinstance(s, Resize)]
        if len(resizers) != 1:
            got = "none" if not resizers else ", ".join(resizers)
            raise ConfigError(
                f"the condition {'+'.join(map(str, self.steps))!r} must name exactly one resizer, got {got}",
                f"write for example pillow-bilinear+jpeg:50. Resizers: {', '.join(RESIZERS)}",
            )
        if any(s.crops for s in self.steps[self._place :]):
            raise ConfigError(
                f"the condition {'+'.join(map(str, self.steps))!r} crops after resizing",
                "write the crop first, for example crop:0.875+pillow-bilinear",
            )

    @classmethod
    def parse(cls, text: str | Condition | Mapping[str, Any], name: str | None = None) -> Condition:
        """Read a condition from its text, its dictionary, or take one as it is.

        Args:
            text: steps joined by ``+``, for example ``"pillow-bilinear+jpeg:50+noise:0.02"``.
            name: what to call it.

        Raises:
            ConfigError: a name is unknown, a value out of range, or not exactly one resizer is named.
        """
        if isinstance(text, Condition):
            return text if name is None else cls(text.steps, name)
        if isinstance(text, Mapping):
            return cls.from_dict(text)
        if not text.strip():
            raise ConfigError("a condition is empty", f"name a resizer: {', '.join(RESIZERS)}")
        return cls(tuple(Step.parse(part) for part in text.split("+")), name)

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))

    def to_dict(self) -> dict[str, Any]:
        """The condition as plain data for JSON and TOML."""
        out: dict[str, Any] = {"steps": [str(s) for s in self.steps]}
        return out if self.name is None else {"name": self.name, **out}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Condition:
        """Read what ``to_dict`` wrote."""
        unknown = sorted(set(data) - {"name", "steps"})
        if unknown or "steps" not in data:
            what = f"unknown keys {', '.join(unknown)}" if unknown else "the key 'steps' is missing"
            raise ConfigError(
                f"a condition cannot be read: {what}", "it has the keys steps (a list) and name"
            )
        return cls(tuple(Step.parse(s) for s in data["steps"]), data.get("name"))

    @property
    def _place(self) -> int:
        return next(i for i, s in enumerate(self.steps) if isinstance(s, Resize))

    @property
    def resizer(self) -> str:
        """The name of its resizer."""
        return self.steps[self._place].name

    @property
    def antialias(self) -> bool:
        """Whether its resizer averages away what the smaller image cannot hold."""
        return RESIZERS[self.resizer].antialias

    def check(self, size: Size | None = None) -> None:
        """Raise ConfigError where a logo cannot be read, or does not fit where it is pasted at this size."""
        for step in self.steps:
            step.check()
        if size is not None:
            self.logo_box(size)

    @property
    def logo(self) -> Pasted | None:
        """The logo or watermark that is pasted on the resized image, or None."""
        return next((s for s in self.steps[self._place :] if isinstance(s, Pasted)), None)

    def logo_box(self, size: Size) -> tuple[int, int, int, int] | None:
        """Where it lies in images of this size: top, left, bottom, right; None without one."""
        return None if self.logo is None else self.logo.box(*sides(size))

    def describe(self) -> str:
        """The condition in words."""
        return ", then ".join(s.describe() for s in self.steps)

    def identity(self) -> str:
        """What its images depend on: the text, and the files it names as they are now, by size and time."""
        files = [file for s in self.steps for file in s.files()]
        return "/".join([str(self), *(stamp(file) for file in files)])

    def __call__(
        self, image: Image.Image | np.ndarray, size: Size | None = None, key: str = "", seed: int = 0
    ) -> torch.Tensor:
        """Prepare one image.

        Args:
            image: a Pillow image of mode RGB (others are converted) or a uint8 array (H, W, 3).
            size: edge S of the square result in pixels, or (height, width); images of other proportions are
                squeezed, as in the paper. None keeps the size of the image: no resizing takes place.
            key: usually the id of the item: random steps draw the same for the same key, seed and place in
                the chain.
            seed: changes all random steps.

        Returns:
            A float32 tensor (3, S, S) in [0, 1].
        """
        x: np.ndarray = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        for place, step in enumerate(self.steps):
            if isinstance(step, Resize):
                x = x if size is None else RESIZERS[step.name].apply(x, size)
            else:
                x = step(x, np.random.default_rng(mixed(f"{seed}/{place}/{step.name}/{key}")))
        return torch.from_numpy(np.ascontiguousarray(as_float(x).transpose(2, 0, 1)))
