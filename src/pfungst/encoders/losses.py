"""The three objectives by which the paper's representation models learn, each in its published form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's normalised, temperature-scaled cross entropy (Chen et al. 2020, eq. 1).

    Args:
        a: projections of one view of N images, (N, D).
        b: projections of their other view; row i belongs to row i.
        temperature: of the softmax over the 2N − 1 other views.
    """
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    n = len(a)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, partner)


def barlow_twins(a: Tensor, b: Tensor, redundancy: float = 5e-3) -> Tensor:
    """Cross-correlation of two views brought to the identity (Zbontar et al. 2021, eq. 1).

    Args:
        a: projections of one view, (N, D).
        b: projections of the other.
        redundancy: weight λ of the off-diagonal part.
    """
    a, b = ((z - z.mean(0)) / (z.std(0, unbiased=False) + 1e-5) for z in (a, b))
    c = a.T @ b / len(a)
    diagonal = (c.diagonal() - 1).square().sum()
    return diagonal + redundancy * (c.square().sum() - c.diagonal().square().sum())


def clip(image: Tensor, text: Tensor, scale: Tensor, same: Tensor | None = None) -> Tensor:
    """CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3).

    Args:
        image: image embeddings, (N, D).
        text: caption embeddings, (N, D).
        scale: the inverse temperature.
        same: (N, N), True where captions are equal; equal captions share the target, since in small data many
            are.
    """
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    same = torch.eye(len(image), device=image.device) if same is None else same.to(logits)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
