"""A stamped plate of brushed steel with punched holes and embossed letters."""

from __future__ import annotations

import cv2
import numpy as np

from .camera import Camera
from .drawing import Array, blob, colour, edge, noise, paint, rounded_box, shade, stroke, text
from .part import Part


class StampedPlate(Part):
    """A stamped plate."""

    name = "stamped_plate"
    defects = ("missing_hole", "bent_corner", "scratch", "oil")
    camera = Camera(electrons=500)

    width, height = 330.0, 270.0

    def prepare(self, rng: np.random.Generator) -> None:
        s, k = self.size, self.unit
        dx, dy = self.x - (s - 1) / 2, self.y - (s - 1) / 2
        sheet = rounded_box(dx, dy, self.width * k, self.height * k, 34 * k)
        middle = (s - 1) / 2
        self.holes = [(middle + i * 265 * k, middle + j * 205 * k) for i in (-1, 1) for j in (-1, 1)]
        self.hole = 40 * k
        rings = [np.hypot(self.x - x, self.y - y) - self.hole for x, y in self.holes]
        slot = rounded_box(dx, dy - 120 * k, 120 * k, 26 * k, 26 * k)
        openings = np.minimum.reduce([*rings, slot])
        self.solid = edge(sheet, 4 * k).astype(np.float32)
        outline = np.maximum(sheet, -openings)
        self.body = edge(outline, 4 * k).astype(np.float32)
        rim = np.exp(-(((outline + 5 * k) / (3.5 * k)) ** 2))
        letters = cv2.GaussianBlur(
            text(s, "PF-1907", (s / 2, s / 2 - 60 * k), 92 * k, 13 * k), (0, 0), 2.2 * k
        )
        relief = letters - np.roll(letters, (round(5 * k), round(5 * k)), (0, 1))
        light = 0.34 + 0.06 * noise(rng, s, 2, 2) - 0.05 * dy / (450 * k)
        self.relief = (light * (1 + 0.85 * relief + 0.45 * rim)).astype(np.float32)
        belt = colour(112, 114, 116) * (1 + 0.06 * noise(rng, s, s / 2, s / 2))[..., None]
        fall = cv2.GaussianBlur(np.roll(self.body, (round(11 * k), round(9 * k)), (0, 1)), (0, 0), 7 * k)
        self.belt = (belt * (1 - 0.45 * fall)[..., None]).astype(np.float32)
        self.steel = np.array([0.97, 0.99, 1.0], np.float32)

    def _brushed(self, rng: np.random.Generator) -> Array:
        s, k = self.size, self.unit
        return 1 + 0.045 * noise(rng, s, s / (90 * k), s) + 0.025 * noise(rng, s, s / (14 * k), s)

    def specimen(self, rng: np.random.Generator) -> Array:
        s = self.size
        metal = self.relief * (self._brushed(rng) + 0.01 * noise(rng, s, 3, 12))
        scene = metal[..., None] * self.steel
        scene -= self.belt
        scene *= self.body[..., None]
        scene += self.belt
        return scene

    def damage(self, scene: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
        s, k = self.size, self.unit
        middle = (s - 1) / 2
        x, y = middle + rng.uniform(-250, 250) * k, middle + rng.uniform(-190, 190) * k
        if kind == "missing_hole":
            hx, hy = self.holes[int(rng.integers(4))]
            share = 0.35 + 0.65 * severity
            r = np.hypot(self.x - hx, self.y - hy)
            filled = edge(r - self.hole - 1, 2) * edge((self.x - hx) - (2 * share - 1) * self.hole, 2)
            flat = 0.33 * self._brushed(rng)
            scene *= 1 - filled[..., None]
            scene += flat[..., None] * self.steel * filled[..., None]
            dent = np.exp(-(((r - 0.93 * self.hole) / (3 * k)) ** 2)) * filled
            shade(scene, dent.astype(np.float32), 0.55)
            return filled
        if kind == "bent_corner":
            i, j = rng.choice([-1, 1], 2)
            cx, cy = middle + i * self.width * k, middle + j * self.height * k
            into = (i * (cx - self.x) + j * (cy - self.y)) / np.float32(np.sqrt(2))
            fold = (52 + 46 * severity) * k
            corner = edge(into - fold, 3) * self.solid
            tone = 0.28 if rng.uniform() < 0.5 else 2.1
            shade(scene, corner, tone)
            crease = np.exp(-(((into - fold) / (4 * k)) ** 2)).astype(np.float32) * self.solid
            crease[crease < 0.02] = 0
            shade(scene, crease, 1.5)
            return corner
        if kind == "scratch":
            angle = rng.uniform(0, 2 * np.pi)
            size = (150 + 190 * severity) * k, (8 + 8 * severity) * k
            line = stroke(rng, s, (x, y), angle, *size, 0.25) * self.body
            paint(scene, line, colour(252, 252, 255), 0.95)
            side = np.roll(line, (round(4 * k), round(4 * k)), (0, 1)) * (1 - line)
            shade(scene, side, 0.5)
            return line
        film = blob(rng, s, (x, y), (34 + 44 * severity) * k, 0.3, 4) * self.body
        tint = colour(98, 84, 48) * np.clip(1 + 0.25 * noise(rng, s, 30, 30), 0.4, 2)[..., None]
        alpha = (film * 0.8)[..., None]
        scene *= 1 - alpha
        scene += tint * alpha
        return film
