"""In-place operations and attributes: later uses of a tensor see what was written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.sums import linear
from pfungst.relevance.engine.unseen import storage_of
from pfungst.relevance.engine.vocabulary import LINEAR


def instead(mode: RelevanceMode, target: Tensor, out: Tensor) -> Tensor:
    """An in-place operation that ran out of place: later uses of `target` see `out`."""
    mark = mode.mark_of(target)
    if out is target or (mark is not None and mark.settled is out):
        return target
    if (
        mark is None
        or not mark.tracked
        or target._is_view()
        or mode.transforms
        or mode.viewed(target, mark.settled)
    ):
        # what shares the memory must change too: write through it, autograd keeps the books
        inside = mode.settle(target)
        if _is_stream(mode, inside):
            mode.mark(target, settled=out)
            return target
        nonnegative = mode.nonnegative(out)
        with torch.enable_grad():
            inside.copy_(out)
        mode.mark(inside, nonnegative=nonnegative)
        mode.written.add(storage_of(inside))
        if inside is not target:
            mode.mark(target, settled=inside)
        return target
    mark.settled = out
    target.data = out.detach()  # for what does not pass through the mode
    mark.version = target._version
    return target


def _is_stream(mode: RelevanceMode, t: Tensor) -> bool:
    """Whether autograd forbids to write into `t`: it is an input of the run, or looks into one."""
    return t.requires_grad and any(storage_of(t) == storage_of(stream) for stream in mode.inputs)


def read_property(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...]) -> Any:
    """Attributes of tensors: views such as `.T` are linear, `.data` ends relevance, the rest is read."""
    if name in LINEAR:
        return linear(mode, func, name, args, {})
    if name == "get:data":
        return mode.stop(mode.settle(args[0]))
    return func(*args)


def write(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Writes into a tensor: autograd keeps the books."""
    if name == "set:data" and mode.tracked(args[0]):
        mode.unseen("the model writes to .data of a tensor", "")
    target, rest, kwargs = args[0], mode.settled(args[1:]), mode.settled(kwargs)
    inside = mode.settle(target)
    if _is_stream(mode, inside):
        inside = mode.mark(inside.clone())
    if mode.biases is not None and inside.is_floating_point():
        if rest and not mode.tracked(rest[-1]) and name in ("setitem", "copy_", "index_put_", "fill_"):
            value = torch.as_tensor(rest[-1], dtype=inside.dtype, device=inside.device)
            rest = (*rest[:-1], mode.constant(value, name))
        if not mode.tracked(inside):
            inside = mode.constant(inside, name).clone()
    with torch.enable_grad():
        func(inside, *rest, **kwargs)
    mode.mark(inside)
    mode.written.add(storage_of(inside))
    if inside is target:
        return target
    if not mode.tracked(target):
        with torch.no_grad():
            func(target, *mode.stop_all(rest), **mode.stop_all(kwargs))
        mode.written.add(storage_of(target))
    return mode.mark(target, settled=inside)
