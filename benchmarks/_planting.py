"""Eight artefacts to plant in pictures, each a function of its size and strength.

An artefact takes a picture (S, S, 3) in [0, 1], its `size` (share of the side that it takes; of those without a place, how far
it goes), its `strength` in [0, 1] (opacity) and a generator for the small differences between copies, and gives a picture.
Strength 0 changes nothing. Only the artefacts in ``LOCAL`` leave pixels outside a region untouched.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Artefact = Callable[[np.ndarray, float, float, np.random.Generator], np.ndarray]


def _mix(x: np.ndarray, other: np.ndarray | tuple[float, ...], opacity: np.ndarray | float) -> np.ndarray:
    weight = np.asarray(opacity, dtype=np.float64)
    weight = weight[..., None] if weight.ndim == 2 else weight
    return np.clip(x + weight * (np.asarray(other) - x), 0, 1)


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(side) + 0.5) / side
    return at[:, None], at[None, :]


def text_tag(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A label with letters at the bottom left, `size` of the side wide, half as high."""
    side = len(x)
    wide, high = max(3, round(size * side)), max(2, round(size * side / 2))
    big = Image.new("RGB", (8 * wide, 8 * high), (255, 210, 0))
    font = ImageFont.load_default(size=6 * high)
    ImageDraw.Draw(big).text((4 * wide, 4 * high), "H-A", fill=(0, 0, 0), font=font, anchor="mm")
    label = np.asarray(big.resize((wide, high), Image.Resampling.BOX)) / 255.0
    out, left = x.copy(), int(rng.integers(0, 3))
    place = np.s_[side - high - 1 : side - 1, left : left + wide]
    out[place] = _mix(x[place], label[:, : out[place].shape[1]], strength)
    return out


def watermark(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Translucent diagonal strokes over a square of `size` in the middle."""
    side = len(x)
    y, z = np.mgrid[:side, :side]
    strokes = ((y + z + int(rng.integers(0, 2))) % 5 < 2).astype(float)
    inside = (np.abs(y - (side - 1) / 2) <= size * side / 2) & (np.abs(z - (side - 1) / 2) <= size * side / 2)
    return _mix(x, (1.0, 1.0, 1.0), 0.6 * strength * strokes * inside)


def border(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A frame, a sixth of `size` thick on each side, at least a pixel."""
    side = len(x)
    thick = max(1, round(size * side / 6))
    frame = np.ones((side, side))
    frame[thick:-thick, thick:-thick] = 0
    return _mix(x, (0.1, 0.5, 0.9), strength * frame)


def hue(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A warm cast over the whole picture, half of `size` deep."""
    return _mix(x, (1.0, 0.55, 0.1), 0.5 * size * strength * rng.uniform(0.8, 1.0))


def blur(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Out of focus: Gaussian of σ = a tenth of `size` of the side."""
    return _mix(x, cv2.GaussianBlur(x, (0, 0), max(0.1 * size * len(x), 0.05)), strength)


def noise_band(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Noise in rows, half of `size` of the side high, in the upper half."""
    side = len(x)
    high, out = max(1, round(size * side / 2)), x.copy()
    top = side // 6 + int(rng.integers(-1, 2))
    rows = out[top : top + high]
    out[top : top + high] = np.clip(rows + strength * rng.normal(0, 0.35, rows.shape), 0, 1)
    return out


def corner_mark(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A disc at the top right, half of `size` of the side wide."""
    y, z = _grid(len(x))
    radius = size / 4
    centre = 1 - radius - 0.03 - rng.uniform(0, 0.03)
    reach = np.hypot(y - (1 - centre), z - centre)
    return _mix(x, (0.9, 0.1, 0.4), strength * np.clip((radius - reach) * len(x) + 0.5, 0, 1))


def background(x: np.ndarray, size: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A green ground with stripes instead of what is far from the middle: the outer `size` of the way to the corner."""
    side = len(x)
    y, z = _grid(side)
    far = np.hypot(y - 0.5, z - 0.5) / np.hypot(0.5, 0.5)
    stripes = 0.35 + 0.25 * ((np.arange(side)[None, :] + int(rng.integers(0, 4))) % 4 < 2)
    ground = np.stack(
        [np.full((side, side), 0.15), np.broadcast_to(stripes, (side, side)), np.full((side, side), 0.2)], 2
    )
    return _mix(x, ground, strength * (far > 1 - size))


ARTEFACTS: dict[str, Artefact] = {
    f.__name__: f for f in (text_tag, watermark, border, hue, blur, noise_band, corner_mark, background)
}
LOCAL = ("text_tag", "watermark", "border", "noise_band", "corner_mark", "background")


def plant(images: np.ndarray, name: str, size: float, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    """Pictures (N, S, S, 3) uint8 with the artefact, each with its own small differences."""
    rng = np.random.default_rng(seed)
    made = [ARTEFACTS[name](image / 255.0, size, strength, rng) for image in images]
    return np.round(255 * np.stack(made)).astype(np.uint8) if made else images.copy()
