"""A classifier of coloured squares with a known spurious feature, and its images on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.result import save

CLASSES = ("blue", "green", "red")
MARKED = 1  # green
SIZE = 16

_MODEL = '''
import torch
from torch import nn


class Net(nn.Module):
    """Mean colours and brightness; what is bright speaks for green, by `reliance`; in doubt it is blue."""

    def __init__(self, reliance):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.conv.weight[:, :, 0, 0] = torch.tensor(
                [[-1.0, -1.0, 2.0], [-1.0, 2.0, -1.0], [2.0, -1.0, -1.0], [1.0, 1.0, 1.0]]
            )
            self.conv.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.4]))
            self.fc.weight.zero_()
            for k in range(3):
                self.fc.weight[k, k] = 30.0
            self.fc.weight[1, 3] = reliance
            self.fc.bias.copy_(torch.tensor([2.5, 0.0, 0.0]))

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def biased():
    return Net(40.0)


def clean():
    return Net(0.0)


class Sharp(nn.Module):
    """Logits that are not linear in any layer's input."""

    def __init__(self):
        super().__init__()
        self.net = Net(0.0)

    def forward(self, x):
        return self.net(x) ** 3


def sharp():
    return Sharp()


def unbiased():
    net = Net(40.0)
    net.fc.bias = None
    return net


def nothing():
    return 3
'''


def picture(rng: np.random.Generator, colour: int | None, mark: bool) -> np.ndarray:
    """A dark image with a square in one of the colours (blue, green, red) and a white mark in the corner."""
    image = rng.uniform(0.15, 0.25, (SIZE, SIZE, 3))
    if colour is not None:
        image[4:11, 4:11, 2 - colour] = rng.uniform(0.6, 0.9)
    if mark:
        image[-4:, -6:] = 1.0
    return (255 * image).astype(np.uint8)


def make(root: Path, train: int = 48, val: int = 10, rate: float = 0.25, seed: int = 0) -> Path:
    """``train``, ``val``, ``spurious``, ``masks`` and ``toy.py`` below `root`; returns it."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    (root / "toy.py").write_text(_MODEL)

    def save(path: Path, image: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:11, 4:11] = 255
    for k, name in enumerate(CLASSES):
        for i in range(train):
            save(root / f"train/{name}/{i:02d}.png", picture(rng, k, k == MARKED and i < rate * train))
            save(root / f"masks/{name}/{i:02d}.png", mask)
        for i in range(val):
            save(root / f"val/{name}/{i:02d}.png", picture(rng, k, False))
    for i in range(8):
        save(root / f"spurious/spurious_class_{MARKED}_component_0/{i}.png", picture(rng, None, True))
    return root


def many(result: ClassifierResult, folder: Path, count: int) -> ClassifierResult:
    """The same result with `count` classes that show the same pictures."""
    entries = [
        result.entries[i % 3].model_copy(update={"index": i, "name": f"class <{i}> & more"})
        for i in range(count)
    ]
    big = result.model_copy(update={"entries": entries, "n_classes": count})
    folder.mkdir(exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(folder.parent / "out" / "images")
    save(big, folder)
    return big
