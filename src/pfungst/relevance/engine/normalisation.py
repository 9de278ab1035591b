"""BatchNorm is folded; other normalisations: the mean is linear, the scale a constant."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.errors import InputError
from pfungst.relevance.engine.calls import bind, n_tuple
from pfungst.relevance.engine.formulas import original
from pfungst.relevance.engine.mode import RelevanceMode


def _statistics(func: Any) -> str:
    """The first arguments: torch.batch_norm and exported programs have them in another order than
    F.batch_norm."""
    if isinstance(func, types.FunctionType):
        return "input running_mean running_var weight bias"
    return "input weight bias running_mean running_var"


def batch_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """BatchNorm in evaluation mode: a per-channel linear map, folded where a linear map is beside it."""
    b = bind(f"{_statistics(func)} training momentum eps cudnn_enabled", args, kwargs)
    if b.get("training", False) or b.get("running_mean") is None:
        raise InputError(
            f"BatchNorm in {mode.place()} uses the statistics of the batch",
            "call model.eval() before explaining it; with track_running_stats=False an output depends on "
            "the whole "
            "batch and cannot be explained for one input",
        )
    return _per_channel_norm(mode, b)


def instance_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """InstanceNorm: the statistics of an input, or in evaluation mode the running ones if it keeps them."""
    b = bind(f"{_statistics(func)} use_input_stats momentum eps cudnn_enabled", args, kwargs)
    if not b.get("use_input_stats", True) and b.get("running_mean") is not None:
        return _per_channel_norm(mode, b)
    x = mode.settle(b["input"])
    value = original(mode, func, name, args, kwargs)
    return scale_norm(mode, x, tuple(range(2, x.ndim)), b, 1e-5, name, value, channels=True)


def _per_channel_norm(mode: RelevanceMode, b: dict[str, Any]) -> Tensor:
    mean, var, eps = b["running_mean"].detach(), b["running_var"].detach(), b.get("eps", 1e-5)
    scale = torch.rsqrt(var + eps)
    if b.get("weight") is not None:
        scale = scale * b["weight"].detach()
    shift = -mean * scale
    if b.get("bias") is not None:
        shift = shift + b["bias"].detach()

    weight, bias = (None if b.get(k) is None else b[k].detach() for k in ("weight", "bias"))

    def value(t: Tensor) -> Tensor:
        return F.batch_norm(t, mean, var, weight, bias, False, 0.0, eps)

    return mode.batch_norm(b["input"], scale, shift, value)


def scale_norm(
    mode: RelevanceMode,
    x: Tensor,
    dims: tuple[int, ...],
    b: dict[str, Any],
    eps: float,
    name: str,
    value: Tensor,
    channels: bool = False,
    centred: bool = True,
) -> Tensor:
    """Normalisation over `dims`: the mean is linear, the scale a constant (Ali et al. 2022).

    Args:
        b: the call's arguments, of which `weight`, `bias` and `eps` are read.
        eps: where the call has none.
        value: what the model's own call gave, in the shape of `x`.
        channels: weight and bias count channels (axis 1) instead of the last axes.
        centred: the mean is subtracted.
    """
    eps = eps if b.get("eps") is None else b["eps"]
    with mode.quiet():
        x0 = mode.stop(x).float() if x.dtype in (torch.float16, torch.bfloat16) else mode.stop(x)
        centre0 = x0 - x0.mean(dims, keepdim=True) if centred else x0
        scale = torch.rsqrt(centre0.square().mean(dims, keepdim=True) + eps)
    with torch.enable_grad():
        out = (x - x.mean(dims, keepdim=True) if centred else x) * scale.to(x.dtype)
        out = mode.exactly(value, _affine(mode, out, b, channels))
    mode.record(name, out, "mean linear, scale constant" if centred else "scale constant")
    return mode.mark(out)


def _affine(mode: RelevanceMode, out: Tensor, b: dict[str, Any], channels: bool) -> Tensor:
    shaped = lambda t: t.reshape(1, -1, *[1] * (out.ndim - 2)) if channels else t
    if b.get("weight") is not None:
        out = out * shaped(b["weight"].detach())
    if b.get("bias") is not None:
        out = out + shaped(mode.constant(b["bias"], "bias"))
    return out


def layer_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """LayerNorm over the last axes."""
    b = bind("input normalized_shape weight bias eps cudnn_enable", args, kwargs)
    dims = tuple(range(-len(n_tuple(b["normalized_shape"], 1)), 0))
    value = original(mode, func, name, args, kwargs)
    if name == "native_layer_norm":  # with mean and scale of its input
        return (scale_norm(mode, mode.settle(b["input"]), dims, b, 1e-5, name, value[0]), *value[1:])
    return scale_norm(mode, mode.settle(b["input"]), dims, b, 1e-5, name, value)


def rms_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """RMSNorm over the last axes."""
    b = bind("input normalized_shape weight eps", args, kwargs)
    x, dims = mode.settle(b["input"]), tuple(range(-len(n_tuple(b["normalized_shape"], 1)), 0))
    value = original(mode, func, name, args, kwargs)
    return scale_norm(mode, x, dims, b, torch.finfo(x.dtype).eps, name, value, centred=False)


def group_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """GroupNorm; weight and bias count channels."""
    b = bind("input num_groups weight bias eps cudnn_enabled", args, kwargs)
    x, groups = mode.settle(b["input"]), b["num_groups"]
    value = original(mode, func, name, args, kwargs)
    eps = {"eps": b.get("eps")}
    with torch.enable_grad():
        split = x.reshape(x.shape[0], groups, -1)
        plain = F.group_norm(mode.stop(x), groups, None, None, b.get("eps", 1e-5)).reshape(split.shape)
        out = scale_norm(mode, split, (-1,), eps, 1e-5, name, plain).reshape(x.shape)
        return mode.mark(mode.exactly(value, _affine(mode, out, b, channels=True)))
