"""Sums, means, poolings, reshapes: gradient × input is already the Norm rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pfungst.errors import InputError
from pfungst.relevance.engine.calls import is_gate, outplace
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.vocabulary import LINEAR

_KEEPS_SIGN = LINEAR - {"neg", "sub", "rsub", "lerp", "rfft", "fft", "fft2", "fftn", "rfft2", "interpolate"}
_PLACEMENT = {"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as", "cuda", "cpu"}
_SHAPES = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "movedim",
}


def linear(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums, means, poolings, reshapes: gradient × input is the Norm rule."""
    if "dropout" in name and kwargs.get("training", len(args) > 2 and args[2]) and kwargs.get("p", 0.5) > 0:
        raise InputError(
            f"dropout is active in module {mode.module_name()!r}", "call model.eval() before explaining it"
        )
    func = outplace(func, name)
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    if mode.biases is not None and name in ("add", "sub", "rsub", "cat", "stack", "where", "lerp"):
        args = pytree.tree_map(
            lambda t: mode.constant(t, name) if isinstance(t, Tensor) and not mode.tracked(t) else t, args
        )
    operands = [
        t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()
    ]
    positive = name in _KEEPS_SIGN and all(_is_nonnegative(mode, t) for t in operands)
    gate = len(operands) == 1 and is_gate(operands[0])
    with torch.enable_grad():
        out = func(*args, **kwargs)
    if name in ("add", "sub") and not all(isinstance(a, Tensor) for a in args[:2]):
        positive = False

    def note(t: Any) -> Any:
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()):
            old = getattr(t, "_pfungst", None)
            if old is None or t is not args[0]:
                mode.mark(t, nonnegative=positive, gate=gate)
        return t

    out = pytree.tree_map(note, out)
    _anchor(mode, func, name, args, kwargs, out)
    if name in ("add", "sub", "mean", "sum", "cat") or "pool" in name:
        mode.record(name, out, "winner takes all" if "max" in name else "Norm()")
    return out if not isinstance(out, Tensor) else restream(mode, out, name, args)


def _is_nonnegative(mode: RelevanceMode, t: Tensor) -> bool:
    if mode.tracked(t):
        return mode.nonnegative(t)
    return False


def _anchor(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """Keep track of tensors that are the network's input, only reshaped or moved."""
    mark = getattr(args[0], "_pfungst", None) if args else None
    if mark is None or mark.anchor is None or not isinstance(out, Tensor) or out is args[0]:
        return
    if name not in _SHAPES and name not in _PLACEMENT and name != "get:T":
        return
    base, replay = mark.anchor
    rest = args[1:]
    if name in ("to", "float", "double", "half", "bfloat16", "type_as") and out.dtype != args[0].dtype:
        return
    out._pfungst.anchor = (base, lambda t: func(replay(t), *rest, **kwargs))  # type: ignore[attr-defined]


def restream(mode: RelevanceMode, out: Tensor, name: str, args: Any) -> Tensor:
    """After a normalisation inside the model the explanation is read at the normalised input."""
    if name not in ("add", "sub", "rsub", "mul", "div"):
        return out
    for t in args[:2]:
        mark = getattr(t, "_pfungst", None)
        if mark is not None and mark.anchor is not None and mark.anchor[0] is t:
            other = args[1] if t is args[0] else args[0]
            if _per_channel(other, t) and out.shape == t.shape:
                leaf = mode.leaf(mode.stop(out))
                mode.mark(leaf)
                leaf._pfungst.anchor = (leaf, lambda s: s)  # type: ignore[attr-defined]
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
