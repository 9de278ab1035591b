"""LPIPS (Zhang et al. 2018, version 0.1 on AlexNet) from published weights: 003, figures 17 to 20."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pfungst.encoders.checkpoints import load_state, read_checkpoint
from pfungst.errors import CheckpointError, InputError

_RELUS = (1, 4, 7, 9, 11)  # in torchvision's alexnet().features
_LEAST = 31  # pixels a side that its two poolings leave something of
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


class LPIPS:
    """Maps images to vectors whose squared distance is LPIPS.

    Args:
        alexnet: weights of torchvision's AlexNet. linear: LPIPS's, ``lin0.model.1.weight`` to ``lin4…``.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or negative where LPIPS has none below 0.
    """

    def __init__(self, alexnet: Path, linear: Path) -> None:
        from torchvision.models import alexnet as architecture

        network = architecture(weights=None)
        load_state(network, read_checkpoint(alexnet), alexnet)
        self.features = network.features[: _RELUS[-1] + 1].eval().requires_grad_(False)
        widths = [self.features[i - 1].out_channels for i in _RELUS]
        wanted = nn.ModuleDict()
        for k, width in enumerate(widths):
            inside = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            wanted[f"lin{k}"] = nn.ModuleDict({"model": inside})
        load_state(wanted, read_checkpoint(linear), linear)
        self.weights = [w.detach().flatten() for w in wanted.state_dict().values()]
        if any(bool((w < 0).any()) for w in self.weights):
            raise CheckpointError(f"{linear} holds negative weights", "give LPIPS's own, which are not")

    def __call__(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] → (N, D).

        Raises:
            InputError: images are too small for AlexNet.
        """
        if min(x.shape[-2:]) < _LEAST:
            raise InputError(
                f"images of {min(x.shape[-2:])} px are too small for LPIPS", f"use {_LEAST} px or more"
            )
        x = (2 * x - 1 - x.new_tensor(_SHIFT).view(3, 1, 1)) / x.new_tensor(_SCALE).view(3, 1, 1)
        found, weights = [], iter(self.weights)
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _RELUS:
                unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
                root = (next(weights) / (x.shape[2] * x.shape[3])).sqrt()
                found.append((unit * root.view(-1, 1, 1)).flatten(1))
        return torch.cat(found, 1)
