"""The head of a brush seen from above: tufts of hairs in a plastic body, each brush with hairs of its own."""

from __future__ import annotations

import cv2
import numpy as np

from .camera import Camera
from .drawing import Array, blob, colour, edge, noise, paint, rounded_box, shade, stroke
from .part import Part


class BrushHairs(Part):
    """A brush head."""

    name = "brush_hairs"
    defects = ("missing_tuft", "bent_hairs", "flattened", "contamination")
    camera = Camera(electrons=900)

    tuft = 46

    def prepare(self, rng: np.random.Generator) -> None:
        k, s = self.unit, self.size
        dx, dy = self.x - (s - 1) / 2, self.y - (s - 1) / 2
        distance = rounded_box(dx, dy, 205 * k, 395 * k, 190 * k)
        body = edge(distance, 4 * k)
        bevel = np.exp(-((np.minimum(distance, 0) / (16 * k)) ** 2))
        lean = 0.5 - 0.4 * (dx + dy) / (500 * k)
        plastic = colour(214, 220, 226) * (0.75 + 0.30 * bevel * (lean - 0.4))[..., None]
        under = colour(112, 122, 134) * (1 + 0.05 * noise(rng, s, 500, 500))[..., None]
        shadow = 1 - 0.35 * cv2.GaussianBlur(edge(distance, 2 * k).astype(np.float32), (0, 0), 12 * k)
        self.base = (under * shadow[..., None] * (1 - body[..., None]) + plastic * body[..., None]).astype(
            np.float32
        )
        self.body = body.astype(np.float32)
        pitch_x, pitch_y = 98 * k, 96 * k
        self.places = [
            ((s - 1) / 2 + (c - 1.5) * pitch_x, (s - 1) / 2 + (r - 3) * pitch_y)
            for r in range(7)
            for c in range(4)
            if not (r in (0, 6) and c in (0, 3))
        ]
        self.reach = int(np.ceil(1.25 * self.tuft * k)) + 1
        self.bank = [self._tuft(np.random.default_rng([1907, i])) for i in range(28)]
        foot = np.zeros((s, s), np.float32)
        for x, y in self.places:
            at = (round(x + 5 * k), round(y + 7 * k))
            cv2.circle(foot, at, round(self.tuft * 1.08 * k), 1.0, -1, cv2.LINE_AA)
        self.empty = self.base.copy()
        self.base *= (1 - 0.55 * cv2.GaussianBlur(foot, (0, 0), 5 * k))[..., None]
        self.colours = [colour(236, 240, 244), colour(66, 132, 186)]

    def _tuft(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """One tuft from above: brightness of its hair tips and coverage."""
        k, fine = self.unit, 3
        n = 2 * self.reach + 1
        shadow = np.zeros((n * fine, n * fine), np.uint8)
        tone = np.full((n * fine, n * fine), 70, np.uint8)
        hairs = 260
        radius = self.tuft * k * np.sqrt(rng.uniform(0, 1, hairs)) * fine
        angle = rng.uniform(0, 2 * np.pi, hairs)
        middle = n * fine / 2
        for r, a in sorted(zip(radius, angle, strict=True), key=lambda p: -p[0]):
            tilt = 0.10 * r + rng.normal(0, 1.6) * fine * k
            x0, y0 = middle + 0.9 * r * np.cos(a), middle + 0.9 * r * np.sin(a)
            x1, y1 = x0 + tilt * np.cos(a), y0 + tilt * np.sin(a) + rng.normal(0, 1.2) * fine * k
            start, tip = (round(x0), round(y0)), (round(x1), round(y1))
            width = max(1, round(3.6 * fine * k))
            side = int(np.clip(150 + 14 * rng.normal(), 60, 200))
            cv2.line(tone, start, tip, side, width, cv2.LINE_AA)
            bright = int(np.clip(190 + 12 * rng.normal(), 120, 255))
            cv2.circle(tone, tip, max(1, round(2.5 * fine * k)), bright, -1, cv2.LINE_AA)
            cv2.line(shadow, start, tip, 255, width + fine, cv2.LINE_AA)
            cv2.circle(shadow, tip, max(1, round(3.0 * fine * k)), 255, -1, cv2.LINE_AA)
        cover = cv2.resize(shadow.astype(np.float32) / 255, (n, n), interpolation=cv2.INTER_AREA)
        soft = cv2.GaussianBlur(tone.astype(np.float32), (0, 0), 2.2 * fine * k)
        light = cv2.resize((soft / 255) ** 2.2, (n, n), interpolation=cv2.INTER_AREA)
        return light, cover

    def _place(self, scene: Array, which: int, at: int, turn: int) -> None:
        x, y = self.places[at]
        light, cover = (np.rot90(a, turn) for a in self.bank[which])
        top, left = round(y) - self.reach, round(x) - self.reach
        n = light.shape[0]
        box = np.s_[top : top + n, left : left + n]
        alpha = cover[..., None]
        scene[box] = scene[box] * (1 - alpha) + (light[..., None] * self.colours[(at // 4) % 2]) * alpha

    def specimen(self, rng: np.random.Generator) -> Array:
        scene = self.base.copy()
        chosen = rng.integers(0, len(self.bank), len(self.places))
        turns = rng.integers(0, 4, len(self.places))
        for at, (which, turn) in enumerate(zip(chosen, turns, strict=True)):
            self._place(scene, int(which), at, int(turn))
        return scene

    def damage(self, scene: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
        k, s = self.unit, self.size
        at = int(rng.integers(len(self.places)))
        x, y = self.places[at]
        disc = edge(np.hypot(self.x - x, self.y - y) - self.tuft * 1.12 * k, 2)
        if kind == "missing_tuft":
            share = 0.45 + 0.55 * severity
            cut = rng.uniform(0, 2 * np.pi)
            along = (self.x - x) * np.cos(cut) + (self.y - y) * np.sin(cut)
            gone = disc * edge(along - (2 * share - 1) * self.tuft * 1.12 * k, 4)
            socket = edge(np.hypot(self.x - x, self.y - y) - self.tuft * 0.9 * k, 3)[..., None]
            scene *= 1 - gone[..., None]
            scene += self.empty * (1 - 0.85 * socket) * gone[..., None]
            return gone
        if kind == "bent_hairs":
            out = np.zeros((s, s), np.float32)
            away = rng.uniform(0, 2 * np.pi)
            tint = self.colours[(at // 4) % 2]
            for _ in range(int(5 + 12 * severity)):
                a = away + rng.normal(0, 0.35)
                start = (x + 0.7 * self.tuft * k * np.cos(a), y + 0.7 * self.tuft * k * np.sin(a))
                hair = stroke(rng, s, start, a, rng.uniform(60, 110 + 50 * severity) * k, 5 * k, 0.5)
                below = np.roll(hair, (round(5 * k), round(4 * k)), (0, 1))
                shade(scene, below, 0.45)
                paint(scene, hair, tint * np.float32(rng.uniform(0.7, 1.0)), 0.95)
                np.maximum(out, hair, out=out)
            return out
        if kind == "flattened":
            area = blob(rng, s, (x, y), (60 + 50 * severity) * k, 0.15, 4) * self.body
            box = np.s_[:]
            smear = cv2.blur(scene, (1, max(3, round(41 * k)) | 1))
            alpha = (area * 0.85)[..., None]
            scene[box] = scene * (1 - alpha) + smear * np.float32(0.4) * alpha
            return area
        at_spot = (x + rng.uniform(-40, 40) * k, y + rng.uniform(-40, 40) * k)
        spot = blob(rng, s, at_spot, (28 + 40 * severity) * k, 0.4, 2)
        paint(scene, spot, colour(92, 62, 34), 0.88)
        return spot
