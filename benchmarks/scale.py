"""Memory and time of the classifier audit's feature pass, and of neural PCA from its store, as the image set grows.

    python benchmarks/scale.py [--counts 20000 200000] [--classes 100] [--features 512]

Generated 12 px PNG files in Parquet shards of 10,000, read as the audit reads them, through a small network. Each count has a
process of its own. Anonymous memory is counted from the end of the imports; the store and the shards are files.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _common import AnonymousPeak, describe_machine, timed
from PIL import Image
from torch import nn

from pfungst.audit.images import Labelled
from pfungst.conditions import Condition
from pfungst.data import open_images
from pfungst.memory import keep_freed_memory
from pfungst.spurious import FeatureHead, NeuralPCA, extract_features

SIZE, SHARD = 12, 10_000


def make_shards(root: Path, count: int, classes: int) -> None:
    """Parquet files of PNG images and labels, in the convention of Hugging Face."""
    rng = np.random.default_rng(0)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for start in range(0, count, SHARD):
        rows = range(start, min(start + SHARD, count))
        images = []
        for row, pixels in zip(rows, rng.integers(0, 256, (len(rows), SIZE, SIZE, 3), np.uint8), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
            images.append({"bytes": buffer.getvalue(), "path": f"{row:07d}.png"})
        table = pa.table({"image": pa.array(images, kind), "label": [row % classes for row in rows]})
        pq.write_table(table, root / f"train-{start // SHARD:05d}.parquet", row_group_size=1000)


def network(classes: int, features: int) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, features, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(features, classes)).eval()


def measure(root: Path, classes: int, features: int, sender: Any) -> None:
    """What one count takes, sent as (label, seconds, MiB) per step."""
    torch.set_num_threads(1)
    keep_freed_memory()
    found: list[tuple[str, float, float]] = []
    with AnonymousPeak() as memory:

        def step(name: str, work: Any) -> Any:
            out: list[Any] = []
            spent = timed(lambda: out.append(work()))
            found.append((name, spent, memory.peak / 2**20))
            return out[0]

        [images] = step("listing", lambda: open_images(root / "shards"))
        labels = [int(item.label) for item in images]
        data = Labelled(images.items, labels, Condition.parse("pillow-bilinear"), SIZE)
        head = FeatureHead(network(classes, features), example=torch.rand(2, 3, SIZE, SIZE))
        options: dict[str, Any] = {"batch_size": 256, "device": "cpu", "progress": False}
        store = step("feature pass", lambda: extract_features(head, data, root / "store", **options))
        step("neural PCA", lambda: NeuralPCA(16, workers=1).fit(head, store))
    sender.send(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--features", type=int, default=512)
    arguments = parser.parse_args()
    print(describe_machine())
    spawn = multiprocessing.get_context("spawn")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "shards").mkdir()
            make_shards(Path(folder) / "shards", count, arguments.classes)
            receiver, sender = spawn.Pipe(False)
            job = spawn.Process(
                target=measure, args=(Path(folder), arguments.classes, arguments.features, sender)
            )
            job.start()
            sender.close()
            for name, spent, peak in receiver.recv():
                rate = f"{count / spent:8.0f} images/s" if name != "neural PCA" else ""
                print(f"{count:8,} images: {name:13} {spent:7.1f} s, peak {peak:6.0f} MiB {rate}", flush=True)
            job.join()


if __name__ == "__main__":
    main()
