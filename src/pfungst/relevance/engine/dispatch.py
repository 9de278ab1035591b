"""The vocabulary: what the mode does with each functional call on a tensor that depends on the input.

=====================================  =================================================================
convolutions, linear                   the composite's rule
batch_norm (evaluation mode)           folded into a neighbouring linear map, else a per-channel map
relu, gelu, silu, tanh, sigmoid, …     relevance passes: out = x · const((f(x) − f(0)) / x) + f(0)
layer_norm, group_norm, rms_norm       the mean is linear, the scale a constant
softmax                                a constant (attention weights)
products of two dependent factors      half to each; a gate (sigmoid, exp, …) is a constant
quotients                              the denominator is a constant
lstm, gru, rnn and their cells         as the cell written by hand
addcmul, lerp, glu, grouped products   as the formula that they abbreviate
cosine similarity, distances           norms are constants; homogeneous of degree one
Fourier transforms, complex numbers    linear: gradient × input is already the Norm rule
sums, means, poolings, reshapes, …     unchanged: gradient × input is already the Norm rule
=====================================  =================================================================
"""

from __future__ import annotations

import types
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pfungst.relevance.engine.attention import attention, softmax
from pfungst.relevance.engine.calls import Handler, outplace, positional, without_flag
from pfungst.relevance.engine.elementwise import activation, power
from pfungst.relevance.engine.experts import grouped_matmul
from pfungst.relevance.engine.formulas import (
    addcdiv,
    addcmul,
    glu,
    lerp,
    monomial,
    remainder,
    running_extreme,
)
from pfungst.relevance.engine.fourier import direction, polar, short_time_fourier, trapezoid
from pfungst.relevance.engine.maps import (
    add_matmul,
    convolution,
    linear_layer,
    matmul,
    transposed_convolution,
)
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.normalisation import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from pfungst.relevance.engine.products import normalize, product, quotient, statistic
from pfungst.relevance.engine.recurrent import cell, layer, pack
from pfungst.relevance.engine.similarities import (
    cdist,
    cosine_similarity,
    dist,
    hypot,
    pairwise_distance,
    pdist,
)
from pfungst.relevance.engine.sums import linear
from pfungst.relevance.engine.vocabulary import ACTIVATIONS, CONSTANT, LIKE, LINEAR
from pfungst.relevance.engine.writes import instead, read_property, write
from pfungst.relevance.rules import Ignore, Pass

#: What has a rule of its own, by the canonical name of the call.
TABLE: dict[str, Handler] = {
    name: handler
    for handler, names in (
        (convolution, "conv1d conv2d conv3d"),
        (transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
        (linear_layer, "linear"),
        (add_matmul, "addmm addbmm baddbmm addmv addr"),
        (matmul, "matmul mm bmm mv rmatmul dot inner"),
        (product, "mul bilinear einsum cross kron outer tensordot"),
        (quotient, "div rdiv floor_divide"),
        (power, "pow rpow float_power square"),
        (statistic, "var std norm vector_norm linalg_vector_norm linalg_norm var_mean std_mean"),
        (normalize, "normalize"),
        (batch_norm, "batch_norm"),
        (instance_norm, "instance_norm"),
        (layer_norm, "layer_norm native_layer_norm"),
        (rms_norm, "rms_norm"),
        (group_norm, "group_norm"),
        (softmax, "softmax log_softmax gumbel_softmax sparse_softmax"),
        (attention, "scaled_dot_product_attention"),
        (addcmul, "addcmul"),
        (addcdiv, "addcdiv"),
        (lerp, "lerp"),
        (glu, "glu"),
        (remainder, "remainder fmod"),
        (monomial, "prod cumprod"),
        (running_extreme, "cummax cummin"),
        (trapezoid, "trapezoid trapz cumulative_trapezoid"),
        (layer, "lstm gru rnn_tanh rnn_relu"),
        (cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
        (pack, "_pack_padded_sequence"),
        (cosine_similarity, "cosine_similarity"),
        (cdist, "cdist"),
        (pairwise_distance, "pairwise_distance"),
        (pdist, "pdist"),
        (dist, "dist"),
        (hypot, "hypot"),
        (short_time_fourier, "stft"),
        (polar, "polar"),
        (direction, "sgn"),
        (grouped_matmul, "_grouped_mm grouped_mm grouped_mm_fallback"),
    )
    for name in names.split()
}

_LINEAR_MAPS = {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)} | {"linear", "addmm"}
_WRITES = {
    "setitem",
    "copy_",
    "index_put_",
    "index_add_",
    "scatter_",
    "fill_diagonal_",
    "masked_scatter_",
} | {
    "zero_",
    "fill_",
}


def dispatch(mode: RelevanceMode, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out one functional call, at least one of whose tensors depends on the input."""
    args, kwargs = positional(name, args, kwargs)
    if name.startswith("get:"):
        return read_property(mode, func, name, args)
    if name in CONSTANT or (name in LIKE and not mode.tracked(args[0])):
        with mode.quiet():
            return func(*mode.stop_all(args), **mode.stop_all(kwargs))
    if name in _WRITES or name.startswith("set:"):
        return write(mode, func, name, args, kwargs)
    base = name[:-1] if name.endswith("_") else name
    args, kwargs, flag = without_flag(func, args, kwargs)
    into = kwargs.pop("out", None)
    out = _carry_out(mode, func, base, args, kwargs)
    if into is not None:
        return _into(mode, into, out)
    if (base != name or flag) and args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
        return instead(mode, args[0], out)
    return out


def _carry_out(
    mode: RelevanceMode, func: Any, base: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    own = base in LINEAR or base in _LINEAR_MAPS
    rule = None if own else mode.composite.rule(mode.site(base))
    if rule is not None:
        return assigned(mode, func, base, rule, args, kwargs)
    if base in TABLE:
        return TABLE[base](mode, func, base, args, kwargs)
    if base in ACTIVATIONS:
        return activation(mode, func, base, args, kwargs)
    if base in LINEAR:
        return linear(mode, func, base, args, kwargs)
    if isinstance(func, types.FunctionType) and func.__module__ in (
        "torch.nn.functional",
        "torch.functional",
    ):
        return expand(mode, func, base, args, kwargs)
    if base == "tolist" and args[0].is_floating_point():
        mode.uncovered(base)  # what becomes of the numbers cannot be seen
    with torch.no_grad():
        out = func(*mode.settled(args), **mode.settled(kwargs))
    if not all(_countable(t) for t in pytree.tree_leaves(out)):
        mode.uncovered(base)
    return out


def _countable(t: Any) -> bool:
    """Whether a result cannot carry relevance: indices, masks, numbers, shapes."""
    if isinstance(t, Tensor):
        return not (t.is_floating_point() or t.is_complex() or t.is_quantized)
    return t is None or isinstance(t, int | float | complex | str | torch.dtype | torch.device | torch.layout)


def _into(mode: RelevanceMode, target: Any, out: Any) -> Any:
    """What a call with ``out=`` leaves behind."""
    if isinstance(target, Tensor) and isinstance(out, Tensor):
        if target.shape != out.shape:
            target.resize_(out.shape)
        return write(mode, Tensor.copy_, "copy_", (target, out), {})
    mode.uncovered("out=")


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


def expand(mode: RelevanceMode, func: types.FunctionType, name: str, args: Any, kwargs: Any) -> Any:
    """Run a function that is written in Python, with the mode seeing the calls inside it."""
    if func in mode.expanding:
        mode.uncovered(name)
    mode.expanding.append(func)
    try:
        with mode:
            return _without_dispatch(func)(*args, **kwargs)
    finally:
        mode.expanding.pop()


def assigned(mode: RelevanceMode, func: Any, name: str, rule: Any, args: Any, kwargs: Any) -> Any:
    """An operation for which the composite names a rule."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    func = outplace(func, name)
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
