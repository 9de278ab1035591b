"""Shapes and textures that the parts are made of."""

from __future__ import annotations

import cv2
import numpy as np

Array = np.ndarray


def colour(r: float, g: float, b: float) -> Array:
    """A display colour (0 to 255) as linear reflectance, float32 (3,)."""
    return (np.array([r, g, b], np.float32) / 255) ** np.float32(2.2)


def noise(rng: np.random.Generator, size: int, cells_x: float, cells_y: float) -> Array:
    """Smooth noise of unit variance (size, size) with about so many features across and down."""
    shape = (max(2, min(size, round(cells_y))), max(2, min(size, round(cells_x))))
    field = rng.standard_normal(shape, dtype=np.float32)
    return (
        field
        if field.shape == (size, size)
        else cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
    )


def profile(rng: np.random.Generator, length: int, cells: float) -> Array:
    """Smooth one-dimensional noise of unit variance (length,) with about so many features."""
    field = rng.standard_normal((1, max(2, min(length, round(cells)))), dtype=np.float32)
    return cv2.resize(field, (length, 1), interpolation=cv2.INTER_CUBIC)[0]


def edge(distance: Array, softness: float = 1.0) -> Array:
    """Coverage of a shape given the signed distance to its edge (negative inside), antialiased."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1)


def rounded_box(x: Array, y: Array, half_width: float, half_height: float, radius: float) -> Array:
    """Signed distance to a rounded rectangle around the origin."""
    qx = np.abs(x) - np.float32(half_width - radius)
    qy = np.abs(y) - np.float32(half_height - radius)
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(radius)


def blob(
    rng: np.random.Generator,
    size: int,
    centre: tuple[float, float],
    radius: float,
    rough: float = 0.2,
    soft: float = 1.5,
) -> Array:
    """Coverage of an irregular spot (size, size)."""
    cx, cy = centre
    reach = int(np.ceil(radius * (1 + 3 * rough) + 2 * soft + 2))
    out = np.zeros((size, size), np.float32)
    x0, x1 = max(0, int(cx) - reach), min(size, int(cx) + reach + 1)
    y0, y1 = max(0, int(cy) - reach), min(size, int(cy) + reach + 1)
    if x0 >= x1 or y0 >= y1:
        return out
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    stretch, angle = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (-(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)) / stretch
    theta = np.arctan2(v, u)
    outline = np.ones_like(theta)
    for k in range(2, 7):
        outline += np.float32(rough * rng.normal() / k) * np.cos(k * theta + np.float32(rng.uniform(0, 6.3)))
    out[y0:y1, x0:x1] = edge(np.hypot(u, v) - radius * outline, 2 * soft)
    return out


def stroke(
    rng: np.random.Generator,
    size: int,
    start: tuple[float, float],
    angle: float,
    length: float,
    width: float,
    wander: float = 0.15,
) -> Array:
    """Coverage of a wandering, tapering line (size, size); angle in radians."""
    steps = max(6, int(length / 6))
    heading = angle + np.cumsum(rng.normal(0, wander / np.sqrt(steps), steps))
    step = length / steps
    xs = start[0] + np.concatenate([[0.0], np.cumsum(step * np.cos(heading))])
    ys = start[1] + np.concatenate([[0.0], np.cumsum(step * np.sin(heading))])
    layer = np.zeros((size, size), np.uint8)
    taper = np.clip(np.minimum(np.arange(steps), np.arange(steps)[::-1]) / (0.2 * steps) + 0.35, 0.35, 1)
    for i in range(steps):
        a = (round(float(xs[i]) * 16), round(float(ys[i]) * 16))
        b = (round(float(xs[i + 1]) * 16), round(float(ys[i + 1]) * 16))
        cv2.line(layer, a, b, 255, max(1, round(width * float(taper[i]))), cv2.LINE_AA, 4)
    return layer.astype(np.float32) / 255


def paint(scene: Array, coverage: Array, tint: Array, opacity: float = 1.0) -> None:
    """Cover part of a scene with a colour, in place."""
    box = bounds(coverage)
    if box is None:
        return
    alpha = (coverage[box] * np.float32(opacity))[..., None]
    scene[box] = scene[box] * (1 - alpha) + tint * alpha


def shade(scene: Array, coverage: Array, factor: float) -> None:
    """Darken (factor < 1) or brighten (factor > 1) part of a scene, in place."""
    box = bounds(coverage)
    if box is not None:
        scene[box] *= (1 + coverage[box] * np.float32(factor - 1))[..., None]


def bounds(coverage: Array) -> tuple[slice, slice] | None:
    """The smallest box that holds everything covered, or None."""
    rows = np.flatnonzero(coverage.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(coverage[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def text(size: int, words: str, centre: tuple[float, float], height: float, weight: float) -> Array:
    """Coverage of printed text (size, size)."""
    face = cv2.FONT_HERSHEY_DUPLEX
    thickness = max(1, round(weight))
    scale = height / 22
    (w, h), _ = cv2.getTextSize(words, face, scale, thickness)
    layer = np.zeros((size, size), np.uint8)
    origin = (round(centre[0] - w / 2), round(centre[1] + h / 2))
    cv2.putText(layer, words, origin, face, scale, 255, thickness, cv2.LINE_AA)
    return layer.astype(np.float32) / 255
