"""A turned metal ring on a dark mat: concentric grooves and the bow-tie highlight they cause."""

from __future__ import annotations

import numpy as np

from .camera import Camera
from .drawing import Array, blob, colour, edge, noise, paint, profile, shade, stroke
from .part import Part


class TurnedRing(Part):
    """A turned ring."""

    name = "turned_ring"
    defects = ("dent", "scratch", "rust", "chip")
    camera = Camera(electrons=650)

    inner, outer = 165.0, 345.0

    def prepare(self, rng: np.random.Generator) -> None:
        k, s = self.unit, self.size
        dx, dy = self.x - (s - 1) / 2, self.y - (s - 1) / 2
        r = np.hypot(dx, dy)
        theta = np.arctan2(dy, dx)
        self.body = (edge(r - self.outer * k, 4 * k) * edge(self.inner * k - r, 4 * k))[..., None]
        self.step = np.minimum((r * 4).astype(np.int32), 4 * s - 1)
        lobe = np.cos(theta - 0.6) ** 2
        self.sheen = (0.17 + 0.40 * lobe**3 + 0.22 * lobe**24).astype(np.float32)
        chamfer = np.exp(-(((r - (self.outer - 9) * k) / (5 * k)) ** 2)) + np.exp(
            -(((r - (self.inner + 9) * k) / (5 * k)) ** 2)
        )
        facing = 0.5 + 0.5 * np.cos(theta + 2.3) * np.where(r > 250 * k, 1, -1)
        self.chamfer = (chamfer * (facing * 0.34 - 0.08)).astype(np.float32)
        mat = 1 + 0.05 * noise(rng, s, 450, 450) + 0.06 * noise(rng, s, 60, 60)
        shadow = 1 - 0.35 * edge(np.hypot(dx - 12 * k, dy - 14 * k) - (self.outer + 4) * k, 30 * k)
        self.mat = (colour(116, 121, 128) * (mat * shadow)[..., None]).astype(np.float32)
        turning = 0.5 * np.sin(2 * np.pi * np.arange(4 * s) / (4 * 9.0 * k)) + 0.6 * profile(
            rng, 4 * s, 4 * s / 40
        )
        self.turning = turning.astype(np.float32)
        self.steel = np.array([1.0, 0.975, 0.94], np.float32)

    def specimen(self, rng: np.random.Generator) -> Array:
        n = 4 * self.size
        grooves = 1 + 0.06 * self.turning + 0.05 * profile(rng, n, n / 12) + 0.02 * profile(rng, n, 24)
        metal = grooves.astype(np.float32)[self.step] * self.sheen + self.chamfer
        metal *= 1 + 0.015 * noise(rng, self.size, 300, 300)
        np.clip(metal, 0.02, None, out=metal)
        scene = metal[..., None] * self.steel
        scene -= self.mat
        scene *= self.body
        scene += self.mat
        return scene

    def spot(self, rng: np.random.Generator, margin: float = 30) -> tuple[float, float, float]:
        """A place on the ring: x, y, angle."""
        angle = rng.uniform(0, 2 * np.pi)
        r = rng.uniform(self.inner + margin, self.outer - margin) * self.unit
        middle = (self.size - 1) / 2
        return middle + r * np.cos(angle), middle + r * np.sin(angle), angle

    def damage(self, scene: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
        k, s = self.unit, self.size
        x, y, angle = self.spot(rng)
        if kind == "dent":
            radius = (26 + 40 * severity) * k
            pit = blob(rng, s, (x, y), radius, 0.08, 3)
            lit = blob(rng, s, (x + 0.42 * radius, y + 0.42 * radius), 0.62 * radius, 0.08, 5)
            shade(scene, pit, 0.30)
            paint(scene, lit * pit, colour(235, 232, 225), 0.75)
            return pit
        if kind == "scratch":
            size = (160 + 220 * severity) * k, (7 + 8 * severity) * k
            line = stroke(rng, s, (x, y), angle + np.pi + rng.normal(0, 0.5), *size)
            line *= self.body[..., 0]
            paint(scene, line, colour(250, 250, 248), 0.9)
            burr = np.roll(line, (round(5 * k), round(5 * k)), (0, 1)) * (1 - line) * self.body[..., 0]
            shade(scene, burr, 0.4)
            return line
        if kind == "rust":
            stain = blob(rng, s, (x, y), (32 + 46 * severity) * k, 0.35, 6)
            stain *= self.body[..., 0]
            mottled = stain * np.clip(0.85 + 0.25 * noise(rng, s, 110, 110), 0, 1)
            paint(scene, mottled, colour(118, 62, 30), 0.9)
            return stain
        rim = self.outer if rng.uniform() < 0.6 else self.inner
        middle = (s - 1) / 2
        at = (middle + rim * k * np.cos(angle), middle + rim * k * np.sin(angle))
        chip = blob(rng, s, at, (28 + 34 * severity) * k, 0.25, 1.5) * self.body[..., 0]
        paint(scene, chip, colour(38, 40, 45))
        return chip
