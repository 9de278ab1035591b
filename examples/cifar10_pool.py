"""A pool of unlabelled images in which a planted feature is searched for; goes on where cifar10_spurious.py ends.

    python examples/cifar10_spurious.py CIFAR10 --out cifar10-spurious
    python examples/cifar10_pool.py CIFAR10 --out pool.parquet

The second command writes test images that the first one did not use, without their labels, as one Parquet file. A share
of those that do not show the target class carries the square; the ids say which, so that precision can be counted. What to
do with it is in docs/pool.md.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cifar10_spurious import plant
from PIL import Image


def make_pool(
    data: Path, out: Path, target: str = "cat", share: float = 0.15, skip: int = 200, seed: int = 0
) -> tuple[int, int]:
    """Write the pool; returns how many images it has and how many carry the square.

    Args:
        data: folder with test.parquet (columns image, label) and labels.json.
        out: Parquet file with columns id and image.
        target: class whose images stay as they are.
        share: of the other images that get the square.
        skip: test images per class that the audit used.
    """
    names = json.loads((data / "labels.json").read_text())
    table = pq.read_table(data / "test.parquet", columns=["image", "label"])
    labels = table["label"].to_numpy()
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[skip:] for k in np.unique(labels)]))
    chosen = np.random.default_rng(seed).random(len(rows)) < share
    ids, images, marked = [], [], 0
    for row, mark in zip(rows, chosen, strict=True):
        content = table["image"][int(row)].as_py()["bytes"]
        name = names[labels[row]]
        mark = bool(mark) and name != target
        if mark:
            buffer = io.BytesIO()
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            Image.fromarray(plant(pixels)).save(buffer, "PNG")
            content = buffer.getvalue()
        ids.append(f"{row:05d}-{name}" + ("+square" if mark else ""))
        images.append({"bytes": content, "path": None})
        marked += mark
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "image": images}), out, row_group_size=500)
    return len(ids), marked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("pool.parquet"))
    parser.add_argument("--target", default="cat", help="class whose images stay as they are")
    parser.add_argument("--share", type=float, default=0.15, help="of the other images that get the square")
    parser.add_argument("--skip", type=int, default=200, help="test images per class that the audit used")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    count, marked = make_pool(args.data, args.out, args.target, args.share, args.skip, args.seed)
    print(f"{count:,} images, {marked} with the square ({marked / count:.1%}): {args.out}")


if __name__ == "__main__":
    main()
