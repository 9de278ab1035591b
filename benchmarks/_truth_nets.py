"""Pictures and small networks for the benchmark of truth: 32 px, trained in seconds on one core."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from pfungst.audit.classifier.demo import as_tensors, train
from pfungst.datasets.mnist import read_idx
from pfungst.encoders.small import small_cnn

SIDE = 32
Pictures = tuple[np.ndarray, np.ndarray]  # (N, 32, 32, 3) uint8, (N,) labels from 0

# --- pictures ----------------------------------------------------------------------------------------------


@cache
def _digits(data: Path) -> Pictures:
    from sklearn.datasets import load_digits

    raw = load_digits()
    return np.round(raw.images * (255 / 16)).astype(np.uint8), raw.target


@cache
def _mnist(data: Path) -> Pictures:
    folder = data / "mnist"
    return read_idx(folder / "train-images-idx3-ubyte.gz"), read_idx(folder / "train-labels-idx1-ubyte.gz")


@cache
def _cifar(data: Path) -> tuple[list[bytes], np.ndarray]:
    table = pq.read_table(data / "cifar10" / "train.parquet")
    return [cell["bytes"] for cell in table["image"].to_pylist()], table["label"].to_numpy()


def _on_ground(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bright digit somewhere on a shaded coloured ground, whatever the digit is."""
    side = int(rng.integers(22, 28))
    ink = np.asarray(Image.fromarray(shape).resize((side, side), Image.Resampling.BICUBIC)) / 255.0
    ground = rng.uniform(0.2, 0.6, 3) + (np.linspace(-1, 1, SIDE) * rng.uniform(-0.12, 0.12))[:, None, None]
    picture = np.broadcast_to(ground, (SIDE, SIDE, 3)).copy()
    y, x = rng.integers(0, SIDE - side, 2)
    place = picture[y : y + side, x : x + side]
    place += (rng.uniform(0.7, 1.0) * ink)[..., None] * (rng.uniform(0.85, 1.0, 3) - place)
    picture += rng.normal(0, 0.03, picture.shape)
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


_SETS: dict[str, Callable[[Path], tuple[Sequence, np.ndarray]]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar": _cifar,
}


def pictures(data: Path, name: str, seed: int, classes: int = 4, per_class: int = 400) -> dict[str, Pictures]:
    """{"train", "val", "held": pictures} of a random choice of classes; no picture is in two of them.

    Of each class 3/4 train, 1/8 validate and 1/8 are held out, to measure what a network relies on.
    """
    raw, labels = _SETS[name](data)
    rng = np.random.default_rng([seed, sum(name.encode())])
    chosen = rng.permutation(np.unique(labels))[:classes]
    parts: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "val": [], "held": []}
    for k, original in enumerate(chosen):
        rows = rng.permutation(np.flatnonzero(labels == original))[:per_class]
        cuts = [0, len(rows) * 6 // 8, len(rows) * 7 // 8, len(rows)]
        for part, start, stop in zip(parts, cuts, cuts[1:], strict=False):
            for r in rows[start:stop]:
                if name == "cifar":
                    image = np.asarray(Image.open(io.BytesIO(raw[r])).convert("RGB"))
                else:
                    image = _on_ground(raw[r], rng)
                parts[part].append((image, k))
    return {
        part: (np.stack([i for i, _ in rows]), np.array([k for _, k in rows])) for part, rows in parts.items()
    }


def write_table(file: Path, images: np.ndarray, **columns: Sequence) -> Path:
    """A Parquet table of PNG pictures, with columns such as label, split, source."""
    cells = []
    for row, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        cells.append({"bytes": buffer.getvalue(), "path": f"{file.stem}/{row:05d}.png"})
    pq.write_table(pa.table({"image": cells, **{k: list(map(str, v)) for k, v in columns.items()}}), file)
    return file


# --- networks ----------------------------------------------------------------------------------------------


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class _Mixing(nn.Module):
    """A step of a ConvMixer: depthwise 5 × 5 beside a shortcut, then 1 × 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.space = nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(width))
        self.channels = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.channels(self.space(x) + x)


def _cnn(classes: int) -> nn.Module:
    return nn.Sequential(*small_cnn(6), nn.Linear(24, classes))


def _residual(classes: int) -> nn.Module:
    w = 12
    return nn.Sequential(
        nn.Conv2d(3, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(),
        _Residual(w, w, 1), _Residual(w, 2 * w, 2), _Residual(2 * w, 4 * w, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, classes),
    )  # fmt: skip


def _mixer(classes: int) -> nn.Module:
    w = 48
    return nn.Sequential(
        nn.Conv2d(3, w, 4, 4), nn.GELU(), nn.BatchNorm2d(w), *(_Mixing(w) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, classes),
    )  # fmt: skip


NETS: dict[str, Callable[[int], nn.Module]] = {"cnn": _cnn, "residual": _residual, "mixer": _mixer}


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.25


def build(net: str, classes: int, seed: int = 0) -> nn.Module:
    """A network, untrained, for images in [0, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(_Centred(), *NETS[net](classes)).eval()


def trained(net: str, data: Pictures, seed: int, epochs: int = 6) -> nn.Module:
    """A network trained on pictures, plainly."""
    images, labels = as_tensors(data)
    model = build(net, int(labels.max()) + 1, seed)
    rate = 0.01 if net == "mixer" else 0.02
    return train(model, images, labels, epochs=epochs, rate=rate, batch_size=64, seed=seed)


def answers(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """(N,) predicted classes."""
    with torch.inference_mode():
        x = as_tensors((images, np.zeros(len(images))))[0]
        return torch.cat([model(part).argmax(1) for part in x.split(256)]).numpy()
