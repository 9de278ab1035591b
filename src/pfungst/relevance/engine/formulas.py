"""Operations that abbreviate a formula: the value of the operation, the relevance of the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pfungst.relevance.engine.calls import Handler, bind, outplace
from pfungst.relevance.engine.mode import RelevanceMode


def original(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """What the call itself gives, as constants."""
    func = outplace(func, name)
    args, kwargs = mode.stop_all(args), mode.stop_all(kwargs)
    with mode.quiet():
        return pytree.tree_map(lambda t: mode.stop(t) if isinstance(t, Tensor) else t, func(*args, **kwargs))


def attached(mode: RelevanceMode, value: Tensor, zhat: Tensor) -> Tensor:
    """`value` with the derivative and the marks of the tensor `zhat`, which has the same values but for
    rounding."""
    zhat = mode.settle(zhat)
    if not mode.tracked(zhat):
        return value
    out = mode.exactly(value, zhat)
    return mode.mark(out, nonnegative=mode.nonnegative(zhat), gate=mode.gate(zhat))


def expanded(mode: RelevanceMode, name: str, note: str, formula: Callable[[], Any]) -> Any:
    """A formula of operations that have rules of their own; one line in the table of the composite."""
    count = len(mode.records)
    with mode, torch.enable_grad():
        out = formula()
    out = mode.settled(out)
    del mode.records[count:]
    first = out[0] if isinstance(out, tuple) else out
    mode.record(name, first, note)
    return out


def formula(signature: str, write: Callable[..., Tensor], note: str) -> Handler:
    """The handler of an operation that a formula of other operations says.

    Args:
        signature: names of the operation's arguments, in order.
        write: the formula, called with the arguments by name.
        note: what :meth:`Composite.describe` says.
    """

    def handler(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if len(args) > 2 and isinstance(args[1], int | float) and isinstance(args[2], Tensor):
            args, kwargs = (args[0], *args[2:]), {"value": args[1], **kwargs}  # deprecated order of arguments
        args, kwargs = mode.settled(args), mode.settled(kwargs)
        b = bind(signature, args, kwargs)
        zhat = expanded(mode, name, note, lambda: write(**b))
        return attached(mode, original(mode, func, name, args, kwargs), zhat)

    return handler


def scaled(by: float | Tensor, t: Any) -> Any:
    """`by` · `t`, and `t` itself where that is the same."""
    return t if isinstance(by, int | float) and by == 1 else by * t


def _lerp(input: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    return input + weight * (end - input)


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, value: float = 1) -> Tensor:
    return input + scaled(value, tensor1 * tensor2)


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, value: float = 1) -> Tensor:
    return input + scaled(value, tensor1 / tensor2)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    signal, gate = input.chunk(2, dim)
    return signal * torch.sigmoid(gate)


lerp = formula("input end weight", _lerp, "start + weight · (end − start)")
addcmul = formula("input tensor1 tensor2", _addcmul, "sum of the input and a product")
addcdiv = formula("input tensor1 tensor2", _addcdiv, "sum of the input and a quotient")
glu = formula("input dim", _glu, "gate is a constant")


def remainder(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x mod y = x − n·y, where n counts how often y fits and is a constant."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    b = bind("input other", args, kwargs)
    x, y = b["input"], b["other"]
    value = original(mode, func, name, args, kwargs)
    with mode.quiet():
        x0, y0 = (mode.stop(t) if isinstance(t, Tensor) else t for t in (x, y))
        n = torch.round((x0 - value) / y0)
    zhat = expanded(mode, name, "the multiple is a constant", lambda: x - n * y)
    return attached(mode, value, zhat)


def monomial(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Products of n entries of one tensor: each receives the n-th part."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    b = bind("input dim", args, kwargs)
    x = b["input"]
    with torch.enable_grad():
        zhat = outplace(func, name)(*args, **kwargs)
    value = mode.stop(zhat)
    dim = b.get("dim")
    length = x.numel() if dim is None else x.shape[dim] if x.ndim else 1
    if name == "cumprod" and dim is not None and x.ndim:
        degree = torch.arange(1, length + 1, dtype=x.dtype, device=x.device)
        degree = degree.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    else:
        degree = torch.full((), max(1, length), dtype=x.dtype, device=x.device)
    out = mode.attach(value, [(zhat, (1 / degree).expand_as(value).to(value.dtype))])
    mode.record(name, out, "an equal part to each factor")
    return mode.mark(out, nonnegative=mode.nonnegative(x), gate=mode.gate(x))


def running_extreme(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """cummax and cummin: the winner takes all. Kept as a selection, whose derivative torch batches."""
    b = bind("input dim", args, kwargs)
    x = mode.settle(b["input"])
    with mode.quiet():
        found = func(mode.stop(x), b["dim"])
    with torch.enable_grad():
        out = mode.mark(x.gather(b["dim"], found.indices), nonnegative=mode.nonnegative(x))
    mode.record(name, out, "winner takes all")
    return type(found)((out, found.indices))
