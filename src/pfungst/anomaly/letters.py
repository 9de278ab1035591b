"""The digit recipe's features: a CNN with ℓ2 pooling, trained to tell letters apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.anomaly.training import train
from pfungst.errors import InputError


class L2Pool2d(nn.Module):
    """Root of the mean square over 2 × 2 blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return (F.avg_pool2d(x * x, 2) + 1e-12).sqrt()


class LettersCNN(nn.Module):
    """Three convolutions interleaved with ℓ2 pooling: images (N, C, 28, 28) → 640 features
    (Kauffmann et al. 2020, section 3)."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 40, 5)
        self.conv2 = nn.Conv2d(40, 80, 5)
        self.conv3 = nn.Conv2d(80, 160, 3, padding=1)
        self.pool = L2Pool2d()

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.pool(F.relu(conv(x)))
        return x.flatten(1)


class _Classifier(nn.Module):
    def __init__(self, features: nn.Module, classes: int) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(640, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_letters(
    images: Tensor,
    labels: Tensor,
    epochs: int = 10,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> LettersCNN:
    """A :class:`LettersCNN` trained as a classifier.

    Args:
        images: (N, C, 28, 28) in [0, 1], of what the detector will not see as normal: letters, for digits.
        labels: (N,) class indices.

    Returns:
        The network without its head, for ``DeepOneClass(network, mean=0, std=1)``.
    """
    if images.shape[-2:] != (28, 28) or len(images) != len(labels) or len(images) < 2:
        raise InputError(
            f"images of shape {tuple(images.shape)} and {len(labels)} labels",
            "pass images (N, C, 28, 28), one label each",
        )
    classes = int(labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _Classifier(LettersCNN(images.shape[1]), classes).to(device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(len(images), dtype=torch.float64)[:, None][order].to(device)
    count = max(1, len(images) // 10)
    x, y = images.to(device, torch.float32), labels.to(device).long()

    def loss(network: nn.Module, index: Tensor) -> Tensor:
        at = index[:, 0].long()
        return F.cross_entropy(network(x[at]), y[at], reduction="none")

    train(
        model, loss, rows[count:], rows[:count],
        epochs=epochs, patience=3, learning_rate=1e-3, batch_size=128, seed=seed,
        progress=progress, name="letters",
    )  # fmt: skip
    features = model.features
    assert isinstance(features, LettersCNN)
    return features.eval()


def letters_backbone(checkpoint: str | Path | None = None, trained: bool = True) -> LettersCNN:
    """The CNN of the digit recipe: its weights from a file, else trained on rendered letters, once a
    process."""
    from pfungst.encoders.checkpoints import load_state, read_checkpoint

    network = LettersCNN()
    if checkpoint is None and trained:
        network.load_state_dict(_trained().state_dict())
    elif checkpoint is not None:
        load_state(network, read_checkpoint(checkpoint), checkpoint)
    return network.eval()


@cache
def _trained() -> LettersCNN:
    return train_letters(*rendered_letters())


def rendered_letters(count: int = 5200, size: int = 28, seed: int = 0) -> tuple[Tensor, Tensor]:
    """White letters A to Z and a to z on black, drawn with OpenCV's vector fonts, slanted, scaled and shifted
    at
    random: a stand-in for EMNIST letters where these are not at hand.

    Returns:
        Images (count, 3, size, size) in [0, 1] and labels (count,) from 0 to 25, case ignored.
    """
    import cv2
    import numpy as np

    random = np.random.default_rng(seed)
    fonts = (0, 1, 2, 3, 4, 5, 6, 7)
    images = np.empty((count, size, size), dtype=np.float32)
    labels = np.arange(count) % 26
    big = 4 * size
    for i, label in enumerate(labels):
        letter = chr(ord("Aa"[int(random.integers(2))]) + int(label))
        canvas = np.zeros((big, big), dtype=np.uint8)
        font, thick = int(random.choice(fonts)), int(random.integers(5, 12))
        scale = float(random.uniform(2.2, 3.0)) * size / 28
        (w, h), _ = cv2.getTextSize(letter, font, scale, thick)
        cv2.putText(canvas, letter, ((big - w) // 2, (big + h) // 2), font, scale, 255, thick, cv2.LINE_AA)
        a, b, c, d = np.eye(2).ravel() + random.normal(0, 0.12, 4)
        centre = np.array([big / 2, big / 2])
        matrix = np.array([[a, b], [c, d]])
        shift = centre - matrix @ centre + random.normal(0, big / 30, 2)
        moved = cv2.warpAffine(canvas, np.c_[matrix, shift], (big, big))
        images[i] = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA) / 255.0
    return torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels)
