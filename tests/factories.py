"""Small data sets on disk for any test: a miniature MVTec root, tables of it, and broken files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(
    seed: int = 0, size: int | tuple[int, int] = 32, defect: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy gradient (H, W, 3), with a dark square if defective, and the mask of the square (H, W)."""
    width, height = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    base = np.linspace(90, 170, width)[None, :, None] + rng.normal(0, 4, (height, width, 3))
    mask = np.zeros((height, width), bool)
    if defect:
        side = max(2, min(width, height) // 4)
        x, y = int(rng.integers(width - side)), int(rng.integers(height - side))
        mask[y : y + side, x : x + side] = True
        base[mask] -= 80
    return base.clip(0, 255).astype(np.uint8), mask


def save(path: Path, image: np.ndarray, **options: object) -> Path:
    """Write an array as an image, making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)  # type: ignore[arg-type]
    return path


def mini_mvtec(
    root: Path,
    categories: tuple[str, ...] = ("bolt", "nut"),
    train: int = 6,
    good: int = 4,
    defective: int = 3,
    kinds: tuple[str, ...] = ("hole", "scratch"),
    size: int | tuple[int, int] = 32,
) -> Path:
    """Write a miniature MVTec root and return it; ``defective`` images of each kind."""
    for c, category in enumerate(categories):
        folder = root / category
        for i in range(train):
            save(folder / f"train/good/{i:03d}.png", picture(1000 * c + i, size)[0])
        for i in range(good):
            save(folder / f"test/good/{i:03d}.png", picture(1000 * c + 100 + i, size)[0])
        for k, kind in enumerate(kinds):
            for i in range(defective):
                image, mask = picture(1000 * c + 200 + 50 * k + i, size, defect=True)
                save(folder / f"test/{kind}/{i:03d}.png", image)
                save(folder / f"ground_truth/{kind}/{i:03d}_mask.png", mask.astype(np.uint8) * 255)
    return root


def truncated_jpeg() -> bytes:
    """The first half of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture(7, 64)[0]).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def png_bomb(side: int = 30_000) -> bytes:
    """A valid PNG header that promises side × side pixels (and data that nobody should get to decode)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * side + 1) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def broken_files(folder: Path) -> list[Path]:
    """Write one file of every kind that cannot be decoded and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "truncated.jpg": truncated_jpeg(),
        "bomb.png": png_bomb(),
        "empty.png": b"",
        "text.png": b"this is not an image",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in contents]
