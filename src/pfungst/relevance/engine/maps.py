"""Convolutions and linear layers: the rules of the composite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.errors import UncoveredOperation
from pfungst.relevance.engine.calls import bind, n_tuple
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.products import product
from pfungst.relevance.rules import LinearMap


def constant_weights(mode: RelevanceMode, name: str, *tensors: Any) -> None:
    for t in tensors:
        if mode.tracked(t):
            raise UncoveredOperation(
                f"the weights of {name!r} in module {mode.module_name()!r} are computed from the input",
                f"assign a rule: composite.assign({name!r}, Gradient()) or Ignore()",
            )


def convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = bind("input weight bias stride padding dilation groups", args, kwargs)
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    constant_weights(mode, name, weight, bias)
    n = weight.ndim - 2
    rest = (b.get("stride", 1), b.get("padding", 0), b.get("dilation", 1), b.get("groups", 1))
    m = LinearMap(
        lambda x, w, b: func(x, w, b, *rest),
        weight.detach(),
        None if bias is None else bias.detach(),
        groups=rest[3],
    )
    site = mode.site(name, "convolution", kernel=tuple(weight.shape[2:]), stride=n_tuple(rest[0], n))
    return mode.linear(site, x, m)


def transposed_convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = bind("input weight bias stride padding output_padding groups dilation", args, kwargs)
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    constant_weights(mode, name, weight, bias)
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
        name, "convolution", kernel=tuple(weight.shape[2:]), stride=n_tuple(rest[0], weight.ndim - 2)
    )
    return mode.linear(site, x, m)


def linear_map(mode: RelevanceMode, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    m = LinearMap(F.linear, weight.detach(), None if bias is None else bias.detach())
    return mode.linear(mode.site(name, "linear"), x, m)


def linear_layer(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = bind("input weight bias", args, kwargs)
    if mode.tracked(b["weight"]):
        out = product(
            mode, torch.matmul, "matmul", (b["input"], mode.settle(b["weight"]).transpose(-1, -2)), {}
        )
        return out if b.get("bias") is None else mode.mark(out + b["bias"])
    return linear_map(mode, name, b["input"], b["weight"], b.get("bias"))


def add_matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = bind("input mat1 mat2", args, kwargs)
    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    layer = name == "addmm" and alpha == beta == 1 and mode.tracked(b["mat1"])
    if layer and not mode.tracked(b["mat2"]) and not mode.tracked(b["input"]) and b["input"].ndim == 1:
        return linear_map(mode, "linear", b["mat1"], b["mat2"].t(), b["input"])
    out = product(mode, torch.matmul, "matmul", (b["mat1"], b["mat2"]), {}) * alpha
    return mode.mark(out + beta * mode.settle(b["input"]))


def matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    a, b = (*args, *kwargs.values())[:2]
    if name == "rmatmul":
        a, b = b, a
        func = torch.matmul
    if not mode.tracked(b) and b.ndim == 2 and name in ("matmul", "mm", "rmatmul"):
        return linear_map(mode, "linear", a, b.t(), None)
    return product(mode, func, name, (a, b), {})
