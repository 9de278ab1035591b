"""The first layer of a detector: features in front of the distances, and the way back through them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_BATCH = 32


def embed(features: nn.Module | None, z: Tensor) -> Tensor:
    """Features of each input, flattened. z (N, *sample) → (N, D)."""
    if features is None:
        return z.flatten(1)
    with torch.no_grad():
        if getattr(features, "per_channel", False) and z.ndim == 4:  # vectorised over channels: more of them
            parts = [features(part.flatten(0, 1)[None]).view(len(part), -1) for part in z.split(_BATCH)]
        else:
            parts = [features(part).flatten(1) for part in z.split(_BATCH)]
        return torch.cat(parts)


def is_affine(features: nn.Module, sample: tuple[int, ...], like: Tensor) -> bool:
    """Whether φ(a + b) − φ(a) − φ(b) + φ(0) vanishes for random inputs, as it does for affine maps only."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, *sample, generator=generator).to(like)
    phi = [embed(features, z) for z in (a + b, a, b, torch.zeros_like(a))]
    scale = torch.stack(phi).abs().max()
    gap = (phi[0] - phi[1] - phi[2] + phi[3]).abs().max()
    return bool(gap <= 64 * torch.finfo(like.dtype).eps * scale)


def pull_back(features: nn.Module, at: Tensor, g: Tensor) -> Tensor:
    """φ'(at)ᵀ g: the modified gradient `g` of the features, carried to the input.

    Args:
        at: inputs (N, *sample); for affine features the result does not depend on their values.
        g: (N, D) over the flattened features.

    Returns:
        (N, *sample).
    """
    parts = []
    for z, part in zip(at.split(_BATCH), g.split(_BATCH), strict=True):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            out = features(z).flatten(1)
            parts.append(torch.autograd.grad(out, z, part)[0])
    return torch.cat(parts) if parts else torch.zeros_like(at)


Propagate = Callable[[nn.Module, Tensor, Tensor], Tensor]


def gradient(features: nn.Module, z: Tensor, relevance: Tensor) -> Tensor:
    """Modified gradient at the input that gradient × input would use: LRP-0 for networks of ReLUs.

    Args:
        z: inputs (N, *sample).
        relevance: (N, D) of the flattened features.

    Returns:
        (N, *sample). Contracting z with it gives the relevance, less what the biases absorbed.
    """
    phi = embed(features, z)
    tiny = 1e-6 * phi.abs().amax(1, keepdim=True).clamp_min(torch.finfo(phi.dtype).tiny)
    stable = phi + torch.where(phi >= 0, tiny, -tiny)
    return pull_back(features, z, relevance / stable)


def named_weights(name: str, module: nn.Module | None) -> dict[str, Tensor]:
    """The weights of a module, none for None, under ``name.``."""
    return {} if module is None else {f"{name}.{k}": t for k, t in module.state_dict().items()}


def load_named_weights(name: str, module: nn.Module | None, tensors: dict[str, Tensor]) -> None:
    """Give a module what :func:`named_weights` took."""
    if module is not None:
        prefix = f"{name}."
        module.load_state_dict(
            {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        )
