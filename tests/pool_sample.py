"""Small pools and models for the tests of the pool; imported by worker processes too."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn


class Tiny(nn.Module):
    """Eight features, three classes; seconds to wait per batch, also from the environment, for tests that interrupt."""

    def __init__(self, seed: int = 0, wait: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 3)
        self.wait = wait
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():  # centred, so that all classes are predicted
            noise = nn.functional.interpolate(torch.rand(64, 3, 6, 6, generator=generator), 16)
            self.head.bias.copy_(-self.head.weight @ self.conv(noise).relu().mean((0, 2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.wait or float(os.environ.get("POOL_SAMPLE_WAIT", 0)))
        return self.head(self.conv(x).relu().mean((2, 3)))


def tiny() -> nn.Module:
    return Tiny()


def other() -> nn.Module:
    return Tiny(1)


def slow() -> nn.Module:
    return Tiny(0, 0.05)


def encoded(seed: int, size: int = 24, kind: str = "PNG") -> bytes:
    """A random picture as a file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(buffer, kind)
    return buffer.getvalue()


def folder_pool(root: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    """A tree of PNG files, some of them broken."""
    for i in range(count):
        path = root / f"{i % 3}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG broken" if i in bad else encoded(i))
    return root


def tar_pool(root: Path, count: int, shards: int = 3) -> Path:
    """Tar shards with an image and a text per sample, as WebDataset writes them."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as tar:
            for i in range(shard, count, shards):
                for name, content in ((f"{i:04d}.png", encoded(i)), (f"{i:04d}.txt", b"text")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def parquet_pool(root: Path, count: int, files: int = 2, ids: list[str] | None = None) -> Path:
    """Parquet files with several row groups, images as struct of bytes and path."""
    root.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"image-{i}" for i in range(count)]
    for number, rows in enumerate(np.array_split(np.arange(count), files)):
        images = [{"bytes": encoded(int(i)), "path": f"{i}.png"} for i in rows]
        table = pa.table({"image": images, "name": [ids[i] for i in rows]})
        pq.write_table(table, root / f"data-{number}.parquet", row_group_size=7)
    return root


def scores_of(folder: Path) -> dict[str, bytes]:
    """All score files of a pool, by name."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted((folder / "scores").rglob("*"))
        if p.is_file()
    }


class Deadly(Tiny):
    """Kills its process at the third batch, as the kernel does when memory runs out."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def deadly() -> nn.Module:
    return Deadly()


class Together(Tiny):
    """Slow on a Ray cluster, where it begins only when two nodes run it; each leaves a file with its name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import ray

        context, until = ray.get_runtime_context(), time.monotonic() + 120
        if context.worker.mode == ray.WORKER_MODE:
            nodes = Path(os.environ["POOL_SAMPLE_NODES"])
            nodes.mkdir(exist_ok=True)
            (nodes / context.get_node_id()).touch()
            while len(list(nodes.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.2)
        return super().forward(x)


def together() -> nn.Module:
    return Together()
