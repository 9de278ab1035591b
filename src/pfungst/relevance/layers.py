"""Rules of layers: linear maps, products and quotients, normalisation, attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from pfungst.errors import InputError, UncoveredOperation
from pfungst.relevance.operations import _gate, _outplace, _restream, activation, handles
from pfungst.relevance.rules import LinearMap

if TYPE_CHECKING:
    from pfungst.relevance.mode import RelevanceMode


# -- linear maps with rules -----------------------------------------------------------------------


def _bind(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = dict(zip(names.split(), args, strict=False))
    bound.update(kwargs)
    return bound


def _tuple(v: Any, n: int) -> tuple[int, ...]:
    return (v,) * n if isinstance(v, int) else tuple(v) if not isinstance(v, str) else (0,) * n


def _constant_weights(mode: RelevanceMode, name: str, *tensors: Any) -> None:
    for t in tensors:
        if mode.tracked(t):
            raise UncoveredOperation(
                f"the weights of {name!r} in module {mode.module_name()!r} are computed from the input",
                f"assign a rule: composite.assign({name!r}, Gradient()) or Ignore()",
            )


@handles("conv1d", "conv2d", "conv3d")
def convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input weight bias stride padding dilation groups", args, kwargs)
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    _constant_weights(mode, name, weight, bias)
    n = weight.ndim - 2
    rest = (b.get("stride", 1), b.get("padding", 0), b.get("dilation", 1), b.get("groups", 1))
    m = LinearMap(
        lambda x, w, b: func(x, w, b, *rest),
        weight.detach(),
        None if bias is None else bias.detach(),
        groups=rest[3],
    )
    site = mode.site(name, "convolution", kernel=tuple(weight.shape[2:]), stride=_tuple(rest[0], n))
    return mode.linear(site, x, m)


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input weight bias stride padding output_padding groups dilation", args, kwargs)
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    _constant_weights(mode, name, weight, bias)
    rest = (
        b.get("stride", 1),
        b.get("padding", 0),
        b.get("output_padding", 0),
        b.get("groups", 1),
        b.get("dilation", 1),
    )
    m = LinearMap(
        lambda x, w, b: func(x, w, b, *rest),
        weight.detach(),
        None if bias is None else bias.detach(),
        out_axis=1,
        groups=rest[3],
    )
    site = mode.site(
        name, "convolution", kernel=tuple(weight.shape[2:]), stride=_tuple(rest[0], weight.ndim - 2)
    )
    return mode.linear(site, x, m)


def _linear_map(mode: RelevanceMode, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    m = LinearMap(F.linear, weight.detach(), None if bias is None else bias.detach(), channel_axis=-1)
    return mode.linear(mode.site(name, "linear"), x, m)


@handles("linear")
def linear_layer(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input weight bias", args, kwargs)
    if mode.tracked(b["weight"]):
        out = product(
            mode, torch.matmul, "matmul", (b["input"], mode.settle(b["weight"]).transpose(-1, -2)), {}
        )
        return out if b.get("bias") is None else mode.mark(out + b["bias"])
    return _linear_map(mode, name, b["input"], b["weight"], b.get("bias"))


@handles("addmm", "addbmm", "baddbmm")
def add_matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input mat1 mat2", args, kwargs)
    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    layer = name == "addmm" and alpha == beta == 1 and mode.tracked(b["mat1"])
    if layer and not mode.tracked(b["mat2"]) and not mode.tracked(b["input"]) and b["input"].ndim == 1:
        return _linear_map(mode, "linear", b["mat1"], b["mat2"].t(), b["input"])
    out = product(mode, torch.matmul, "matmul", (b["mat1"], b["mat2"]), {}) * alpha
    return mode.mark(out + beta * mode.settle(b["input"]))


@handles("matmul", "mm", "bmm", "mv", "rmatmul", "dot", "inner")
def matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    a, b = (*args, *kwargs.values())[:2]
    if name == "rmatmul":
        a, b = b, a
        func = torch.matmul
    if not mode.tracked(b) and b.ndim == 2 and name in ("matmul", "mm", "rmatmul"):
        return _linear_map(mode, "linear", a, b.t(), None)
    return product(mode, func, name, (a, b), {})


# -- products, quotients, powers ------------------------------------------------------------------


@handles("mul", "bilinear", "einsum", "cross", "kron", "outer", "tensordot", "addcmul", "multiply")
def product(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Products of dependent factors: half of the relevance to each; gates are constants."""
    func = _outplace(func, name)
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs))
    factors = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and mode.tracked(t)]
    signals = [i for i in factors if not _gate(flat[i])] or factors
    positive = all(mode.nonnegative(t) for t in flat if isinstance(t, Tensor | int | float))
    if name == "addcmul" and factors:
        raise UncoveredOperation(
            "addcmul with dependent factors has no rule", "write it as a sum of products"
        )

    def value(index: int) -> Any:
        parts = [mode.stop(t) if j in factors and j != index else t for j, t in enumerate(flat)]
        a, k = pytree.tree_unflatten(parts, spec)
        return func(*a, **k)

    with torch.enable_grad():
        out = value(signals[0])
        for i in signals[1:]:
            out = out + value(i)
        if len(signals) > 1:
            out = out / len(signals)
    mode.mark(out, nonnegative=positive, gate=len(factors) > 0 and all(_gate(flat[i]) for i in factors))
    if len(factors) > 1:
        gates = len(factors) - len(signals)
        mode.record(name, out, f"1/{len(signals)} to each factor" if not gates else "gate is a constant")
    return _restream(mode, out, name, args) if name == "mul" and len(factors) == 1 else out


@handles("div", "rdiv", "floor_divide")
def quotient(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The numerator is linear, the denominator a constant."""
    a, b = mode.settle(args[0]), mode.settle(args[1]) if isinstance(args[1], Tensor) else args[1]
    if name == "rdiv":
        a, b = b, a
    if not mode.tracked(a):  # const / x: a scale that depends on the input
        return activation(mode, lambda t: torch.div(a, t), "reciprocal", (b,), {})
    positive = mode.nonnegative(a) and (mode.nonnegative(b) or (not isinstance(b, Tensor) and b > 0))
    with torch.enable_grad():
        out = torch.div(a, mode.stop(b) if mode.tracked(b) else b, **kwargs)
    mode.mark(out, nonnegative=positive, gate=_gate(a))
    if mode.tracked(b):
        mode.record("div", out, "denominator is a constant")
        return out
    return _restream(mode, out, "div", (a, b))


@handles("pow", "square")
def power(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x^p = x · const(x^(p−1)): relevance passes."""
    out = activation(mode, _outplace(func, name), name, args, kwargs)
    out._pfungst.gate = True  # type: ignore[attr-defined]
    return out


@handles("var", "std", "norm", "vector_norm", "linalg_vector_norm", "linalg_norm", "var_mean", "std_mean")
def statistic(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Norms and spreads: homogeneous of degree one (two for var), so the gradient conserves up to the degree."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    with torch.enable_grad():
        out = func(*args, **kwargs)
    squared = name in ("var", "var_mean")

    def note(t: Tensor, half: bool) -> Tensor:
        if half:
            t = mode.attach(mode.stop(t), [(t, torch.full((), 0.5, dtype=t.dtype, device=t.device))])
        return mode.mark(t, gate=True)

    if isinstance(out, tuple):
        return (note(out[0], squared), mode.mark(out[1]))
    mode.record(name, out, "in proportion; a constant as a factor or denominator")
    return note(out, squared)


@handles("normalize")
def normalize(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x / ‖x‖ with the norm held constant."""
    b = _bind("input p dim eps", args, kwargs)
    x = mode.settle(b["input"])
    with mode.quiet():
        norm = (
            mode.stop(x).norm(b.get("p", 2.0), b.get("dim", 1), keepdim=True).clamp_min(b.get("eps", 1e-12))
        )
    with torch.enable_grad():
        out = x / norm
    mode.record(name, out, "norm is a constant")
    return mode.mark(out, nonnegative=mode.nonnegative(x))


# -- normalisation --------------------------------------------------------------------------------


@handles("batch_norm", "instance_norm")
def batch_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    if name == "instance_norm":
        b = _bind("input running_mean running_var weight bias use_input_stats momentum eps", args, kwargs)
        x = mode.settle(b["input"])
        return scale_norm(
            mode, x, tuple(range(2, x.ndim)), b.get("weight"), b.get("bias"), b.get("eps", 1e-5), 1, name
        )
    b = _bind("input running_mean running_var weight bias training momentum eps", args, kwargs)
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

    def value(t: Tensor) -> Tensor:
        return F.batch_norm(t, mean, var, b.get("weight"), b.get("bias"), False, 0.0, b.get("eps", 1e-5))

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


@handles("layer_norm", "native_layer_norm")
def layer_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    b = _bind("input normalized_shape weight bias eps", args, kwargs)
    dims = tuple(range(-len(_tuple(b["normalized_shape"], 1)), 0))
    x = b["input"]
    return scale_norm(mode, x, dims, b.get("weight"), b.get("bias"), b.get("eps", 1e-5), None, "layer_norm")


@handles("rms_norm")
def rms_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input normalized_shape weight eps", args, kwargs)
    x = b["input"]
    dims = tuple(range(-len(_tuple(b["normalized_shape"], 1)), 0))
    eps = b.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return scale_norm(mode, x, dims, b.get("weight"), None, eps, None, name, centred=False)


@handles("group_norm")
def group_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input num_groups weight bias eps", args, kwargs)
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


# -- attention ------------------------------------------------------------------------------------


@handles("softmax", "log_softmax", "softmin", "gumbel_softmax", "sparse_softmax")
def softmax(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Attention weights are constants; relevance flows through the values."""
    if name != "softmax":
        mode.uncovered(name)
    with mode.quiet():
        out = mode.stop(func(*(mode.stop_all(args)), **mode.stop_all(kwargs)))
    mode.record(name, out, "constant")
    return out


@handles("scaled_dot_product_attention")
def attention(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Queries and keys give constant weights; values propagate linearly."""
    b = _bind("query key value attn_mask dropout_p is_causal scale enable_gqa", args, kwargs)
    if b.get("dropout_p", 0.0):
        raise InputError(
            f"attention dropout is active in module {mode.module_name()!r}", "call model.eval() first"
        )
    q, k, v = (mode.settle(b[n]) for n in ("query", "key", "value"))
    with mode.quiet():
        q, k = mode.stop(q), mode.stop(k)
        if b.get("enable_gqa"):
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        scale = b.get("scale")
        weights = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        mask = b.get("attn_mask")
        if mask is not None:
            mask = mode.stop(mode.settle(mask))
            weights = weights.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else weights + mask
        if b.get("is_causal"):
            causal = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
            weights = weights.masked_fill(~causal, -math.inf)
        weights = weights.softmax(-1).to(v.dtype)
    with torch.enable_grad():
        if b.get("enable_gqa"):
            v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
        out = weights @ v
    mode.record(name, out, "attention weights constant, values linear")
    return mode.mark(out)
