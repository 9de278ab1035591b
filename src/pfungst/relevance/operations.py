"""The vocabulary: what the mode does with each functional call on a tensor that depends on the input.

=====================================  =================================================================
convolutions, linear                   the composite's rule
batch_norm (evaluation mode)           folded into a neighbouring linear map, else a per-channel map
relu, gelu, silu, tanh, sigmoid, …     relevance passes: out = x · const(f(x) / x)
layer_norm, group_norm, rms_norm       the mean is linear, the scale a constant
softmax                                a constant (attention weights)
products of two dependent factors      half to each; a gate (sigmoid, …) is a constant
quotients                              the denominator is a constant
sums, means, poolings, reshapes, …     unchanged: gradient × input is already the Norm rule
=====================================  =================================================================
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from pfungst.errors import InputError
from pfungst.relevance.rules import Ignore, Pass, _quotient
from pfungst.relevance.vocabulary import ACTIVATIONS, CONSTANT, LINEAR

if TYPE_CHECKING:
    from pfungst.relevance.mode import RelevanceMode

Handler = Callable[["RelevanceMode", Any, str, tuple[Any, ...], dict[str, Any]], Any]
TABLE: dict[str, Handler] = {}

_NONNEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "sqrt", "rsqrt"}
_KEEPS_SIGN = LINEAR - {"neg", "sub", "rsub", "lerp", "rfft", "fft", "fft2", "fftn", "rfft2", "interpolate"}
_LINEAR_MAPS = {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)} | {"linear", "addmm"}
_GATES = {"sigmoid", "hardsigmoid", "rsqrt", "sqrt", "reciprocal"}
_INPLACE_OUTSIDE = {
    "add_",
    "sub_",
    "mul_",
    "div_",
    "neg_",
    "clamp_",
    "clamp_min_",
    "clamp_max_",
    "masked_fill_",
}
_PLACEMENT = {"contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type_as", "cuda", "cpu"}
_LIKE = {"to", "type_as", "view_as", "expand_as", "reshape_as"}  # the second tensor only says what like
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


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for name in names:
            TABLE[name] = handler
        return handler

    return register


def dispatch(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out one functional call, at least one of whose tensors depends on the input."""
    if name.startswith("get:"):
        return _property(mode, func, name, args)
    if name in CONSTANT or (name in _LIKE and not mode.tracked(args[0])):
        with torch.no_grad():
            return func(*args, **kwargs)
    if (
        name == "setitem"
        or name.startswith("set:")
        or name in ("copy_", "index_put_", "index_add_", "scatter_")
    ):
        return _write(mode, func, name, args, kwargs)
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    args, kwargs, flag = _without_flag(func, args, kwargs)
    inplace = base != name or flag
    own = base in LINEAR or base in _LINEAR_MAPS
    rule = None if own else mode.composite.rule(mode.site(base))
    if rule is not None:
        out = _assigned(mode, func, base, rule, args, kwargs)
    elif base in TABLE:
        out = TABLE[base](mode, func, base, args, kwargs)
    elif base in ACTIVATIONS:
        out = activation(mode, func, base, args, kwargs)
    elif base in LINEAR:
        out = linear(mode, func, base, args, kwargs)
    elif isinstance(func, types.FunctionType) and func.__module__ in (
        "torch.nn.functional",
        "torch.functional",
    ):
        return expand(mode, func, args, kwargs)
    else:
        with torch.no_grad():
            out = func(*mode.settled(args), **mode.settled(kwargs))
        if any(isinstance(t, Tensor) and t.is_floating_point() for t in pytree.tree_leaves(out)):
            mode.uncovered(base)
        return out
    if inplace and args and isinstance(args[0], Tensor):
        return _instead(mode, args[0], out)
    return out


@lru_cache(maxsize=256)
def _without_dispatch(func: types.FunctionType) -> types.FunctionType:
    """`func` whose body runs even though a mode is active, so that the calls inside it are seen."""
    never = lambda *args, **kwargs: False
    scope = dict(func.__globals__)
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        scope[name] = never
    clone = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    clone.__kwdefaults__ = func.__kwdefaults__
    return clone


def expand(mode: RelevanceMode, func: types.FunctionType, args: Any, kwargs: Any) -> Any:
    """Run a function that is written in Python, with the mode seeing the calls inside it."""
    with mode:
        return _without_dispatch(func)(*args, **kwargs)


@lru_cache(maxsize=512)
def _flag_position(func: Any) -> int | None:
    """Where a function of torch.nn.functional takes its `inplace` flag."""
    if not isinstance(func, types.FunctionType):
        return None
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    return names.index("inplace") if "inplace" in names else None


def _without_flag(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], bool]:
    """The call without its `inplace` flag, and the flag."""
    flag = bool(kwargs.get("inplace"))
    kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
    position = _flag_position(func)
    if position is not None and len(args) > position:
        flag = bool(args[position])
        args = (*args[:position], False, *args[position + 1 :])
    return args, kwargs, flag


def _outplace(func: Any, base: str) -> Any:
    """The out-of-place version of an in-place function."""
    name = getattr(func, "__name__", "")
    if not name.endswith("_") and not name.startswith("__i"):
        return func
    for home in (torch, F, torch._C._nn, Tensor):
        if hasattr(home, base):
            return getattr(home, base)
    return func


def _instead(mode: RelevanceMode, target: Tensor, out: Tensor) -> Tensor:
    """An in-place operation that ran out of place: later uses of `target` see `out`."""
    mark = getattr(target, "_pfungst", None)
    if out is mode.settle(target):
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


def _property(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...]) -> Any:
    if name in LINEAR:
        return linear(mode, func, name, args, {})
    if name == "get:data":
        return mode.stop(args[0])
    return func(*args)


def _write(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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


def _assigned(mode: RelevanceMode, func: Any, name: str, rule: Any, args: Any, kwargs: Any) -> Any:
    """An operation for which the composite names a rule."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    func = _outplace(func, name)
    if isinstance(rule, Ignore):
        with mode.quiet():
            out = func(*args, **kwargs)
        mode.record(name, out, rule)
        return pytree.tree_map(lambda t: mode.stop(t) if isinstance(t, Tensor) else t, out)
    if isinstance(rule, Pass):
        return activation(mode, func, name, args, kwargs)
    with torch.enable_grad():
        out = func(*args, **kwargs)
    mode.record(name, out, rule)
    return pytree.tree_map(lambda t: mode.mark(t) if isinstance(t, Tensor) else t, out)


# -- operations that autograd already explains ----------------------------------------------------


def linear(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums, means, poolings, reshapes: gradient × input is the Norm rule."""
    if "dropout" in name and kwargs.get("training", len(args) > 2 and args[2]) and kwargs.get("p", 0.5) > 0:
        raise InputError(
            f"dropout is active in module {mode.module_name()!r}", "call model.eval() before explaining it"
        )
    func = _outplace(func, name)
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    if mode.biases is not None and name in ("add", "sub", "rsub", "cat", "stack", "where", "lerp"):
        args = pytree.tree_map(
            lambda t: mode.constant(t, name) if isinstance(t, Tensor) and not mode.tracked(t) else t, args
        )
    operands = [
        t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()
    ]
    positive = name in _KEEPS_SIGN and all(_is_nonnegative(mode, t) for t in operands)
    gate = len(operands) == 1 and _gate(operands[0])
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
    return out if not isinstance(out, Tensor) else _restream(mode, out, name, args)


def _is_nonnegative(mode: RelevanceMode, t: Tensor) -> bool:
    if mode.tracked(t):
        return mode.nonnegative(t)
    return False


def _gate(t: Any) -> bool:
    mark = getattr(t, "_pfungst", None)
    return mark is not None and mark.gate


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


def _restream(mode: RelevanceMode, out: Tensor, name: str, args: Any) -> Tensor:
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


# -- activations ----------------------------------------------------------------------------------


def activation(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Elementwise functions: relevance passes, out = x · const(f(x) / x)."""
    func = _outplace(func, name)
    if not args:
        args = (kwargs.pop("input"),)
    x = args[0]
    if name == "clamp" and kwargs.get("min", args[1] if len(args) > 1 else None) == 0:
        positive = True
    else:
        positive = name in _NONNEGATIVE
    discards = name in ("relu", "relu6") or (positive and name == "clamp")
    x = mode.settle(x, relu=discards)
    rest = mode.settled(args[1:])
    if name == "relu":
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
