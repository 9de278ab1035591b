"""The condition `logo`: an image pasted into a corner of every picture.

Kauffmann et al. 2025 insert the logo of a truck class into every image of the test set; here any image with
transparency, by default at the bottom left, 40 % of the width, 10 px from the edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pfungst.errors import ConfigError

from .resize import Array, as_float

PLACES = ("bottom-left", "bottom-right", "top-left", "top-right", "bottom", "top", "left", "right", "center")


@dataclass(frozen=True)
class Logo:
    """What is pasted, and where.

    Args:
        file: an image; transparent parts let the picture through, one without transparency is pasted whole.
        width: share of the picture's width, above 0 up to 1; the height follows.
        margin: distance from the edges in pixels.
        at: a corner ("bottom-left"), the middle of an edge ("top") or "center".
    """

    file: str
    width: float = 0.4
    margin: int = 10
    at: str = "bottom-left"

    def __post_init__(self) -> None:
        if not self.file:
            raise ConfigError("the condition logo names no file", "write logo:FILE, for example logo:tag.png")
        if not 0 < self.width <= 1:
            raise ConfigError(
                f"logo width {self.width} is not a share of the picture's width",
                "give a number above 0 up to 1",
            )
        if self.margin < 0:
            raise ConfigError(f"logo margin {self.margin} is negative", "give pixels from 0 up")
        if self.at not in PLACES:
            raise ConfigError(f"logo place {self.at!r} is not known", f"use {', '.join(PLACES)}")

    @classmethod
    def parse(cls, text: str) -> Logo:
        """Read ``FILE[,width=0.4][,margin=10][,at=bottom-left]``."""
        file, *options = text.split(",")
        settings: dict[str, str] = {}
        for option in options:
            key, equals, value = option.strip().partition("=")
            if not equals or key not in ("width", "margin", "at"):
                raise ConfigError(
                    f"{option.strip()!r} in logo:{text} is no option",
                    "options: width=0.4, margin=10, at=top-right",
                )
            settings[key] = value.strip()
        try:
            return cls(
                file.strip(),
                float(settings.get("width", cls.width)),
                int(settings.get("margin", cls.margin)),
                settings.get("at", cls.at),
            )
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"logo:{text} cannot be read: {error}", "width and margin are numbers"
            ) from None

    def __str__(self) -> str:
        default = Logo(self.file)
        parts = [self.file]
        parts += [f"width={self.width:g}"] if self.width != default.width else []
        parts += [f"margin={self.margin}"] if self.margin != default.margin else []
        return ",".join(parts + ([f"at={self.at}"] if self.at != default.at else []))

    def check(self) -> None:
        """Raise ConfigError unless the file can be read."""
        _read(self.file)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Where the logo lies in a picture of this size: top, left, bottom, right.

        Raises:
            ConfigError: it does not fit with its margins.
        """
        source = _read(self.file)
        w = max(1, round(self.width * width))
        h = max(1, round(w * source.height / source.width))
        vertical = 2 if self.at in ("left", "right", "center") else 1
        horizontal = 2 if self.at in ("top", "bottom", "center") else 1
        if h + self.margin * (vertical == 1) > height or w + self.margin * (horizontal == 1) > width:
            raise ConfigError(
                f"the logo {self.file} would take {w} × {h} px with a margin of {self.margin} px, "
                f"larger than the picture of {width} × {height} px",
                "make it narrower (width=…) or its margin smaller (margin=…)",
            )
        top = self.margin if "top" in self.at else height - h - self.margin
        left = self.margin if "left" in self.at else width - w - self.margin
        top = (height - h) // 2 if vertical == 2 else top
        left = (width - w) // 2 if horizontal == 2 else left
        return top, left, top + h, left + w

    def paste(self, x: Array) -> Array:
        """The picture (H, W, 3) with the logo on it, in the type of `x`: uint8, or float32 in [0, 1]."""
        top, left, bottom, right = self.box(*x.shape[:2])
        colour, alpha = _scaled(self.file, bottom - top, right - left)
        out = as_float(x).copy()
        region = out[top:bottom, left:right]
        out[top:bottom, left:right] = colour + (1 - alpha) * region
        return np.rint(out * 255).astype(np.uint8) if x.dtype == np.uint8 else out.clip(0, 1)


def _read(file: str) -> Image.Image:
    path = Path(file)
    try:
        return _decoded(file, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise ConfigError(f"the logo {file} does not exist", "check the path") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"the logo {file} cannot be read: {error}", "use a PNG with transparency") from None


@lru_cache(maxsize=16)
def _decoded(file: str, changed: int) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGBA")


def _scaled(file: str, height: int, width: int) -> tuple[Array, Array]:
    """Colour multiplied by alpha (H, W, 3) and alpha (H, W, 1), resized together so that edges stay clean."""
    rgba = np.asarray(_read(file), dtype=np.float32) / np.float32(255)
    layers = [rgba[..., c] * rgba[..., 3] for c in range(3)] + [rgba[..., 3]]
    resized = [
        np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BILINEAR))
        for layer in layers
    ]
    return np.stack(resized[:3], -1), resized[3][..., None]
