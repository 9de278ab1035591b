"""What is pasted on every picture: an image (`logo`) or a text (`watermark`).

Kauffmann et al. 2025 insert the logo of a truck class into every image of the test set; here any image with
transparency, by default at the bottom left, 40 % of the width, 10 px from the edges. Li et al. 2023
(ImageNet-W) find that classifiers rely on the translucent white text across pictures of one class.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from pfungst.errors import ConfigError
from pfungst.files import open_picture

from .resize import Array, as_float
from .step import Step, choice, number, register, string

_PLACES = ("bottom-left", "bottom-right", "top-left", "top-right", "bottom", "top", "left", "right", "center")
_DRAWN = 96  # px, size of the letters that are drawn and then scaled


class Pasted(Step):
    """A step that pastes with transparency; subclasses have :meth:`picture`, `width`, `margin` and `at`."""

    width: float  # fields of the subclasses
    margin: int
    at: str

    def picture(self) -> Image.Image:
        """What is pasted, RGBA, of any size."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ConfigError unless there is something to paste."""
        self.picture()

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Where it lies in a picture of this size: top, left, bottom, right.

        Raises:
            ConfigError: it does not fit with its margins.
        """
        source = self.picture()
        w = max(1, round(self.width * width))
        h = max(1, round(w * source.height / source.width))
        vertical = self.at in ("left", "right", "center")
        horizontal = self.at in ("top", "bottom", "center")
        if h + self.margin * (not vertical) > height or w + self.margin * (not horizontal) > width:
            raise ConfigError(
                f"{self} would take {w} × {h} px with a margin of {self.margin} px, "
                f"larger than the picture of {width} × {height} px",
                "make it narrower (width=…) or its margin smaller (margin=…)",
            )
        top = self.margin if "top" in self.at else height - h - self.margin
        left = self.margin if "left" in self.at else width - w - self.margin
        top = (height - h) // 2 if vertical else top
        left = (width - w) // 2 if horizontal else left
        return top, left, top + h, left + w

    def paste(self, x: Array) -> Array:
        """The picture (H, W, 3) with it, in the type of `x`: uint8, or float32 in [0, 1]."""
        top, left, bottom, right = self.box(*x.shape[:2])
        rgba = np.asarray(self.picture(), dtype=np.float32) / np.float32(255)
        # colour multiplied by alpha, and alpha: resized together so that edges stay clean
        layers = [rgba[..., c] * rgba[..., 3] for c in range(3)] + [rgba[..., 3]]
        size = (right - left, bottom - top)
        *colour, alpha = (
            np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR)) for layer in layers
        )
        out = as_float(x).copy()
        region = out[top:bottom, left:right]
        out[top:bottom, left:right] = np.stack(colour, -1) + (1 - alpha[..., None]) * region
        return np.rint(out * 255).astype(np.uint8) if x.dtype == np.uint8 else out.clip(0, 1)

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        return self.paste(x)


@register("logo")
class Logo(Pasted):
    """An image pasted into every picture; transparent parts let the picture through.

    Args:
        file: an image; one without transparency is pasted whole.
        width: share of the picture's width; the height follows.
        margin: distance from the edges in pixels.
        at: a corner ("bottom-left"), the middle of an edge ("top") or "center".
    """

    title = "the logo {file} at the {at}, {width} of the width"

    file: str = string("tag.png")
    width: float = number(0, 1, above=True, default=0.4)
    margin: int = number(0, whole=True, default=10)
    at: str = choice(*_PLACES, default="bottom-left")

    def picture(self) -> Image.Image:
        """The file, RGBA."""
        try:
            return _decoded(self.file, Path(self.file).stat().st_mtime_ns)
        except FileNotFoundError:
            raise ConfigError(f"the logo {self.file} does not exist", "check the path") from None
        except Exception as error:  # Pillow raises almost anything
            raise ConfigError(
                f"the logo {self.file} cannot be read: {error}", "use a PNG with transparency"
            ) from None

    def files(self) -> list[str]:
        """The logo."""
        return [*super().files(), self.file]


@register("watermark")
class Watermark(Pasted):
    """A translucent white text across every picture, as in ImageNet-W (Li et al. 2023).

    Args:
        text: what is written, on one line.
        opacity: 0 is invisible, 1 covers.
        width: share of the picture's width that the text takes; the height follows.
        margin: distance from the edges in pixels.
        at: a corner ("bottom-left"), the middle of an edge ("top") or "center".
        font: a TrueType file, which scripts other than Latin need; Pillow's own font without.
    """

    title = 'the text "{text}" at the {at}, opacity {opacity}'

    text: str = string("SAMPLE")
    opacity: float = number(0, 1, default=0.5, neutral=0)
    width: float = number(0, 1, above=True, default=0.9)
    margin: int = number(0, whole=True, default=0)
    at: str = choice(*_PLACES, default="center")
    font: str = string("font.ttf", default="")

    def picture(self) -> Image.Image:
        """The letters, RGBA."""
        return _lettered(self.text, self.opacity, self.font)

    def files(self) -> list[str]:
        """The font."""
        return [*super().files(), *filter(None, [self.font])]


@lru_cache(maxsize=16)
def _decoded(file: str, changed: int) -> Image.Image:
    with open_picture(file) as image:
        return image.convert("RGBA")


@lru_cache(maxsize=16)
def _lettered(letters: str, opacity: float, file: str) -> Image.Image:
    try:
        font = ImageFont.truetype(file, _DRAWN) if file else ImageFont.load_default(_DRAWN)
    except OSError as error:
        raise ConfigError(f"the font {file} cannot be read: {error}", "give a TrueType file") from None
    unknown = bytes(font.getmask("\U0010ffff"))
    lacking = [c for c in letters if not c.isspace() and bytes(font.getmask(c)) == unknown]
    mask = None if lacking else font.getmask(letters)
    if mask is None or not mask.size[0] * mask.size[1]:
        raise ConfigError(
            f"the text {letters!r} cannot be written: the font lacks {', '.join(map(repr, lacking)) or 'it'}",
            "give another text, or a TrueType file that has it: font=FILE",
        )
    alpha = np.asarray(mask, np.float32).reshape(mask.size[::-1]) * opacity
    white = np.full((*alpha.shape, 3), 255, np.uint8)
    return Image.fromarray(np.dstack([white, np.rint(alpha).astype(np.uint8)]))
