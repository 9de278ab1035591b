"""Sums, means, poolings, reshapes: gradient × input is already the Norm rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pfungst.errors import InputError
from pfungst.relevance.engine.calls import bind, outplace
from pfungst.relevance.engine.mode import RelevanceMode, tensors
from pfungst.relevance.engine.vocabulary import AFFINE, LIKE, LINEAR, MAY_TURN_SIGN

_PLACEMENT = {"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as", "cuda", "cpu"}
_CASTS = {"to", "float", "double", "half", "bfloat16", "type_as"}
_SHAPES = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "movedim",
        "get:T",
    ]
)
_RECORDED = {"add", "sub", "mean", "sum", "cat"}
_DROPOUT = "input p training inplace"


def linear(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums, means, poolings, reshapes: gradient × input is the Norm rule."""
    if "dropout" in name:
        _refuse_dropout(
            mode, bind(_DROPOUT, args, {"training" if k == "train" else k: v for k, v in kwargs.items()})
        )
    func = outplace(func, name)
    if name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
        name = f"{name}imum"
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    if name.startswith("grid_sample"):  # where to look is a constant, as attention is
        args, kwargs = (args[0], *mode.stop_all(args[1:])), mode.stop_all(kwargs)
    operands = [
        t
        for t in tensors(args[:1] if name in LIKE else (args, kwargs))
        if t.is_floating_point() or t.is_complex()
    ]
    positive = (
        name in LINEAR
        and name not in MAY_TURN_SIGN
        and "alpha" not in kwargs
        and (name != "add" or all(isinstance(a, Tensor) for a in args))
        and all(mode.nonnegative(t) for t in operands)
    )
    gate = len(operands) == 1 and mode.gate(operands[0])
    with torch.enable_grad():
        if name in ("maximum", "minimum"):
            args, kwargs, func = _winner(mode, func, name, args, kwargs)
        out = func(*args, **kwargs)
        if mode.biases is not None and name in AFFINE:
            out = _with_constants(mode, func, name, args, kwargs, out)
    source = args[0] if args else None

    def note(t: Any) -> Any:
        fresh = isinstance(t, Tensor) and (t is not source or mode.mark_of(t) is None)
        if fresh and (t.is_floating_point() or t.is_complex()):
            mode.mark(t, nonnegative=positive or name == "abs", gate=gate)
        return t

    out = pytree.tree_map(note, out)
    _anchor(mode, func, name, args, kwargs, out)
    if name in _RECORDED or "pool" in name:
        mode.record(name, out, "winner takes all" if "max" in name else "Norm()")
    return restream(mode, out, name, args) if isinstance(out, Tensor) else out


def _refuse_dropout(mode: RelevanceMode, b: dict[str, Any]) -> None:
    if b.get("training", False) and b.get("p", 0.5) > 0:
        raise InputError(
            f"dropout is active in module {mode.module_name()!r}", "call model.eval() before explaining it"
        )


def _winner(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The larger (smaller) of a signal and a constant: all to the signal where it wins, else a constant."""
    a, b = args[0], args[1]
    if (mode.tracked(a) and mode.tracked(b)) or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return args, kwargs, func
    first = mode.stop(a) >= mode.stop(b) if name == "maximum" else mode.stop(a) <= mode.stop(b)
    return (first, a, b), {}, torch.where


def _with_constants(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """`out` with what the operation gives at zero as a constant of its own."""
    # what a rule ignores is no constant of the network either
    zeros = lambda t: t if mode.mark_of(t) is None else torch.zeros_like(t)
    with torch.no_grad():
        at_zero = func(*pytree.tree_map(zeros, args), **pytree.tree_map(zeros, kwargs))
        at_zero = torch.where(torch.isfinite(at_zero), at_zero, torch.zeros_like(at_zero))
    if not bool((at_zero != 0).any()):
        return out
    leaf = mode.constant(at_zero, name)
    assert leaf is not None
    return out + (leaf - leaf.detach())


def _anchor(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """Keep track of tensors that are the network's input, only reshaped, moved or with zeros around it."""
    mark = mode.mark_of(args[0]) if args else None
    if mark is None or mark.anchor is None or not isinstance(out, Tensor) or out is args[0]:
        return
    kept = name in _SHAPES or name in _PLACEMENT or _pads_zeros(name, args, kwargs)
    if not kept or (name in _CASTS and out.dtype != args[0].dtype):
        return
    base, replay = mark.anchor
    rest, mine = args[1:], mode.mark_of(out)
    assert mine is not None
    mine.anchor = (base, lambda t: func(replay(t), *rest, **kwargs))


def _pads_zeros(name: str, args: Any, kwargs: Any) -> bool:
    """Whether it is zero padding, as a convolution's own: "same" padding of strided ones is a call."""
    if name == "pad":
        b = bind("input pad mode value", args, kwargs)
        return b.get("mode", "constant") == "constant" and not b.get("value")
    return name == "constant_pad_nd" and not bind("input pad value", args, kwargs).get("value")


def restream(mode: RelevanceMode, out: Tensor, name: str, args: Any) -> Tensor:
    """After a normalisation inside the model the explanation is read at the normalised input."""
    if name not in ("add", "sub", "rsub", "mul", "div"):
        return out
    for t in args[:2]:
        mark = mode.mark_of(t)
        if mark is not None and mark.anchor is not None and mark.anchor[0] is t:
            other = args[1] if t is args[0] else args[0]
            if not mode.tracked(other) and _per_channel(other, t) and out.shape == t.shape:
                leaf = mode.leaf(mode.stop(out), t)
                mode.mark(leaf, anchor=(leaf, lambda s: s), source=mark.source)
                mode.record(name, leaf, "normalisation: relevance is read behind it")
                return leaf
    return out


def _per_channel(c: Any, x: Tensor) -> bool:
    if not isinstance(c, Tensor) or c.numel() == 1:
        return True
    if x.ndim == 4:
        shape = (1,) * (4 - c.ndim) + tuple(c.shape)
        return c.numel() == x.shape[1] and len(shape) == 4 and shape[1] == c.numel()
    return x.ndim == 2 and c.numel() == x.shape[1] and c.shape[-1] == c.numel()
