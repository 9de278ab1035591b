"""A planed board: growth rings as wandering stripes, fibres, pores."""

from __future__ import annotations

import numpy as np

from .camera import Camera
from .drawing import Array, blob, colour, noise, paint, profile, shade, stroke
from .part import Part


class WoodStripes(Part):
    """A planed board."""

    name = "wood_stripes"
    defects = ("scratch", "hole", "stain", "knot")
    camera = Camera(electrons=800)

    def prepare(self, rng: np.random.Generator) -> None:
        self.early, self.late = colour(206, 160, 108), colour(150, 100, 58)
        self.rings = profile(rng, 2 * self.size, 44)
        self.flow = noise(rng, self.size, 4, 3)

    def specimen(self, rng: np.random.Generator) -> Array:
        s, k = self.size, self.unit
        wander = 14 * self.flow + 5 * noise(rng, s, 5, 3) + 1.2 * noise(rng, s, 30, 10)
        column = self.x + np.float32(s / 2) + wander * np.float32(k)
        rings = 0.8 * self.rings + 0.35 * profile(rng, 2 * s, 60) + 0.35 * profile(rng, 2 * s, 400)
        share = np.clip(0.42 + 0.16 * rings, 0, 1).astype(np.float32)
        late = share[np.clip(column, 0, 2 * s - 1).astype(np.int32)]
        fibre = noise(rng, s, s, s / (22 * k))
        pores = noise(rng, s, s / 3, s / (50 * k))
        late += 0.035 * fibre
        scene = self.early + late[..., None] * (self.late - self.early)
        scene *= (1 - 0.25 * np.clip(pores - 1.5, 0, 1.2))[..., None]
        return scene

    def damage(self, scene: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
        s, k = self.size, self.unit
        x, y = rng.uniform(0.18, 0.82, 2) * s
        if kind == "scratch":
            size = (150 + 180 * severity) * k, (8 + 8 * severity) * k
            line = stroke(rng, s, (x, y), rng.uniform(0, 2 * np.pi), *size, 0.3)
            paint(scene, line, colour(240, 222, 190), 0.85)
            return line
        if kind == "hole":
            out = np.zeros((s, s), np.float32)
            for _ in range(int(rng.integers(1, 4))):
                at = (x + rng.normal(0, 60) * k, y + rng.normal(0, 60) * k)
                radius = (13 + 15 * severity) * k
                ring = blob(rng, s, at, 1.5 * radius, 0.1, 5)
                hole = blob(rng, s, at, radius, 0.12, 1.5)
                shade(scene, ring, 0.75)
                paint(scene, hole, colour(28, 18, 12))
                np.maximum(out, hole, out=out)
            return out
        if kind == "stain":
            wet = blob(rng, s, (x, y), (50 + 60 * severity) * k, 0.3, 4)
            shade(scene, wet, float(np.float32(0.42)))
            return wet
        radius = (30 + 32 * severity) * k
        knot = blob(rng, s, (x, y), radius, 0.12, 3)
        distance = np.hypot(self.x - x, (self.y - y) * np.float32(0.8))
        rings = (0.75 + 0.25 * np.sin(distance / (3.2 * k))).astype(np.float32)
        shade(scene, blob(rng, s, (x, y), 1.35 * radius, 0.1, 8), 0.8)
        alpha = (knot * 0.92)[..., None]
        scene *= 1 - alpha
        scene += colour(84, 48, 26) * rings[..., None] * alpha
        return knot
