"""Elementwise functions: relevance passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.engine.calls import outplace
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.rules import _quotient

_NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "sqrt", "rsqrt"}
_GATES = {"sigmoid", "hardsigmoid", "rsqrt", "sqrt", "reciprocal"}


def activation(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Elementwise functions: relevance passes, out = x · const(f(x) / x)."""
    func = outplace(func, name)
    x = args[0]
    if name == "clamp" and kwargs.get("min", args[1] if len(args) > 1 else None) == 0:
        positive = True
    else:
        positive = name in _NONNEGATIVE
    discards = name in ("relu", "relu6") or (positive and name == "clamp")
    rectified = name == "relu" and mode.waits(x)  # then settling does it
    x = mode.settle(x, relu=discards)
    rest = mode.settled(args[1:])
    if rectified:
        out = x
    elif name == "relu":
        with torch.enable_grad():
            out = torch.relu(x)
    else:
        with mode.quiet():
            x0 = mode.stop(x)
            y = func(x0, *rest, **kwargs)
            if y.shape != x0.shape:
                mode.uncovered(name)
            c = _quotient(y, x0, 0.0 if name in ("sqrt", "rsqrt") else 1e-12)
        out = mode.attach(y, [(x, c)])
    mode.record(name, out, "Pass()")
    return mode.mark(out, nonnegative=positive, gate=name in _GATES)


def power(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x^p = x · const(x^(p−1)): relevance passes."""
    out = activation(mode, outplace(func, name), name, args, kwargs)
    mark = mode.mark_of(out)
    assert mark is not None
    mark.gate = True
    return out
