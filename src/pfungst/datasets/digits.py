"""Digits-C: scikit-learn's digits at 28 px under MNIST-C's 15 corruptions, with the exact change as mask.

The names and kinds of the corruptions are those of Mu and Gilmer 2019 ("MNIST-C"); the strengths are ours. It
needs no download, and every anomaly's true location is known: where it differs from the uncorrupted image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from PIL import Image

from pfungst.data.item import Item
from pfungst.data.items import ImageSet
from pfungst.errors import ConfigError, InputError
from pfungst.suggest import suggest

Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _affine(x: np.ndarray, matrix: np.ndarray, shift: Sequence[float] = (0.0, 0.0)) -> np.ndarray:
    """Moves the image by y = A (x − centre) + centre + shift, black outside."""
    centre = (np.array(x.shape[::-1]) - 1) / 2
    offset = centre - matrix @ centre + np.asarray(shift)
    return cv2.warpAffine(x, np.c_[matrix, offset], x.shape[::-1], flags=cv2.INTER_LINEAR)


def _sign(random: np.random.Generator) -> float:
    return float(random.choice((-1.0, 1.0)))


def _shot_noise(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.poisson(np.clip(x, 0, 1) * 5) / 5


def _impulse_noise(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    hit, value = random.random(x.shape) < 0.2, random.integers(0, 2, x.shape)
    return np.where(hit, value, x)


def _glass_blur(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    y = cv2.GaussianBlur(x, (0, 0), 0.7)
    h, w = y.shape
    for i in range(h - 2, 1, -1):
        for j in range(w - 2, 1, -1):
            di, dj = random.integers(-1, 2, 2)
            y[i, j], y[i + di, j + dj] = y[i + di, j + dj], y[i, j]
    return cv2.GaussianBlur(y, (0, 0), 0.7)


def _motion_blur(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    length = max(3, x.shape[0] // 3) | 1
    kernel = np.zeros((length, length), dtype=np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length / 2 - 0.5, length / 2 - 0.5), random.uniform(-45, 45), 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_CONSTANT)


def _shear(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _affine(x, np.array([[1, _sign(random) * random.uniform(0.4, 0.6)], [0, 1]]))


def _scale(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _affine(x, np.eye(2) * random.uniform(0.5, 0.65))


def _rotate(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    a = np.deg2rad(_sign(random) * random.uniform(30, 50))
    return _affine(x, np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]))


def _brightness(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return x + random.uniform(0.3, 0.5)


def _translate(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    reach = x.shape[0] / 28
    shift = [_sign(random) * random.uniform(4, 7) * reach for _ in range(2)]
    return _affine(x, np.eye(2), shift)


def _stripe(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    y, w = x.copy(), x.shape[1]
    y[:, : w // 4] = 1
    y[:, w - w // 4 :] = 1
    return y


def _fog(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    cloud = np.zeros(x.shape)
    for level, cells in enumerate((2, 4, 8)):
        grid = random.random((cells, cells)).astype(np.float32)
        cloud += cv2.resize(grid, x.shape[::-1], interpolation=cv2.INTER_CUBIC) / 2**level
    cloud = (cloud - cloud.min()) / (np.ptp(cloud) + 1e-9)
    return (x + 0.9 * cloud) * (max(float(x.max()), 1e-9) / (float(x.max()) + 0.9))


def _spatter(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    drops = cv2.GaussianBlur(random.normal(0, 1, x.shape), (0, 0), 1.2)
    mask = cv2.GaussianBlur((drops > np.quantile(drops, 0.9)).astype(np.float32), (0, 0), 0.5)
    return x * (1 - mask) + 0.7 * mask


def _line(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    canvas = np.zeros((x.shape[0] * 8, x.shape[1] * 8), dtype=np.uint8)
    for a, b in pairwise(points):
        cv2.line(canvas, tuple(map(int, a * 8)), tuple(map(int, b * 8)), 255, 8, cv2.LINE_AA)
    return cv2.resize(canvas, x.shape[::-1], interpolation=cv2.INTER_AREA) / 255.0


def _dotted_line(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    side = x.shape[0]
    start, stop = (np.array([e, random.uniform(0.1, 0.9) * side]) for e in (0.0, float(side)))
    if random.random() < 0.5:
        start, stop = start[::-1], stop[::-1]
    y, way = x, stop - start
    for t in np.arange(0, 1, 4 / side):
        y = np.maximum(y, _line(x, np.stack([start + way * t, start + way * (t + 1.6 / side)])))
    return y


def _zigzag(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    side = x.shape[0]
    t = np.linspace(0, side, 9)
    level = random.uniform(0.3, 0.7) * side
    points = np.stack([t, level + np.resize((-1, 1), 9) * side / 14], 1)
    return np.maximum(x, _line(x, points if random.random() < 0.5 else points[:, ::-1]))


def _canny_edges(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return cv2.Canny((np.clip(x, 0, 1) * 255).astype(np.uint8), 60, 140) / 255.0


CORRUPTIONS: dict[str, Corruption] = {
    f.__name__[1:]: f
    for f in (
        _shot_noise, _impulse_noise, _glass_blur, _motion_blur, _shear, _scale, _rotate, _brightness,
        _translate, _stripe, _fog, _spatter, _dotted_line, _zigzag, _canny_edges,
    )
}  # fmt: skip


@lru_cache(maxsize=4)
def _digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.stack([_enlarge(image.astype(np.float32) / 16, size) for image in raw.images])
    return images, raw.target


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """8 × 8 → size × size: the digit takes the middle 5/7, as in MNIST."""
    inner = round(size * 5 / 7)
    grown = cv2.resize(image, (inner, inner), interpolation=cv2.INTER_CUBIC)
    out = np.zeros((size, size), dtype=np.float32)
    edge = (size - inner) // 2
    out[edge : edge + inner, edge : edge + inner] = np.clip(grown, 0, 1)
    return np.round(out * 255) / 255


def corrupt(image: np.ndarray, corruption: str, seed: int = 0) -> np.ndarray:
    """A corrupted copy, in 256 grey levels.

    Args:
        image: (H, W) in [0, 1], white on black.
        corruption: one of ``CORRUPTIONS``.
        seed: of what is random in it.

    Returns:
        (H, W) float32 in [0, 1].
    """
    if corruption not in CORRUPTIONS:
        raise ConfigError(f"unknown corruption {corruption!r}", suggest(corruption, CORRUPTIONS))
    x = np.array(image, dtype=np.float32)
    y = CORRUPTIONS[corruption](x, np.random.default_rng(seed))
    return (np.round(np.clip(y, 0, 1) * 255) / 255).astype(np.float32)


def digits_c(
    corruptions: str | Sequence[str] | None = None,
    size: int = 28,
    train: int = 1000,
    good: int = 300,
    anomalous: int = 300,
    seed: int = 0,
) -> list[ImageSet]:
    """One set per corruption: training digits, good test digits, corrupted test digits with masks.

    The same digits are never in two of these parts. Masks mark every pixel that changed.

    Args:
        corruptions: which; all 15 by default.
        size: of the images, in pixels.
        train, good, anomalous: how many digits for each part; 1797 there are.
        seed: of the split and of the corruptions.
    """
    images, digits = _digits(size)
    return corrupted(images, digits, corruptions, train=train, good=good, anomalous=anomalous, seed=seed)


def corrupted(
    images: np.ndarray,
    digits: np.ndarray,
    corruptions: str | Sequence[str] | None = None,
    *,
    train: int = 1000,
    good: int = 300,
    anomalous: int = 300,
    seed: int = 0,
) -> list[ImageSet]:
    """The same of any digits, such as MNIST's.

    Args:
        images: (N, H, W) in [0, 1], in 256 grey levels.
        digits: (N,) what they show.
    """
    chosen = [corruptions] if isinstance(corruptions, str) else list(corruptions or CORRUPTIONS)
    for name in chosen:
        if name not in CORRUPTIONS:
            raise ConfigError(f"unknown corruption {name!r}", suggest(name, CORRUPTIONS))
    if train + good + anomalous > len(images) or min(train, good, anomalous) < 0:
        raise InputError(
            f"{train} + {good} + {anomalous} digits asked for",
            f"there are {len(images)}: lower train, good or anomalous",
        )
    order = np.random.default_rng(seed).permutation(len(images))
    drawn = np.split(order[: train + good + anomalous], [train, train + good])
    parts = list(zip(("train", "test", "test"), ("good", "good", ""), drawn, strict=True))
    known: dict[tuple[str, int], Item] = {}  # good digits are the same items in all sets
    sets = []
    for name in chosen:
        first = 1_000_003 * seed + 10_007 * list(CORRUPTIONS).index(name)
        items = []
        for split, label, indices in parts:
            for i in map(int, indices):
                about = split, label or name, i, str(digits[i]), first + i
                item = known.get((label, i)) or _item(images[i], *about)
                if label:
                    known[label, i] = item
                items.append(item)
        sets.append(ImageSet(name, items))
    return sets


def _item(image: np.ndarray, split: str, label: str, index: int, digit: str, seed: int) -> Item:
    name, groups = f"{split}/{label}/{index:04d}", {"digit": digit}
    if label == "good":
        return Item(name, lambda: _picture(image), label, None, split, groups)
    mask = lambda: corrupt(image, label, seed) != image
    return Item(name, lambda: _picture(corrupt(image, label, seed)), label, mask, split, groups)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image * 255).round().astype(np.uint8), mode="L")
