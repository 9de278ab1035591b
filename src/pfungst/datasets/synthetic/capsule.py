"""A printed two-coloured capsule on a pale grained surface."""

from __future__ import annotations

import cv2
import numpy as np

from .camera import Camera
from .drawing import Array, blob, colour, edge, noise, paint, rounded_box, shade, stroke, text
from .part import Part


class PrintedCapsule(Part):
    """A printed capsule."""

    name = "printed_capsule"
    defects = ("crack", "misprint", "poke", "squeeze", "contamination")
    camera = Camera(electrons=700)

    length, radius = 315.0, 118.0

    def prepare(self, rng: np.random.Generator) -> None:
        k, s = self.unit, self.size
        dx, dy = self.x - (s - 1) / 2, self.y - (s - 1) / 2
        cap = dx > 10 * k
        reach = np.where(cap, self.radius + 4, self.radius).astype(np.float32) * k
        distance = rounded_box(dx, dy, self.length * k, self.radius * k, self.radius * k) - np.where(
            cap, 4 * k, 0
        )
        self.body = edge(distance, 4 * k).astype(np.float32)
        end = np.clip((np.abs(dx) - (self.length - self.radius) * k) / reach, 0, 1)
        height = np.sqrt(np.clip(1 - (dy / reach) ** 2 - end**2, 0.0, 1))
        lambert = 0.45 + 0.55 * np.clip(0.86 * height - 0.42 * dy / reach - 0.2 * end * np.sign(dx), 0, 1)
        tint = np.where(cap[..., None], colour(74, 132, 138), colour(222, 208, 180)).astype(np.float32)
        seam = np.exp(-(((dx - 10 * k) / (2.5 * k)) ** 2)) * 0.5
        gloss = np.exp(-(((dy + 0.47 * self.radius * k) / (9 * k)) ** 2)) * edge(np.abs(dx) - 210 * k, 60 * k)
        wide = np.exp(-(((dy + 0.43 * self.radius * k) / (30 * k)) ** 2)) * edge(np.abs(dx) - 225 * k, 90 * k)
        self.blank = (tint * (lambert * (1 - seam))[..., None]).astype(np.float32)
        self.gloss = (0.50 * gloss + 0.08 * wide).astype(np.float32)[..., None]
        print_left = text(s, "PF 50", (s / 2 - 130 * k, s / 2 + 22 * k), 60 * k, 6 * k)
        print_right = text(s, "500", (s / 2 + 140 * k, s / 2 + 22 * k), 60 * k, 6 * k)
        self.prints = (print_left, print_right)
        self.inks = (colour(104, 94, 88), colour(206, 212, 206))
        fall = edge(
            rounded_box(dx - 8 * k, dy - 26 * k, self.length * k, self.radius * k, self.radius * k), 2 * k
        )
        self.shadow = 1 - 0.35 * cv2.GaussianBlur(fall.astype(np.float32), (0, 0), 14 * k)
        self.table = colour(160, 162, 154)

    def specimen(self, rng: np.random.Generator) -> Array:
        s = self.size
        grain = 1 + 0.045 * noise(rng, s, s / 3, s / 3) + 0.008 * noise(rng, s, 20, 20)
        scene = (grain * self.shadow)[..., None] * self.table
        shell = self.blank * np.float32(1 + rng.normal(0, 0.01))
        for letters, ink in zip(self.prints, self.inks, strict=True):
            paint(shell, letters, ink, 0.85 + float(rng.normal(0, 0.02)))
        shell += self.gloss * np.float32(1 + rng.normal(0, 0.04))
        shell -= scene
        shell *= self.body[..., None]
        scene += shell
        return scene

    def damage(self, scene: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
        k, s = self.unit, self.size
        middle = (s - 1) / 2
        x = middle + rng.uniform(-220, 220) * k
        y = middle + rng.uniform(-50, 60) * k
        if kind == "crack":
            angle = rng.uniform(0.2, np.pi - 0.2)
            line = stroke(
                rng, s, (x, middle - 80 * k), angle, (130 + 110 * severity) * k, (8 + 7 * severity) * k, 0.9
            )
            line *= self.body
            paint(scene, line, colour(28, 22, 20), 0.95)
            return line
        if kind == "misprint":
            side = int(rng.uniform() < 0.5)
            old, ink = self.prints[side], self.inks[side]
            gone = np.clip(cv2.dilate(old, np.ones((3, 3), np.uint8)) * 1.5, 0, 1)
            box = np.s_[:, : s // 2] if side == 0 else np.s_[:, s // 2 :]
            blank = self.blank + self.gloss
            paint_over = gone[..., None]
            scene[box] = scene[box] * (1 - paint_over[box]) + blank[box] * paint_over[box]
            move = np.array(
                [[1, 0, rng.uniform(-18, 18) * k], [0, 1, rng.choice([-1, 1]) * (16 + 26 * severity) * k]],
                np.float32,
            )
            new = cv2.warpAffine(old, move, (s, s)) * self.body
            paint(scene, new, ink, 0.85)
            return np.maximum(gone, new)
        if kind == "poke":
            radius = (16 + 20 * severity) * k
            hole = blob(rng, s, (x, y), radius, 0.12, 1.5)
            rim = blob(rng, s, (x, y), radius * 1.6, 0.1, 4)
            shade(scene, rim * self.body, 0.7)
            paint(scene, hole * self.body, colour(20, 18, 16))
            return hole * self.body
        if kind == "squeeze":
            side = rng.choice([-1, 1])
            depth = (34 + 34 * severity) * k
            at = middle + side * (self.radius * k + 40 * k - depth)
            bite = blob(rng, s, (x, at + side * 34 * k), 74 * k, 0.06, 2) * self.body
            surface = (self.shadow * (1.0 if side < 0 else 0.62))[..., None] * self.table
            alpha = bite[..., None]
            scene *= 1 - alpha
            scene += surface * alpha
            ridge = blob(rng, s, (x, at + side * 20 * k), 84 * k, 0.05, 6) * self.body * (1 - bite)
            shade(scene, ridge, 0.55 if side > 0 else 1.35)
            return bite
        spot = blob(rng, s, (x, y), (22 + 28 * severity) * k, 0.4, 2)
        paint(scene, spot, colour(142, 40, 30), 0.92)
        return spot
