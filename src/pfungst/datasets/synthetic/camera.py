"""The camera of the rendered parts: light, pose, lens, and a colour sensor with its grain.

Nothing here knows whether a part is defective. A scene is linear reflectance; the camera lights it unevenly,
sees it slightly shifted, turned and scaled, samples it through a Bayer mosaic with shot noise (variance
proportional to the signal) and read noise, quantises to 12 bits, interpolates the missing colours (which
correlates the grain of neighbours) and applies a 1/2.2 tone curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

Array = np.ndarray
_WHITE = 4095
_BLACK = 256


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Array, Array]:
    """Pixel coordinates (x, y) as float32 arrays (size, size)."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return x, y


@lru_cache(maxsize=1)
def _tone() -> Array:
    level = np.clip((np.arange(65536, dtype=np.float64) - _BLACK) / (_WHITE - _BLACK), 0, 1)
    return np.rint(255 * level ** (1 / 2.2)).astype(np.uint8)


@dataclass(frozen=True)
class Camera:
    """A camera over an inspection line.

    Args:
        electrons: photo-electrons at saturation. A machine-vision sensor holds about 10,000; short exposures
            at high gain use a few hundred of them, which is where grain becomes visible.
        read: read noise in electrons.
        shift: play of the fixture: the position is uniform within ± this many pixels at 900 px.
        turn: the angle is uniform within ± this many degrees.
        zoom: the relative scale is uniform within ± this.
        lens: standard deviation of the blur of lens and depth of field in pixels at 900 px: the sensor
            resolves more than the lens, so the finest detail in a picture is grain.
        flicker: standard deviation of the relative brightness of the lamp.
        slope: relative fall of light across the field, upper left to lower right.
        vignette: relative fall of light to the corners.
    """

    electrons: float = 500
    read: float = 3.0
    shift: float = 3.5
    turn: float = 0.15
    zoom: float = 0.0012
    lens: float = 1.8
    flicker: float = 0.008
    slope: float = 0.16
    vignette: float = 0.22

    def pose(self, size: int, rng: np.random.Generator) -> Array:
        """A random pose as a 2 × 3 affine matrix."""
        centre = (size - 1) / 2
        angle, zoom = rng.uniform(-self.turn, self.turn), 1 + rng.uniform(-self.zoom, self.zoom)
        matrix: Array = np.array(cv2.getRotationMatrix2D((centre, centre), angle, zoom), dtype=np.float64)
        matrix[:, 2] += rng.uniform(-self.shift, self.shift, 2) * (size / 900)
        return matrix

    def light(self, size: int, rng: np.random.Generator) -> Array:
        """Relative light on the scene, (size, size)."""
        t = np.linspace(-1, 1, 48, dtype=np.float32)
        x, y = t[None, :], t[:, None]
        angle = np.deg2rad(225 + rng.normal(0, 3))
        slope = self.slope * (1 + rng.normal(0, 0.05))
        field = (
            1 + 0.5 * slope * (np.cos(angle) * x + np.sin(angle) * y) - 0.5 * self.vignette * (x**2 + y**2)
        )
        level = 1 + rng.normal(0, self.flicker)
        return cv2.resize((level * field).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)

    def photograph(self, scene: Array, mask: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Take a picture.

        Args:
            scene: linear reflectance (H, W, 3), float32, 1 = white.
            mask: boolean (H, W).
            rng: draws pose, light and noise.

        Returns:
            The 8-bit RGB image (H, W, 3) and the mask where the camera sees it.
        """
        size = scene.shape[0]
        pose = self.pose(size, rng)
        seen = cv2.warpAffine(
            scene, pose, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        if mask.any():
            where = cv2.warpAffine(mask.astype(np.uint8), pose, (size, size), flags=cv2.INTER_NEAREST)
        else:
            where = np.zeros(mask.shape, np.uint8)
        if self.lens > 0:
            seen = cv2.GaussianBlur(seen, (0, 0), self.lens * size / 900)
        raw = np.empty((size, size), np.float32)
        raw[0::2, 0::2] = seen[0::2, 0::2, 0]
        raw[0::2, 1::2] = seen[0::2, 1::2, 1]
        raw[1::2, 0::2] = seen[1::2, 0::2, 1]
        raw[1::2, 1::2] = seen[1::2, 1::2, 2]
        raw *= self.light(size, rng)
        np.clip(raw, 0, 1.5, out=raw)
        noise = rng.standard_normal(raw.shape, dtype=np.float32)
        noise *= np.sqrt(raw * np.float32(1 / self.electrons) + np.float32((self.read / self.electrons) ** 2))
        raw += noise
        raw *= _WHITE - _BLACK
        raw += _BLACK + 0.5
        np.clip(raw, 0, _WHITE, out=raw)
        colours = cv2.cvtColor(raw.astype(np.uint16), cv2.COLOR_BayerRGGB2RGB)
        return _tone()[colours], where.astype(bool)
