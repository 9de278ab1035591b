"""GradCAM (Selvaraju et al. 2017) for convolutional layers and token grids."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.errors import InputError
from pfungst.relevance.engine.inputs import check_input
from pfungst.relevance.engine.run import check_model, select
from pfungst.relevance.outputs import cotangent


def _module(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    if isinstance(layer, nn.Module):
        if all(layer is not m for m in model.modules()):
            raise InputError(
                f"the layer {type(layer).__name__} is not part of the model", "pass one of its modules"
            )
        return layer
    modules = dict(model.named_modules())
    if layer not in modules:
        near = [n for n in modules if n.startswith(layer.split(".")[0])] or list(modules)[1:]
        raise InputError(f"the model has no layer {layer!r}", f"some of its layers: {', '.join(near[:12])}")
    return modules[layer]


def _grid(t: Tensor, layer: str, channels_last: bool | None) -> Tensor:
    """A layer's output as (N, C, h, w): images as they are, tokens on their square grid."""
    if t.ndim == 4:
        if channels_last is None:  # more square in the middle: (N, h, w, C) as in Swin
            channels_last = t.shape[1] == t.shape[2] != t.shape[3]
        return t.permute(0, 3, 1, 2) if channels_last else t
    if t.ndim == 3:
        side = math.isqrt(t.shape[1])
        prefix = t.shape[1] - side * side
        if prefix > 8 or side < 2:
            raise InputError(
                f"the {t.shape[1]} tokens of layer {layer} do not form a square grid", "choose another layer"
            )
        return t[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    raise InputError(
        f"layer {layer} has output of shape {tuple(t.shape)}, without positions", "choose an earlier layer"
    )


def gradcam(
    model: nn.Module,
    x: Tensor,
    layer: str | nn.Module,
    output: Any = None,
    resize: bool = True,
    relu: bool = True,
    channels_last: bool | None = None,
) -> Tensor:
    """Where a layer's channels speak for a score: ReLU(Σ_c mean(∂score/∂a_c) a_c).

    Args:
        model: module in evaluation mode; not changed.
        x: inputs (N, C, H, W).
        layer: qualified name or module whose output has positions: (N, C, h, w), (N, h, w, C), or tokens
            (N, L, C) on a square grid after up to eight class tokens.
        output: which score, as in :func:`attribute`.
        resize: bilinear to the size of the input; otherwise (N, h, w).
        relu: drop evidence against the score.
        channels_last: whether a four-dimensional output is (N, h, w, C); guessed by default.

    Returns:
        (N, H, W), in units of the score's gradient times activation.

    Raises:
        InputError: unknown layer, or one without positions or without effect on the score.
    """
    model, x = check_model(model), check_input(x)
    module, name = _module(model, layer), layer if isinstance(layer, str) else type(layer).__name__
    kept: list[Tensor] = []

    def keep(m: nn.Module, args: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        if not isinstance(first, Tensor):
            raise InputError(
                f"layer {name} returns a {type(first).__name__}", "choose a layer that returns a tensor"
            )
        if not first.requires_grad:
            first = first.requires_grad_()
        kept.append(first)
        # later layers may write in place: they get a view of their own
        copy = first.clone()
        return (copy, *out[1:]) if isinstance(out, tuple) else copy

    with torch.inference_mode(False), torch.enable_grad():
        handle = module.register_forward_hook(keep)
        try:
            out = select(
                model(x.clone() if x.is_inference() else x.detach()), output if callable(output) else None
            )
        finally:
            handle.remove()
        if not kept:
            raise InputError(f"layer {name} does not run in the forward pass", "choose another layer")
        weights = cotangent(out.detach(), None if callable(output) else output)
        (g,) = torch.autograd.grad((out * weights).sum(), kept[-1], allow_unused=True)
    if g is None:
        raise InputError(f"the score does not depend on layer {name}", "choose a layer before the output")
    a = _grid(kept[-1].detach(), name, channels_last)
    cam = (_grid(g, name, channels_last).mean((-2, -1), keepdim=True) * a).sum(1)
    cam = cam.clamp(min=0) if relu else cam
    if resize and cam.shape[-2:] != x.shape[-2:]:
        cam = F.interpolate(cam[:, None], x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return cam
