"""What else can happen to an image on its way to the model, before or after it is resized.

Steps take and give (H, W, 3) arrays. JPEG and dithering work on 8 bits as their libraries do; the others work on
float32 in [0, 1] and clip to that range, so that a blur or weak noise is not lost to rounding.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from .resize import Array, as_float, as_uint8


@dataclass(frozen=True)
class StepKind:
    """One kind of step: a sentence for people, the range of its value, and the function."""

    title: str
    low: float
    high: float
    whole: bool
    apply: Callable[[Array, float, np.random.Generator], Array]

    def allows(self, value: float) -> bool:
        """Whether the value is a finite number in range (and whole where it must be)."""
        return (
            bool(np.isfinite(value))
            and self.low <= value <= self.high
            and (not self.whole or value == int(value))
        )

    @property
    def range(self) -> str:
        """The allowed values in words."""
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.low:g}" + (f" to {self.high:g}" if np.isfinite(self.high) else " up")


def _jpeg(x: Array, quality: float, rng: np.random.Generator) -> Array:
    buffer = io.BytesIO()
    Image.fromarray(as_uint8(x)).save(buffer, "JPEG", quality=int(quality))
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def _crop(x: Array, share: float, rng: np.random.Generator) -> Array:
    side = max(1, round(share * min(x.shape[:2])))
    top, left = (x.shape[0] - side) // 2, (x.shape[1] - side) // 2
    return x[top : top + side, left : left + side]


def _noise(x: Array, sigma: float, rng: np.random.Generator) -> Array:
    noise = rng.standard_normal(x.shape, dtype=np.float32)
    return np.clip(as_float(x) + np.float32(sigma) * noise, 0, 1)


def _gaussian(x: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(as_float(x), (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT_101)


def _blur(x: Array, sigma: float, rng: np.random.Generator) -> Array:
    return np.clip(_gaussian(x, sigma), 0, 1)


def _sharpen(x: Array, amount: float, rng: np.random.Generator) -> Array:
    f = as_float(x)
    return np.clip(f + np.float32(amount) * (f - _gaussian(f, 1.0)), 0, 1)


def _saltpepper(x: Array, rate: float, rng: np.random.Generator) -> Array:
    u = rng.random(x.shape[:2], dtype=np.float32)[..., None]
    return np.where(u < rate / 2, np.float32(0), np.where(u < rate, np.float32(1), as_float(x)))


def _quantize(x: Array, levels: float, rng: np.random.Generator) -> Array:
    top = np.float32(int(levels) - 1)
    return np.rint(as_float(x) * top) / top


def _dither(x: Array, levels: float, rng: np.random.Generator) -> Array:
    grey = np.rint(np.linspace(0, 255, int(levels))).astype(int)
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for g in grey for v in (g, g, g)] + [grey[-1]] * 3 * (256 - len(grey)))
    channels = []
    for c in np.moveaxis(as_uint8(x), 2, 0):
        single = Image.merge("RGB", [Image.fromarray(np.ascontiguousarray(c))] * 3)
        drawn = single.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        channels.append(np.asarray(drawn.convert("L")))
    return np.stack(channels, axis=2)


_ANY = float("inf")
STEPS: dict[str, StepKind] = {
    "crop": StepKind("the square in the centre, {} of the shorter side", 0.01, 1, False, _crop),
    "jpeg": StepKind("JPEG of quality {}", 1, 100, True, _jpeg),
    "noise": StepKind("Gaussian noise of σ = {} of the range", 0, _ANY, False, _noise),
    "blur": StepKind("Gaussian blur of σ = {} px", 0.05, 100, False, _blur),
    "sharpen": StepKind("unsharp mask (σ = 1 px) of amount {}", 0, _ANY, False, _sharpen),
    "saltpepper": StepKind("salt and pepper on a share {} of the pixels", 0, 1, False, _saltpepper),
    "quantize": StepKind("{} levels per channel", 2, 256, True, _quantize),
    "dither": StepKind("{} levels per channel with Floyd-Steinberg dithering", 2, 256, True, _dither),
}
"""All steps by the name used in configuration files."""
