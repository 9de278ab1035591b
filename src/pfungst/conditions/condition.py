"""A condition: the named chain of steps from the image as it was taken to the tensor that a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from pfungst.errors import ConfigError
from pfungst.files import mixed
from pfungst.suggest import suggest

from .logo import Logo
from .resize import RESIZERS, as_float
from .steps import STEPS


@dataclass(frozen=True)
class Step:
    """One step of a condition.

    Args:
        name: a resizer or the name of a step.
        value: its parameter; None for resizers, a :class:`Logo` for the step logo.
    """

    name: str
    value: float | Logo | None = None

    def __post_init__(self) -> None:
        if self.name == "logo" or isinstance(self.value, Logo):
            if self.name != "logo" or not isinstance(self.value, Logo):
                raise ConfigError(f"the step {self.name!r} got {self.value!r}", "write logo:FILE")
            return
        if self.name in RESIZERS:
            if self.value is not None:
                raise ConfigError(
                    f"the resizer {self.name!r} takes no value, got {self.value!r}", "leave it out"
                )
            return
        if self.name not in STEPS:
            raise ConfigError(
                f"unknown condition {self.name!r}",
                suggest(self.name, [*RESIZERS, *STEPS, "logo"], "resizers and steps (as STEP:VALUE)"),
            )
        kind = STEPS[self.name]
        if self.value is None or not kind.allows(self.value):
            got = "nothing" if self.value is None else format_number(self.value)
            raise ConfigError(
                f"{self.name!r} needs {kind.range}, got {got}",
                f"write {self.name}:VALUE, for example {_EXAMPLE[self.name]}",
            )
        object.__setattr__(self, "value", float(self.value))

    @classmethod
    def parse(cls, text: str) -> Step:
        """Read ``name`` or ``name:value``."""
        name, colon, value = text.strip().partition(":")
        if not colon:
            return cls(name.strip().lower())
        if name.strip().lower() == "logo":
            return cls("logo", Logo.parse(value))
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(
                f"{value!r} in the condition step {text!r} is not a number", "write for example jpeg:50"
            ) from None
        return cls(name.strip().lower(), number)

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        return f"{self.name}:{self.value if isinstance(self.value, Logo) else format_number(self.value)}"


_EXAMPLE = {
    "crop": "crop:0.875",
    "jpeg": "jpeg:50",
    "noise": "noise:0.02",
    "blur": "blur:1.5",
    "sharpen": "sharpen:0.5",
    "saltpepper": "saltpepper:0.01",
    "quantize": "quantize:16",
    "dither": "dither:16",
}


def format_number(value: float) -> str:
    """The shortest text that reads back as the same float, whole numbers without a point."""
    return (
        str(int(value)) if np.isfinite(value) and value == int(value) and abs(value) < 1e15 else repr(value)
    )


@dataclass(frozen=True)
class Condition:
    """How an image gets from its original resolution into a model.

    Exactly one step is a resizer. Steps written before it act on the original resolution (a JPEG camera), steps after it
    on the resized image. Two conditions are equal when their steps are, whatever they are called.

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
        resizers = [s.name for s in self.steps if s.name in RESIZERS]
        if len(resizers) != 1:
            got = "none" if not resizers else ", ".join(resizers)
            raise ConfigError(
                f"the condition {'+'.join(map(str, self.steps))!r} must name exactly one resizer, got {got}",
                f"write for example pillow-bilinear+jpeg:50. Resizers: {', '.join(RESIZERS)}",
            )
        names = [s.name for s in self.steps]
        if "crop" in names[names.index(resizers[0]) :]:
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
    def resizer(self) -> str:
        """The name of its resizer."""
        return next(s.name for s in self.steps if s.name in RESIZERS)

    @property
    def antialias(self) -> bool:
        """Whether its resizer averages away what the smaller image cannot hold."""
        return RESIZERS[self.resizer].antialias

    def check(self, size: int | None = None) -> None:
        """Raise ConfigError where a logo cannot be read, or does not fit where it is pasted at this size."""
        for step in self.steps:
            if isinstance(step.value, Logo):
                step.value.check()
        if size is not None:
            self.logo_box(size)

    @property
    def logo(self) -> Logo | None:
        """The logo that is pasted on the resized image, or None."""
        resized = self.steps[[s.name for s in self.steps].index(self.resizer) :]
        return next((s.value for s in resized if isinstance(s.value, Logo)), None)

    def logo_box(self, size: int) -> tuple[int, int, int, int] | None:
        """Where it lies in images of this size: top, left, bottom, right; None without one."""
        return None if self.logo is None else self.logo.box(size, size)

    def describe(self) -> str:
        """The condition in words."""
        words = []
        for s in self.steps:
            if s.name in RESIZERS:
                r = RESIZERS[s.name]
                with_alias = r.antialias and "antialias" not in r.title
                words.append(r.title + (" (antialiases)" if with_alias else ""))
            elif isinstance(s.value, Logo):
                words.append(f"the logo {s.value.file} at the {s.value.at}, {s.value.width:.0%} of the width")
            else:
                words.append(STEPS[s.name].title.format(format_number(s.value or 0.0)))
        return ", then ".join(words)

    def __call__(
        self, image: Image.Image | np.ndarray, size: int | None = None, key: str = "", seed: int = 0
    ) -> torch.Tensor:
        """Prepare one image.

        Args:
            image: a Pillow image of mode RGB (others are converted) or a uint8 array (H, W, 3).
            size: edge S of the square result in pixels; images that are not square are squeezed, as in the paper.
                None keeps the size of the image: no resizing takes place.
            key: usually the id of the item: random steps draw the same for the same key, seed and place in the chain.
            seed: changes all random steps.

        Returns:
            A float32 tensor (3, S, S) in [0, 1].
        """
        x: np.ndarray = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        for place, step in enumerate(self.steps):
            if step.name in RESIZERS:
                x = x if size is None else RESIZERS[step.name].apply(x, size)
            elif isinstance(step.value, Logo):
                x = step.value.paste(x)
            else:
                rng = np.random.default_rng(mixed(f"{seed}/{place}/{step.name}/{key}"))
                x = STEPS[step.name].apply(x, step.value or 0.0, rng)
        return torch.from_numpy(np.ascontiguousarray(as_float(x).transpose(2, 0, 1)))
