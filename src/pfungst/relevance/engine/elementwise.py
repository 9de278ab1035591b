"""Elementwise functions: relevance passes, their value at zero is a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pfungst.relevance.engine.calls import bind, outplace
from pfungst.relevance.engine.mode import RelevanceMode, tensors
from pfungst.relevance.engine.sums import linear
from pfungst.relevance.rules import Pass, _quotient

_NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "sqrt", "rsqrt", "exp", "exp2", "erfc"}
_NONNEGATIVE |= {"special_expit", "special_exp2", "special_erfc", "cosh"}
_GATES = {
    "sigmoid",
    "hardsigmoid",
    "rsqrt",
    "sqrt",
    "reciprocal",
    "exp",
    "exp2",
    "special_expit",
    "special_exp2",
}
#: Functions with f(0) ≠ 0: what they give for nothing belongs to no input.
_OFFSET = {"sigmoid", "hardsigmoid", "special_expit", "softplus", "log_sigmoid", "logsigmoid", "exp", "exp2"}
_OFFSET |= {"special_exp2", "cos", "cosh", "erfc", "special_erfc", "threshold", "hardtanh"}
_OFFSET |= {"clamp", "clamp_min", "clamp_max"}
#: Functions that are not finite at zero: all of the output passes.
_SINGULAR = {"sqrt", "rsqrt"}


def activation(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Elementwise functions: relevance passes, out = x · const((f(x) − f(0)) / x) + f(0)."""
    func = outplace(func, name)
    x = args[0]
    if any(mode.tracked(t) for t in tensors((args[1:], kwargs))):
        return _between(mode, name, args, kwargs)
    clamp = bind("input min max", args, kwargs) if name == "clamp" else {}
    positive = name in _NONNEGATIVE or (name == "clamp" and _is_zero(clamp.get("min")))
    rectified = name == "relu" and mode.waits(x)  # then settling does it
    x = mode.settle(x, relu=name in ("relu", "relu6") or (positive and name == "clamp"))
    if x.is_complex():
        mode.uncovered(name)
    rest, kwargs = mode.settled(args[1:]), mode.settled(kwargs)
    if rectified:
        out = x
    elif name == "relu":
        with torch.enable_grad():
            out = torch.relu(x)
    else:
        with mode.quiet():
            x0 = mode.stop(x)
            rest, kwargs = mode.stop_all(rest), mode.stop_all(kwargs)
            y = func(x0, *rest, **kwargs)
            if y.shape != x0.shape:
                mode.uncovered(name)
            f0 = _at_zero(mode, func, name, x0, rest, kwargs)
            c = _quotient(y if f0 is None else y - f0, x0, 0.0 if name in _SINGULAR else 1e-12)
            terms = [(x, c)]
            if f0 is not None and mode.biases is not None:
                constant = mode.constant(f0.expand_as(y), f"{name}(0)")
                assert constant is not None
                terms.append((constant, torch.ones_like(y)))
        out = mode.attach(y, terms)
    mode.record(name, out, "Pass()")
    return mode.mark(out, nonnegative=positive, gate=name in _GATES)


def _between(mode: RelevanceMode, name: str, args: Any, kwargs: Any) -> Tensor:
    """A clamp whose bounds depend on the input: all to what wins."""
    signature = {"clamp": "input min max", "clamp_min": "input min", "clamp_max": "input max"}.get(name)
    if signature is None:
        mode.uncovered(f"{name} with a parameter that depends on the input")
    b = bind(signature, args, kwargs)
    out = b["input"]
    for bound, winner in (("min", torch.maximum), ("max", torch.minimum)):
        if b.get(bound) is not None:
            limit = b[bound] if isinstance(b[bound], Tensor) else torch.as_tensor(b[bound]).to(out)
            out = linear(mode, winner, winner.__name__, (out, limit), {})
    return out


def _is_zero(bound: Any) -> bool:
    return isinstance(bound, int | float) and bound == 0


def _at_zero(mode: RelevanceMode, func: Any, name: str, x: Tensor, rest: Any, kwargs: Any) -> Tensor | None:
    """f(0), a scalar where the other arguments are no tensors; None where it is zero or belongs to the
    input."""
    if name not in _OFFSET or isinstance(mode.composite.rule(mode.site(name)), Pass):
        return None
    tensors = any(isinstance(t, Tensor) and t.ndim for t in pytree.tree_leaves((rest, kwargs)))
    zero = torch.zeros_like(x) if tensors else torch.zeros((), dtype=x.dtype, device=x.device)
    return func(zero, *rest, **kwargs)


def power(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x^p = x · const(x^(p−1)): relevance passes; c^x is an exponential."""
    func = outplace(func, name)
    if name != "square":
        b = bind("exponent input" if name == "rpow" else "input exponent", args, kwargs)
        base, exponent = b["input"], b["exponent"]
        if mode.tracked(base) and mode.tracked(exponent):
            mode.uncovered(name)
        if mode.tracked(exponent):
            return activation(mode, lambda t: torch.pow(base, t), "exp2", (exponent,), {})
        args, kwargs = (base, exponent), {}
    out = activation(mode, torch.square if name == "square" else torch.pow, name, args, kwargs)
    mark = mode.mark_of(out)
    assert mark is not None
    mark.gate = True
    return out
