"""ResNet-18 of torchvision for the ten classes of Imagenette, as `pfungst audit classifier --model` takes it.

    pfungst audit classifier --model examples/resnet18_imagenette.py:network --checkpoint WEIGHTS.safetensors \
        --train train.parquet --val val.parquet --size 128 --steps 60 --out robust

The weights are torchvision's names, of a network whose images are normalised as ImageNet's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.resnet import BasicBlock, ResNet


class Network(ResNet):
    """Images (N, 3, H, W) in [0, 1] → logits (N, 10), classes by sorted WordNet id."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)


def network() -> Network:
    """The network, untrained: its weights are the --checkpoint."""
    return Network()
