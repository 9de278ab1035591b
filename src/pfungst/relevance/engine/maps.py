"""Convolutions and linear layers: the rules of the composite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.engine.calls import bind, n_tuple, outplace
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.products import product
from pfungst.relevance.rules import LinearMap


def dynamic(
    mode: RelevanceMode, name: str, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A convolution whose weights are computed from the input: a product like any other."""
    out = product(mode, func, name, (x, weight), {})
    if bias is None:
        return out
    bias = mode.settle(bias) if mode.tracked(bias) else mode.constant(bias, "bias")
    with torch.enable_grad():
        return mode.mark(out + bias.reshape(-1, *[1] * (out.ndim - 2)))


def convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Convolutions of one, two and three axes."""
    b = bind("input weight bias stride padding dilation groups", args, kwargs)
    n, padding = b["weight"].ndim - 2, b.get("padding", 0)
    rest = (
        n_tuple(b.get("stride", 1), n),
        padding if isinstance(padding, str) else n_tuple(padding, n),
        n_tuple(b.get("dilation", 1), n),
        b.get("groups", 1),
    )
    return _convolve(mode, func, name, b, rest, out_axis=0)


def transposed_convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Transposed convolutions of one, two and three axes."""
    b = bind("input weight bias stride padding output_padding groups dilation", args, kwargs)
    rest = (
        b.get("stride", 1),
        b.get("padding", 0),
        b.get("output_padding", 0),
        b.get("groups", 1),
        b.get("dilation", 1),
    )
    return _convolve(mode, func, name, b, rest, out_axis=1)


def _convolve(
    mode: RelevanceMode, func: Any, name: str, b: dict[str, Any], rest: tuple[Any, ...], out_axis: int
) -> Tensor:
    """A convolution of either kind: `rest` are its arguments after the bias."""
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    if mode.tracked(weight) or mode.tracked(bias):
        return dynamic(mode, name, lambda x, w: func(x, w, None, *rest), x, weight, bias)
    m = LinearMap(
        lambda x, w, b: func(x, w, b, *rest),
        weight.detach(),
        None if bias is None else bias.detach(),
        out_axis=out_axis,
        groups=b.get("groups", 1),
        owner=weight,
    )
    kernel = tuple(weight.shape[2:])
    site = mode.site(name, "convolution", kernel=kernel, stride=n_tuple(rest[0], len(kernel)))
    return mode.linear(site, x, m)


def linear_map(mode: RelevanceMode, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias, the weight a constant."""
    m = LinearMap(F.linear, weight.detach(), None if bias is None else bias.detach(), owner=weight)
    return mode.linear(mode.site(name, "linear"), x, m)


def linear_layer(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """`linear`: a map where the weight is a constant, a product where it depends on the input."""
    b = bind("input weight bias", args, kwargs)
    if mode.tracked(b["weight"]):
        out = product(
            mode, torch.matmul, "matmul", (b["input"], mode.settle(b["weight"]).transpose(-1, -2)), {}
        )
        return out if b.get("bias") is None else mode.mark(out + b["bias"])
    return linear_map(mode, name, b["input"], b["weight"], b.get("bias"))


#: The two factors of operations that add a product to their input.
_FACTORS = {
    "addmm": "mat1 mat2",
    "addbmm": "batch1 batch2",
    "baddbmm": "batch1 batch2",
    "addmv": "mat vec",
    "addr": "vec1 vec2",
}


def add_matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """β · input + α · product of two factors."""
    first, second = _FACTORS[name].split()
    b = bind(f"input {first} {second} beta alpha", args, kwargs)
    x, left, right = b["input"], b[first], b[second]
    alpha, beta = b.get("alpha", 1), b.get("beta", 1)
    layer = name == "addmm" and alpha == beta == 1 and mode.tracked(left)
    if layer and not mode.tracked(right) and not mode.tracked(x) and x.ndim == 1:
        return linear_map(mode, "linear", left, right.t(), x)
    func, x = outplace(func, name), mode.settle(x)
    with torch.enable_grad():
        if mode.tracked(left) or mode.tracked(right):
            factors = lambda p, q: func(mode.stop(x), p, q, beta=0, alpha=alpha)
            out = product(mode, factors, name, (left, right), {})
        else:
            out = func(torch.zeros_like(mode.stop(x)), left, right, alpha=alpha)
        if beta == 0:
            return mode.mark(out)
        scaled = beta * (x if mode.tracked(x) else mode.constant(x, "input"))
        return mode.mark(scaled + out)


def matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Matrix products: a map where the second factor is a constant matrix, a product otherwise."""
    a, b = (*args, *(kwargs[k] for k in ("other", "mat2", "vec", "tensor") if k in kwargs))[:2]
    if name == "rmatmul":
        a, b = b, a
        func = torch.matmul
    if not mode.tracked(b) and b.ndim == 2 and name in ("matmul", "mm", "rmatmul"):
        return linear_map(mode, "linear", a, b.t(), None)
    return product(mode, func, name, (a, b), {})
