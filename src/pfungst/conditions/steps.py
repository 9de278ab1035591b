"""What else can happen to an image on its way to the model, before or after it is resized.

JPEG and dithering work on 8 bits as their libraries do; the others work on float32 in [0, 1] and clip to that
range, so that a blur or weak noise is not lost to rounding.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from pfungst.files import open_picture

from .resize import Array, as_float, as_uint8
from .step import Step, number, register

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow and JPEG have it


def _gaussian(x: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(as_float(x), (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT_101)


def _blended(x: Array, other: Array | np.float32, share: float) -> Array:
    return np.clip(other + np.float32(share) * (as_float(x) - other), 0, 1)


@register("crop")
class Crop(Step):
    """The square in the centre, with a share of the shorter side; before the resizer."""

    title = "the square in the centre, {share} of the shorter side"
    crops = True

    share: float = number(0.01, 1, example=0.875, neutral=1)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        side = max(1, round(self.share * min(x.shape[:2])))
        top, left = (x.shape[0] - side) // 2, (x.shape[1] - side) // 2
        return x[top : top + side, left : left + side]


@register("jpeg")
class Jpeg(Step):
    """JPEG compression by Pillow."""

    title = "JPEG of quality {quality}"

    quality: int = number(1, 100, whole=True, example=50)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        buffer = io.BytesIO()
        Image.fromarray(as_uint8(x)).save(buffer, "JPEG", quality=self.quality)
        with open_picture(buffer) as image:
            return np.asarray(image.convert("RGB"))


@register("noise")
class Noise(Step):
    """Gaussian noise; σ as a share of the range of values."""

    title = "Gaussian noise of σ = {sigma} of the range"

    sigma: float = number(0, example=0.02, neutral=0)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        return np.clip(as_float(x) + np.float32(self.sigma) * noise, 0, 1)


@register("blur")
class Blur(Step):
    """Gaussian blur; σ in pixels."""

    title = "Gaussian blur of σ = {sigma} px"

    sigma: float = number(0.05, 100, example=1.5)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        return np.clip(_gaussian(x, self.sigma), 0, 1)


@register("sharpen")
class Sharpen(Step):
    """Unsharp mask of σ = 1 px."""

    title = "unsharp mask (σ = 1 px) of amount {amount}"

    amount: float = number(0, example=0.5, neutral=0)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        f = as_float(x)
        return np.clip(f + np.float32(self.amount) * (f - _gaussian(f, 1.0)), 0, 1)


@register("saltpepper")
class SaltPepper(Step):
    """A share of the pixels becomes white or black, half of them each."""

    title = "salt and pepper on a share {rate} of the pixels"

    rate: float = number(0, 1, example=0.01, neutral=0)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        u = rng.random(x.shape[:2], dtype=np.float32)[..., None]
        return np.where(u < self.rate / 2, np.float32(0), np.where(u < self.rate, np.float32(1), as_float(x)))


@register("quantize")
class Quantize(Step):
    """So many levels per channel."""

    title = "{levels} levels per channel"

    levels: int = number(2, 256, whole=True, example=16, neutral=256)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        top = np.float32(self.levels - 1)
        return np.rint(as_float(x) * top) / top


@register("dither")
class Dither(Step):
    """So many levels per channel with Floyd-Steinberg dithering by Pillow."""

    title = "{levels} levels per channel with Floyd-Steinberg dithering"

    levels: int = number(2, 256, whole=True, example=16)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        grey = np.rint(np.linspace(0, 255, self.levels)).astype(int)
        palette = Image.new("P", (1, 1))
        palette.putpalette([v for g in grey for v in (g, g, g)] + [grey[-1]] * 3 * (256 - len(grey)))
        channels = []
        for c in np.moveaxis(as_uint8(x), 2, 0):
            single = Image.merge("RGB", [Image.fromarray(np.ascontiguousarray(c))] * 3)
            drawn = single.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
            channels.append(np.asarray(drawn.convert("L")))
        return np.stack(channels, axis=2)


@register("brightness")
class Brightness(Step):
    """Every value times a factor."""

    title = "brightness times {factor}"

    factor: float = number(0, example=1.3, neutral=1)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        return _blended(x, np.float32(0), self.factor)


@register("contrast")
class Contrast(Step):
    """Every value's distance from the image's mean grey times a factor."""

    title = "contrast times {factor}"

    factor: float = number(0, example=0.7, neutral=1)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        return _blended(x, (as_float(x) @ _GREY).mean(), self.factor)


@register("saturation")
class Saturation(Step):
    """Every colour's distance from its grey (ITU-R BT.601) times a factor; 0 leaves no colour."""

    title = "saturation times {factor}"

    factor: float = number(0, example=0.5, neutral=1)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        return _blended(x, (as_float(x) @ _GREY)[..., None], self.factor)
