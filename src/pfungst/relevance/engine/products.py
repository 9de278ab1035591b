"""Products, quotients, norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pfungst.relevance.engine.calls import bind, outplace
from pfungst.relevance.engine.elementwise import activation
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.sums import restream


def product(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Products of dependent factors: half of the relevance to each; gates are constants."""
    func = outplace(func, name)
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs))
    factors = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and mode.tracked(t)]
    signals = [i for i in factors if not mode.gate(flat[i])] or factors
    positive = all(mode.nonnegative(t) for t in flat if isinstance(t, Tensor | int | float))

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
    mode.mark(out, nonnegative=positive, gate=len(factors) > 0 and all(mode.gate(flat[i]) for i in factors))
    if len(factors) > 1:
        gates = len(factors) - len(signals)
        mode.record(name, out, f"1/{len(signals)} to each factor" if not gates else "gate is a constant")
    return restream(mode, out, name, args) if name == "mul" and len(factors) == 1 else out


def quotient(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The numerator is linear, the denominator a constant."""
    a, b = mode.settle(args[0]), mode.settle(args[1]) if isinstance(args[1], Tensor) else args[1]
    if name == "rdiv":
        a, b = b, a
    if name == "floor_divide" or kwargs.get("rounding_mode") is not None:
        if mode.tracked(b):
            mode.uncovered("floor_divide by a tensor that depends on the input")
        return activation(mode, func, "floor_divide", (a, b), kwargs)
    if not mode.tracked(a):  # const / x: a scale that depends on the input
        return activation(mode, lambda t: torch.div(a, t), "reciprocal", (b,), {})
    positive = mode.nonnegative(a) and (mode.nonnegative(b) or (not isinstance(b, Tensor) and b > 0))
    with torch.enable_grad():
        out = torch.div(a, mode.stop(b) if mode.tracked(b) else b, **kwargs)
    mode.mark(out, nonnegative=positive, gate=mode.gate(a))
    if mode.tracked(b):
        mode.record("div", out, "denominator is a constant")
        return out
    return restream(mode, out, "div", (a, b))


def statistic(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Norms and spreads: homogeneous of degree one (two for var), so the gradient conserves up to the
    degree."""
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


def normalize(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x / ‖x‖ with the norm held constant."""
    b = bind("input p dim eps", args, kwargs)
    x = mode.settle(b["input"])
    p, dim, eps = b.get("p", 2.0), b.get("dim", 1), b.get("eps", 1e-12)
    with mode.quiet():
        norm = mode.stop(x).norm(p, dim, keepdim=True).clamp_min(eps)
    with torch.enable_grad():
        out = x / norm
    mode.record(name, out, "norm is a constant")
    return mode.mark(out, nonnegative=mode.nonnegative(x))
