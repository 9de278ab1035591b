"""In-place operations and attributes: later uses of a tensor see what was written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.sums import linear
from pfungst.relevance.engine.vocabulary import LINEAR


def instead(mode: RelevanceMode, target: Tensor, out: Tensor) -> Tensor:
    """An in-place operation that ran out of place: later uses of `target` see `out`."""
    mark = getattr(target, "_pfungst", None)
    waits = mark is not None and mark.pending is not None and mark.settled is None
    if not waits and out is mode.settle(target):
        return out
    if target._is_view() or mark is None or not mark.tracked:
        # a view's base must change too: write through it, autograd keeps the books
        target = mode.settle(target)
        nonnegative = mode.nonnegative(out)
        with torch.enable_grad():
            target.copy_(out)
        return mode.mark(target, nonnegative=nonnegative)
    mark.settled = out
    return out


def read_property(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...]) -> Any:
    if name in LINEAR:
        return linear(mode, func, name, args, {})
    if name == "get:data":
        return mode.stop(args[0])
    return func(*args)


def write(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Writes into a tensor: autograd keeps the books."""
    target = mode.settle(args[0])
    rest = mode.settled(args[1:])
    with torch.enable_grad():
        out = func(target, *rest, **mode.settled(kwargs))
    mode.mark(target)
    if target is not args[0]:
        mark = getattr(args[0], "_pfungst", None)
        if mark is not None:
            mark.settled = target
    return out
