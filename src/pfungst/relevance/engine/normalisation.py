"""BatchNorm is folded; other normalisations: the mean is linear, the scale a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.errors import InputError
from pfungst.relevance.engine.calls import bind, n_tuple
from pfungst.relevance.engine.mode import RelevanceMode


def batch_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    if name == "instance_norm":
        b = bind("input running_mean running_var weight bias use_input_stats momentum eps", args, kwargs)
        x = mode.settle(b["input"])
        return scale_norm(
            mode, x, tuple(range(2, x.ndim)), b.get("weight"), b.get("bias"), b.get("eps", 1e-5), 1, name
        )
    b = bind("input running_mean running_var weight bias training momentum eps", args, kwargs)
    x, mean, var = b["input"], b["running_mean"], b["running_var"]
    if b.get("training", False) or mean is None:
        raise InputError(
            f"BatchNorm in module {mode.module_name()!r} uses the statistics of the batch",
            "call model.eval() before explaining it",
        )
    scale = torch.rsqrt(var.detach() + b.get("eps", 1e-5))
    if b.get("weight") is not None:
        scale = scale * b["weight"].detach()
    shift = -mean.detach() * scale
    if b.get("bias") is not None:
        shift = shift + b["bias"].detach()

    weight, bias = (None if b.get(k) is None else b[k].detach() for k in ("weight", "bias"))

    def value(t: Tensor) -> Tensor:
        return F.batch_norm(t, mean, var, weight, bias, False, 0.0, b.get("eps", 1e-5))

    return mode.batch_norm(x, scale, shift, value)


def scale_norm(
    mode: RelevanceMode,
    x: Tensor,
    dims: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    channel: int | None,
    name: str,
    centred: bool = True,
) -> Tensor:
    """Normalisation over `dims`: the mean is linear, the scale a constant (Ali et al. 2022)."""
    x = mode.settle(x)
    with mode.quiet():
        x0 = mode.stop(x).float() if x.dtype in (torch.float16, torch.bfloat16) else mode.stop(x)
        centre0 = x0 - x0.mean(dims, keepdim=True) if centred else x0
        scale = torch.rsqrt(centre0.square().mean(dims, keepdim=True) + eps)
    view = [1, -1, *[1] * (x.ndim - 2)] if channel == 1 else None
    with torch.enable_grad():
        out = (x - x.mean(dims, keepdim=True) if centred else x) * scale.to(x.dtype)
        if weight is not None:
            out = out * (weight.detach().reshape(view) if view else weight.detach())
        if bias is not None:
            c = mode.constant(bias, "bias")
            assert c is not None
            out = out + (c.reshape(view) if view else c)
    mode.record(name, out, "mean linear, scale constant" if centred else "scale constant")
    return mode.mark(out)


def layer_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    b = bind("input normalized_shape weight bias eps", args, kwargs)
    dims = tuple(range(-len(n_tuple(b["normalized_shape"], 1)), 0))
    x = b["input"]
    return scale_norm(mode, x, dims, b.get("weight"), b.get("bias"), b.get("eps", 1e-5), None, "layer_norm")


def rms_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = bind("input normalized_shape weight eps", args, kwargs)
    x = b["input"]
    dims = tuple(range(-len(n_tuple(b["normalized_shape"], 1)), 0))
    eps = b.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return scale_norm(mode, x, dims, b.get("weight"), None, eps, None, name, centred=False)


def group_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = bind("input num_groups weight bias eps", args, kwargs)
    x, groups = mode.settle(b["input"]), b["num_groups"]
    with torch.enable_grad():
        split = mode.mark(x.reshape(x.shape[0], groups, -1))
    out = scale_norm(mode, split, (-1,), None, None, b.get("eps", 1e-5), None, name)
    view = [1, -1, *[1] * (x.ndim - 2)]
    with torch.enable_grad():
        out = out.reshape(x.shape)
        if b.get("weight") is not None:
            out = out * b["weight"].detach().reshape(view)
        if b.get("bias") is not None:
            bias = mode.constant(b["bias"], "bias")
            assert bias is not None
            out = out + bias.reshape(view)
    return mode.mark(out)
