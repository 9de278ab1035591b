"""How a functional call is read: its arguments by name, its in-place flag, what its tensors are."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.vocabulary import operation_name

Handler = Callable[[RelevanceMode, Any, str, tuple[Any, ...], dict[str, Any]], Any]


def bind(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of its parameters, separated by spaces."""
    bound = dict(zip(names.split(), args, strict=False))
    bound.update(kwargs)
    return bound


def n_tuple(v: Any, n: int) -> tuple[int, ...]:
    """A number for each of `n` axes; 0 for the words that padding may be."""
    return (v,) * n if isinstance(v, int) else tuple(v) if not isinstance(v, str) else (0,) * n


@lru_cache(maxsize=512)
def _flag_position(func: Any) -> int | None:
    """Where a function of torch.nn.functional takes its `inplace` flag."""
    if not isinstance(func, types.FunctionType):
        return None
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    return names.index("inplace") if "inplace" in names else None


def without_flag(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], bool]:
    """The call without its `inplace` flag, and the flag."""
    flag = bool(kwargs.get("inplace"))
    kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
    position = _flag_position(func)
    if position is not None and len(args) > position:
        flag = bool(args[position])
        args = (*args[:position], False, *args[position + 1 :])
    return args, kwargs, flag


def outplace(func: Any, name: str) -> Any:
    """The out-of-place function `name` where `func` works in place, else `func`."""
    if not operation_name(func).endswith("_"):
        return func
    return next(
        (getattr(home, name) for home in (torch, F, torch._C._nn, Tensor) if hasattr(home, name)), func
    )


#: Calls whose first argument by keyword is not `input`.
_FIRST = {
    "where": "condition",
    "cat": "tensors",
    "stack": "tensors",
    "bucketize": "input",
    "trapezoid": "y",
    "trapz": "y",
    "cumulative_trapezoid": "y",
    "einsum": "equation",
}


def positional(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with what it works on in its first two places, however it was written."""
    kwargs = dict(kwargs)
    if not args:
        key = next(
            (k for k in (_FIRST.get(name, "input"), "self", "x", "tensor", "tensors") if k in kwargs), None
        )
        if key is None:
            return args, kwargs
        args = (kwargs.pop(key),)
    if len(args) == 1 and "other" in kwargs and name != "where":
        args = (*args, kwargs.pop("other"))
    return args, kwargs
