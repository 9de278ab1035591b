"""How fast a pool is scored and searched.

    python benchmarks/pool.py [--part speed|growth|search] [--images 2000] [--counts 5000 20000 80000] [--rows 1000000]

speed: scoring against the bare forward loop of the same model on the same images with the same preparation. The loop
    reads and prepares with as many threads, some batches ahead, and stores nothing. Both sides load the model; they take
    turns, and the best of each is compared, as other work on the machine only adds. CPU time is little changed by other
    work. With two workers, the loop is two processes with half of the images each.
growth: time and peak memory of scoring for growing pools, each in a process of its own: memory must not grow. The model
    is small, so that reading, preparing and writing are what is measured.
search: one component over generated float16 features, from warm files, with the share of the memory bandwidth (a copy
    in the same run, bytes read and written) and of a plain read of the same files.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _common import describe_machine, timed
from PIL import Image

from pfungst.conditions import Condition
from pfungst.data import read_image
from pfungst.pool import Direction, Pool, PoolModel, index, score, search
from pfungst.pool.parts import features_path, part_path
from pfungst.pool.read import read

BATCH = 64
SIZE = 64
SPAWN = multiprocessing.get_context("spawn")


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


RESNET = PoolModel("resnet18", resnet18, "pillow-bilinear", SIZE)


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


def bare_loop(pool: Pool, shards: list[int], threads: int) -> None:
    """Read, prepare and compute, and keep nothing."""
    torch.set_num_threads(threads)
    network = RESNET.load().model
    condition = Condition.parse(RESNET.condition)

    def prepare(content: bytes) -> torch.Tensor:
        return condition(read_image(content), SIZE)

    def batches() -> Iterator[torch.Tensor]:
        pending = []
        for shard in shards:
            for content in read(pool, pool.shard(shard)):
                pending.append(executor.submit(prepare, content))
                if len(pending) == 3 * BATCH:
                    yield torch.stack([p.result() for p in pending[:BATCH]])
                    del pending[:BATCH]
        while pending:
            yield torch.stack([p.result() for p in pending[:BATCH]])
            del pending[:BATCH]

    with ThreadPoolExecutor(threads) as executor, torch.inference_mode():
        for images in batches():
            network(images).softmax(1).max(1)


def bare_processes(pool: Pool, workers: int) -> None:
    """The bare loop in several processes of one thread, each with its share of the shards."""
    jobs = [
        SPAWN.Process(target=bare_loop, args=(pool, list(range(pool.shards))[w::workers], 1))
        for w in range(workers)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


def speed(root: Path, count: int, turns: int) -> None:
    make_images(root / "speed.parquet", count)
    threads = torch.get_num_threads()
    for workers in (0, 2):
        bare, mine = [], []
        each = 1 if workers else threads
        for turn in range(turns):
            pool = index(root / "speed.parquet", root / f"speed-{workers}-{turn}")
            clock = [_clock()]
            if workers:
                bare_processes(pool, workers)
            else:
                bare_loop(pool, list(range(pool.shards)), threads)
            clock.append(_clock())
            score(pool.folder, [RESNET], workers, BATCH, "cpu", each)
            clock.append(_clock())
            bare.append(clock[1] - clock[0])
            mine.append(clock[2] - clock[1])
        (wall, cpu), (my_wall, my_cpu) = np.min(bare, axis=0), np.min(mine, axis=0)
        what = f"{workers} processes of 1 thread" if workers else f"1 process of {threads} threads"
        shares = [b[0] / m[0] for b, m in zip(bare, mine, strict=True)]
        print(
            f"  {what}, best of {turns}: bare loop {count / wall:4.0f} images/s, score {count / my_wall:4.0f} images/s: "
            f"{100 * wall / my_wall:.0f} % (turns: {' '.join(f'{100 * x:.0f}' for x in shares)}); CPU time "
            f"{cpu:.1f} s and {my_cpu:.1f} s: {100 * cpu / my_cpu:.0f} %",
            flush=True,
        )


def _clock() -> np.ndarray:
    """Wall-clock seconds, and CPU seconds of this process and of its finished children."""
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def _measured(folder: Path, sender) -> None:
    model = PoolModel("small", small, "pillow-bilinear", SIZE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(lambda: score(folder, [model], batch_size=BATCH, device="cpu"))
    sender.send((seconds, before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def growth(root: Path, counts: list[int]) -> None:
    for count in counts:
        make_images(root / f"{count}.parquet", count)
        start = time.perf_counter()
        pool = index(root / f"{count}.parquet", root / f"pool-{count}")
        indexed = time.perf_counter() - start
        receiver, sender = SPAWN.Pipe(False)
        process = SPAWN.Process(target=_measured, args=(pool.folder, sender))
        process.start()
        seconds, before, peak = receiver.recv()
        process.join()
        print(
            f"  {count:7,} images: index {indexed:4.1f} s, score {seconds:5.1f} s ({count / seconds:5.0f} images/s), "
            f"peak memory {peak:4.0f} MB (with torch loaded {before:.0f} MB)",
            flush=True,
        )


def make_scores(root: Path, rows: int, dims: int, shard_rows: int) -> tuple[Pool, Direction]:
    """Generated scores in the pool's layout; no images stand behind them."""
    source = root / "source"
    source.mkdir()
    pq.write_table(pa.table({"image": pa.array([b""] * rows, pa.binary())}), source / "a.parquet")
    pool = index(source, root / "million", shard_rows=shard_rows)
    rng = np.random.default_rng(0)
    piece = rng.standard_normal((shard_rows, dims), np.float32).astype(np.float16)
    for shard in range(pool.shards):
        count = min(shard_rows, rows - shard * shard_rows)
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
    (pool.folder / "scores" / "m" / "model.json").write_text(
        f'{{"head": {{"features": {dims}, "head_sha256": ""}}}}'
    )
    return pool, Direction(7, 0, rng.standard_normal(dims).astype(np.float32), 0.0)


def searching(root: Path, rows: int, dims: int, shard_rows: int = 20_000) -> None:
    pool, wanted = make_scores(root, rows, dims, shard_rows)
    buffer = bytearray(1 << 24)

    def read_all() -> None:
        for shard in range(pool.shards):
            with features_path(pool, "m", shard).open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass

    read_all()
    plain = min(timed(read_all) for _ in range(3))
    began = time.process_time()
    read_all()
    plain_cpu = time.process_time() - began
    block = torch.zeros(1 << 28, dtype=torch.uint8)
    other = torch.empty_like(block)
    bandwidth = 2 * len(block) / 1e9 / min(timed(lambda: other.copy_(block)) for _ in range(5))
    size = rows * dims * 2 / 1e9
    print(f"  memory bandwidth {bandwidth:.1f} GB/s; plain read of the warm files {plain:.2f} s")
    for agree, what in ((0, "every image"), (1, "images predicted as the class")):
        times, cpu = [], []
        for _ in range(3):
            start, began = time.perf_counter(), time.process_time()
            hits = search(pool.folder, wanted, "m", agree, top=625)
            times.append(time.perf_counter() - start)
            cpu.append(time.process_time() - began)
        seconds = min(times)
        rate = (
            f", {size / seconds:.1f} GB/s = {100 * size / seconds / bandwidth:.0f} % of the bandwidth, "
            f"{seconds / plain:.1f} × a plain read, by CPU time {min(cpu) / plain_cpu:.1f} ×"
        )
        print(
            f"  {what}: {seconds:5.2f} s (slowest {max(times):.2f}) for {len(hits)} hits of {rows:,} × {dims} "
            f"({size:.1f} GB){rate if not agree else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["speed", "growth", "search"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 20_000, 80_000])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=2048)
    arguments = parser.parse_args()
    print(describe_machine())
    parts = {
        "speed": lambda root: speed(root, arguments.images, arguments.turns),
        "growth": lambda root: growth(root, arguments.counts),
        "search": lambda root: searching(root, arguments.rows, arguments.dims),
    }
    for name, run in parts.items():
        if arguments.part in (None, name):
            print(name, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                run(Path(folder))


if __name__ == "__main__":
    main()
