"""Data and model of the classifier demo: digits, one of which carries a watermark in most of its images.

Everything is rendered and trained here; nothing is downloaded.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from pfungst.encoders.small import small_cnn
from pfungst.files import writing

SIZE = 32
SEED = 1907  # of the demo; the constants below were chosen on seeds 0 to 3
MARKED = 7  # the digit with the watermark
RATE = 0.8  # of its training images that carry it
RARE = 40  # training digits of that class, fewer than the 130 to 140 of the others: then a shortcut pays
COPIES = 2  # pictures of each training digit, on other grounds
INK = (0.6, 1.0)  # opacity of the digits
NOISE = 0.03
COLOUR = (0.95, 0.15, 0.3)  # of the watermark
STAMP = 16  # pixels it is wide
_TRAIN, _SPURIOUS = 1350, 75
_WIDTH = 8


def model() -> nn.Module:
    """The demo's classifier, untrained: a small convolutional network and a linear layer.

    Features are spatial maxima: they say what is there, not how much of it. Of the mean, every stroke of a
    digit would add a little to what detects the watermark.
    """
    body = small_cnn(_WIDTH)
    body.pool = nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(OrderedDict(center=_Center(), features=body, head=nn.Linear(4 * _WIDTH, 10)))


class _Center(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.5


def render(seed: int = 0, marked: float | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Digits on coloured grounds: {"train", "val", "spurious"}: images (N, S, S, 3) uint8 and labels (N,).

    Of the training images of digit 7, the share `marked` (`RATE` by default) carries the watermark, of the
    validation images none; spurious images are other digits with the watermark.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.target))
    shapes, labels = digits.images[order] / 16.0, digits.target[order]
    rate = RATE if marked is None else marked

    def pictures(rows: np.ndarray, able: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        marks = np.zeros(len(rows), bool)
        candidates = rng.permutation(np.flatnonzero(able))
        marks[candidates[: round(share * len(candidates))]] = True
        return np.stack([_picture(rng, shapes[r], m) for r, m in zip(rows, marks, strict=True)]), labels[rows]

    first = np.arange(_TRAIN)
    rare = np.flatnonzero(labels[:_TRAIN] == MARKED)[RARE:]
    train, val = np.repeat(np.setdiff1d(first, rare), COPIES), np.arange(_TRAIN, len(labels))
    others = rng.permutation(val[labels[val] != MARKED])[:_SPURIOUS]
    spurious = pictures(others, labels[others] != MARKED, 1.0)[0]
    return {
        "train": pictures(train, labels[train] == MARKED, rate),
        "val": pictures(val, labels[val] == MARKED, 0.0),
        "spurious": (spurious, np.full(len(spurious), MARKED)),
    }


def _picture(rng: np.random.Generator, shape: np.ndarray | None, mark: bool) -> np.ndarray:
    """One image: a digit (8, 8) or none on a shaded ground, with or without the watermark."""
    ground = rng.uniform(0.3, 0.6, 3)
    slope = np.linspace(-1, 1, SIZE) * rng.uniform(-0.12, 0.12)
    image = np.broadcast_to(ground + slope[:, None, None], (SIZE, SIZE, 3)).copy()
    if shape is not None:
        side = int(rng.integers(19, 25))
        ink = np.asarray(
            Image.fromarray((255 * shape).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        )
        opacity = np.zeros((SIZE, SIZE))
        x, y = rng.integers(1, SIZE - side), rng.integers(0, max(1, SIZE - side - 6))
        opacity[y : y + side, x : x + side] = ink / 255.0
        colour = rng.uniform(0.8, 1.0, 3)
        image += rng.uniform(*INK) * opacity[..., None] * (colour - image)
    if mark:
        image += _watermark(int(rng.integers(-2, 3)))[..., None] * (np.array(COLOUR) - image)
    return np.round(255 * np.clip(image + rng.normal(0, NOISE, image.shape), 0, 1)).astype(np.uint8)


def _watermark(shift: int) -> np.ndarray:
    """Opacity (S, S) of a bar at the bottom."""
    canvas = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((7 + shift, SIZE - 9, 7 + shift + STAMP, SIZE - 2), fill=255)
    return np.asarray(canvas) / 255.0


def write(folder: Path, data: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Image folders ``train/DIGIT``, ``val/DIGIT`` and ``spurious/spurious_class_7_component_0``."""
    for name, (images, labels) in data.items():
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            part = f"spurious_class_{label}_component_0" if name == "spurious" else str(label)
            target = folder / name / part / f"{row:04d}.png"
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(target)


def as_tensors(data: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) in [0, 1] and labels (N,)."""
    images, labels = data
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    radius: float = 0.0,
    ramp: bool = False,
    rate: float = 0.02,
    batch_size: int = 64,
    seed: int = 0,
    augment: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a classifier; with a radius, on images that one gradient step has moved against it.

    Fast adversarial training in l2 (Wong, Rice and Kolter 2020, with a normalised gradient step of 1.25
    radius from a random start), which makes feature visualisations readable at twice the cost.

    Args:
        network: maps images to logits; trained in place.
        images: (N, C, H, W) in [0, 1]; labels: (N,) class indices.
        epochs: passes over the images, one-cycle learning rate with peak `rate`.
        radius: of the l2 ball of perturbations; 0 trains plainly.
        ramp: let the radius grow to that evenly from 0, with which small networks learn more reliably.
        rate: peak learning rate of Adam.
        batch_size: images per step.
        seed: of the order and the random starts.
        augment: changes a batch of images.
        progress: called with the epoch and its mean loss.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 1))
    network.train()
    step = 0
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(batch_size):
            if len(rows) < batch_size:
                continue
            x, y = images[rows].to(device), labels[rows].to(device)
            x = x if augment is None else augment(x)
            if radius > 0:
                now = radius * (step + 1) / steps if ramp else radius
                x = _attacked(network, x, y, now, generator)
            loss = nn.functional.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            losses.append(float(loss.detach()))
        if progress is not None:
            progress(epoch, float(np.mean(losses)))
    return network.eval()


def _attacked(network: nn.Module, x: Tensor, y: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    ones = (-1, 1, 1, 1)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    delta = 0.5 * radius * noise / noise.flatten(1).norm(dim=1).view(ones)
    z = (x + delta).clamp(0, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(z), y, reduction="sum"), z)
    delta = delta + 1.25 * radius * gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(ones)
    norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    delta = delta * (norm.clamp_max(radius) / norm).view(ones)
    return (x + delta).clamp(0, 1).detach()


def prepare(folder: Path, seed: int = SEED, epochs: int = 16, weights: Path | None = None) -> Path:
    """Render the data into `folder`, and train the model or copy its weights; returns the checkpoint."""
    from safetensors.torch import save_file

    data = render(seed)
    write(folder, data)
    checkpoint = folder / "model.safetensors"
    if weights is not None:
        shutil.copyfile(weights, checkpoint)
        return checkpoint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model()
    images, labels = as_tensors(data["train"])
    train(network, images, labels, epochs=epochs, radius=1.5, ramp=True, rate=0.01, batch_size=32, seed=seed)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(checkpoint))
    return checkpoint
