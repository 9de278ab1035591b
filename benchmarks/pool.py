"""How fast a pool is scored and searched.

    python benchmarks/pool.py [--rows 1000000] [--counts 5000 20000 80000]

1. Scoring against the bare forward loop of the same model on the same images with the same preparation (the images of
   the loop are read and prepared by the same number of threads; it stores nothing).
2. Time and peak memory of scoring for growing pools, each in a process of its own: memory must not grow.
3. Search for one component over generated float16 features, with the share of the memory bandwidth that a plain read
   of the same files reaches.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pfungst.conditions import Condition
from pfungst.data import read_image
from pfungst.pool import Direction, PoolModel, index, score, search
from pfungst.pool.parts import features_path, part_path
from pfungst.pool.read import read

BATCH = 64
SIZE = 64


def resnet18() -> torch.nn.Module:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=100)


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 8, 8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )


def make_images(path: Path, count: int, size: int = 96) -> None:
    """A Parquet file of JPEG images; 500 different ones, repeated."""
    rng = np.random.default_rng(0)
    different = []
    for _ in range(min(count, 500)):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        different.append(buffer.getvalue())
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 1000):
            rows = [different[i % 500] for i in range(start, min(start + 1000, count))]
            writer.write_table(pa.table({"image": pa.array(rows, pa.binary())}, schema))


def bare_loop(pool, model: PoolModel, threads: int) -> float:
    """Seconds of a loop that reads, prepares and computes, and keeps nothing."""
    network = model.load().eval()
    condition = Condition.parse(model.condition)

    def prepare(content: bytes) -> torch.Tensor:
        return condition(read_image(content), model.size)

    def batches():
        pending = []
        for shard in range(pool.shards):
            for content in read(pool, pool.shard(shard)):
                pending.append(executor.submit(prepare, content))
                if len(pending) == 3 * BATCH:
                    yield torch.stack([p.result() for p in pending[:BATCH]])
                    del pending[:BATCH]
        while pending:
            yield torch.stack([p.result() for p in pending[:BATCH]])
            del pending[:BATCH]

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as executor, torch.inference_mode():
        for images in batches():
            network(images).softmax(1).max(1)
    return time.perf_counter() - start


def throughput(root: Path, count: int, threads: int) -> None:
    make_images(root / "speed.parquet", count)
    model = PoolModel("resnet18", resnet18, "pillow-bilinear", SIZE)
    ratios = []
    for turn in range(3):
        pool = index(root / "speed.parquet", root / f"speed-{turn}")
        bare = bare_loop(pool, model, threads)
        start = time.perf_counter()
        score(pool.folder, [model], batch_size=BATCH, device="cpu", threads=threads)
        mine = time.perf_counter() - start
        ratios.append(bare / mine)
        print(
            f"  bare loop {count / bare:7.0f} images/s, score {count / mine:7.0f} images/s: {100 * bare / mine:.0f} %"
        )
    print(
        f"  median {100 * float(np.median(ratios)):.0f} % of the bare loop (resnet18, {SIZE} px, {count} images)"
    )


def _measured(folder: Path, sender) -> None:
    torch.set_num_threads(1)
    model = PoolModel("small", small, "pillow-bilinear", SIZE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    score(folder, [model], batch_size=BATCH, device="cpu")
    seconds = time.perf_counter() - start
    sender.send((seconds, before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def growth(root: Path, counts: list[int]) -> None:
    context = multiprocessing.get_context("spawn")
    for count in counts:
        make_images(root / f"{count}.parquet", count)
        start = time.perf_counter()
        pool = index(root / f"{count}.parquet", root / f"pool-{count}")
        indexed = time.perf_counter() - start
        receiver, sender = context.Pipe(False)
        process = context.Process(target=_measured, args=(pool.folder, sender))
        process.start()
        seconds, before, peak = receiver.recv()
        process.join()
        print(
            f"  {count:7d} images: index {indexed:5.1f} s, score {seconds:6.1f} s ({count / seconds:6.0f}/s), "
            f"peak memory {peak:5.0f} MB (before {before:.0f} MB)"
        )


def searching(root: Path, rows: int, dims: int, shard_rows: int = 20_000) -> None:
    """Generated scores in the pool's layout; no images stand behind them."""
    folder = root / "million"
    source = root / "million-source"
    source.mkdir()
    pq.write_table(pa.table({"image": pa.array([b""] * rows, pa.binary())}), source / "a.parquet")
    pool = index(source, folder, shard_rows=shard_rows)
    rng = np.random.default_rng(0)
    piece = rng.standard_normal((shard_rows, dims), np.float32).astype(np.float16)
    for shard in range(pool.shards):
        count = len(pool.shard(shard))
        features_path(pool, "m", shard).parent.mkdir(parents=True, exist_ok=True)
        np.save(features_path(pool, "m", shard), np.roll(piece, shard, axis=0)[:count])
        table = {
            "id": [f"{shard}:{i}" for i in range(count)],
            "shard": pa.array([shard] * count, pa.int32()),
            "row": pa.array(range(count), pa.int32()),
            "predicted": pa.array(rng.integers(0, 1000, count), pa.int32()),
            "confidence": pa.array(rng.random(count), pa.float32()),
            "error": pa.array([None] * count, pa.string()),
        }
        pq.write_table(pa.table(table), part_path(pool, "m", shard))
    (folder / "scores" / "m" / "model.json").write_text(
        f'{{"head": {{"features": {dims}, "head_sha256": ""}}}}'
    )
    wanted = Direction(7, 0, rng.standard_normal(dims).astype(np.float32), 0.0)
    buffer = bytearray(1 << 24)

    def read_all() -> float:
        start = time.perf_counter()
        for shard in range(pool.shards):
            with features_path(pool, "m", shard).open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
        return time.perf_counter() - start

    read_all()
    plain = min(read_all() for _ in range(3))
    size = rows * dims * 2 / 1e9
    for agree in (0, 1):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            hits = search(folder, wanted, "m", agree=agree, top=625)
            times.append(time.perf_counter() - start)
        seconds = min(times)
        what = "every image" if agree == 0 else "images predicted as the class"
        share = (
            f", {size / seconds:.1f} GB/s = {100 * plain / seconds:.0f} % of a plain read"
            if agree == 0
            else ""
        )
        print(f"  {what}: {seconds:5.2f} s for {len(hits)} hits of {rows} × {dims} ({size:.1f} GB){share}")
    print(f"  plain read of the warm files: {plain:.2f} s, {size / plain:.1f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 20_000, 80_000])
    parser.add_argument("--speed", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        print("throughput")
        throughput(Path(folder), arguments.speed, arguments.threads)
        print("growth")
        growth(Path(folder), arguments.counts)
        print("search")
        searching(Path(folder), arguments.rows, arguments.dims)


if __name__ == "__main__":
    main()
