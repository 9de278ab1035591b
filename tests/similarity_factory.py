"""A miniature data set for similarity audits: three classes of coloured shapes from two scanners."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.audit.similarity.config import SimilarityConfig


def mini_images(folder: Path, per_class: int = 12, size: int = 24, seed: int = 0) -> Path:
    """A CSV with path, label, scanner, constant and patient (two images each); class "c" comes from scanner two."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for c, label in enumerate("abc"):
        for i in range(per_class):
            image = rng.integers(0, 90, (size, size + 4 * (i % 2), 3), dtype=np.uint8)
            place = 3 + 5 * c + rng.integers(0, 2)
            image[place : place + 5, 4:14] = (40 + 80 * (c == 0), 40 + 80 * (c == 1), 40 + 80 * (c == 2))
            scanner = "two" if (label == "c") != (i == 0) else "one"
            if scanner == "two":
                image[-5:, :] = 255
            name = f"{label}{i:02d}.png"
            Image.fromarray(image).save(folder / name)
            rows.append((name, label, scanner, "same", f"p{c}{i // 2}"))
    with (folder / "list.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("path", "label", "scanner", "constant", "patient"))
        writer.writerows(rows)
    return folder / "list.csv"


def logo(path: Path) -> Path:
    picture = np.zeros((6, 12, 4), np.uint8)
    picture[..., 0] = picture[..., 3] = 255
    picture[2:4, 2:10, 1] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def config(data: Path, out: Path, **options) -> SimilarityConfig:
    settings = {
        "encoder": "small:4",
        "size": 16,
        "images": data,
        "groups": "scanner",
        "out": out,
        "seeds": 3,
        "folds": 3,
        "patches": 4,
        "explain": 8,
        "pairs": 1,
        "sweep": "1,2",
        "device": "cpu",
    }
    return SimilarityConfig.build(**(settings | options))
