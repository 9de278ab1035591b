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

import math
import types
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from pfungst.errors import InputError, UncoveredOperation
from pfungst.relevance.rules import Ignore, LinearMap, Pass, _quotient

if TYPE_CHECKING:
    from pfungst.relevance.mode import RelevanceMode

Handler = Callable[["RelevanceMode", Any, str, tuple[Any, ...], dict[str, Any]], Any]
TABLE: dict[str, Handler] = {}

#: Linear in the tensors that depend on the input, or selecting among them: left to autograd.
LINEAR = set(
    [
        "get:T",
        "get:mT",
        "get:H",
        "get:mH",
        "get:real",
        "t",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "unflatten",
        "ravel",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "movedim",
        "expand",
        "expand_as",
        "repeat",
        "repeat_interleave",
        "tile",
        "contiguous",
        "clone",
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "cpu",
        "cuda",
        "alias",
        "cat",
        "stack",
        "hstack",
        "vstack",
        "dstack",
        "column_stack",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "select",
        "narrow",
        "getitem",
        "index_select",
        "gather",
        "take_along_dim",
        "masked_select",
        "diagonal",
        "tril",
        "triu",
        "flip",
        "fliplr",
        "flipud",
        "rot90",
        "roll",
        "sum",
        "mean",
        "nanmean",
        "cumsum",
        "neg",
        "pos",
        "rsub",
        "sub",
        "add",
        "where",
        "masked_fill",
        "scatter",
        "scatter_add",
        "index_add",
        "index_copy",
        "index_fill",
        "select_scatter",
        "slice_scatter",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "max_pool2d_with_indices",
        "max_pool1d_with_indices",
        "max_pool3d_with_indices",
        "max_unpool2d",
        "adaptive_max_pool1d_with_indices",
        "adaptive_max_pool2d_with_indices",
        "pad",
        "constant_pad_nd",
        "interpolate",
        "upsample",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "grid_sample",
        "fold",
        "unfold",
        "im2col",
        "col2im",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "max",
        "min",
        "amax",
        "amin",
        "maximum",
        "minimum",
        "topk",
        "sort",
        "kthvalue",
        "median",
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "dropout2d",
        "dropout1d",
        "dropout3d",
        "feature_alpha_dropout",
        "broadcast_to",
        "broadcast_tensors",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "swapaxes",
        "meshgrid",
        "block_diag",
        "abs",
        "lerp",
        "einsum_linear",
        "as_strided",
        "rfft",
        "irfft",
        "fft",
        "ifft",
        "fft2",
        "ifft2",
        "rfft2",
        "irfft2",
        "fftn",
        "ifftn",
        "view_as_real",
        "view_as_complex",
        "complex",
        "requires_grad_",
        "retain_grad",
    ]
)

#: Results that do not depend differentiably on the input: shapes, comparisons, indices.
CONSTANT = set(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "storage_offset",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "data_ptr",
        "item",
        "tolist",
        "len",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "isnan",
        "isinf",
        "isfinite",
        "argmax",
        "argmin",
        "argsort",
        "nonzero",
        "any",
        "all",
        "detach",
        "sign",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
        "floor",
        "ceil",
        "round",
        "bool",
        "int",
        "long",
        "isin",
        "equal",
        "allclose",
        "is_same_size",
        "get_device",
        "element_size",
        "type",
        "repr",
        "str",
        "format",
        "hash",
        "is_nonzero",
        "has_names",
        "one_hot",
        "bernoulli",
        "histc",
        "bincount",
        "is_sparse",
        "result_type",
        "can_cast",
        "is_inference",
        "is_signed",
        "is_conj",
        "is_neg",
        "numpy",
        "is_tensor",
        "has_names",
        "apply",
        "register_hook",
    ]
)

#: Elementwise functions through which relevance passes.
ACTIVATIONS = set(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "rrelu",
        "prelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardtanh",
        "softsign",
        "tanhshrink",
        "hardshrink",
        "softshrink",
        "tanh",
        "sigmoid",
        "hardsigmoid",
        "softplus",
        "logsigmoid",
        "clamp",
        "clamp_min",
        "clamp_max",
        "threshold",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "atan",
        "erf",
        "expm1",
        "log1p",
        "sinh",
        "asinh",
        "nan_to_num",
    ]
)
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
    if name in CONSTANT:
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


def expand(mode: RelevanceMode, func: types.FunctionType, args: Any, kwargs: Any) -> Any:
    """Run a function that is written in Python, with the mode seeing the calls inside it."""
    from pfungst.relevance.mode import _without_dispatch

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


# -- linear maps with rules -----------------------------------------------------------------------


def _bind(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = dict(zip(names.split(), args, strict=False))
    bound.update(kwargs)
    return bound


def _tuple(v: Any, n: int) -> tuple[int, ...]:
    return (v,) * n if isinstance(v, int) else tuple(v) if not isinstance(v, str) else (0,) * n


def _constant_weights(mode: RelevanceMode, name: str, *tensors: Any) -> None:
    for t in tensors:
        if mode.tracked(t):
            raise UncoveredOperation(
                f"the weights of {name!r} in module {mode.module_name()!r} are computed from the input",
                f"assign a rule: composite.assign({name!r}, Gradient()) or Ignore()",
            )


@handles("conv1d", "conv2d", "conv3d")
def convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input weight bias stride padding dilation groups", args, kwargs)
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    _constant_weights(mode, name, weight, bias)
    n = weight.ndim - 2
    rest = (b.get("stride", 1), b.get("padding", 0), b.get("dilation", 1), b.get("groups", 1))
    m = LinearMap(
        lambda x, w, b: func(x, w, b, *rest),
        weight.detach(),
        None if bias is None else bias.detach(),
        groups=rest[3],
    )
    site = mode.site(name, "convolution", kernel=tuple(weight.shape[2:]), stride=_tuple(rest[0], n))
    return mode.linear(site, x, m)


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input weight bias stride padding output_padding groups dilation", args, kwargs)
    x, weight, bias = b["input"], b["weight"], b.get("bias")
    _constant_weights(mode, name, weight, bias)
    rest = (
        b.get("stride", 1),
        b.get("padding", 0),
        b.get("output_padding", 0),
        b.get("groups", 1),
        b.get("dilation", 1),
    )
    m = LinearMap(
        lambda x, w, b: func(x, w, b, *rest),
        weight.detach(),
        None if bias is None else bias.detach(),
        out_axis=1,
        groups=rest[3],
    )
    site = mode.site(
        name, "convolution", kernel=tuple(weight.shape[2:]), stride=_tuple(rest[0], weight.ndim - 2)
    )
    return mode.linear(site, x, m)


def _linear_map(mode: RelevanceMode, name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    m = LinearMap(F.linear, weight.detach(), None if bias is None else bias.detach(), channel_axis=-1)
    return mode.linear(mode.site(name, "linear"), x, m)


@handles("linear")
def linear_layer(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input weight bias", args, kwargs)
    if mode.tracked(b["weight"]):
        out = product(
            mode, torch.matmul, "matmul", (b["input"], mode.settle(b["weight"]).transpose(-1, -2)), {}
        )
        return out if b.get("bias") is None else mode.mark(out + b["bias"])
    return _linear_map(mode, name, b["input"], b["weight"], b.get("bias"))


@handles("addmm", "addbmm", "baddbmm")
def add_matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input mat1 mat2", args, kwargs)
    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    if name == "addmm" and mode.tracked(b["mat1"]) and not mode.tracked(b["mat2"]) and alpha == beta == 1:
        if not mode.tracked(b["input"]) and b["input"].ndim == 1:
            return _linear_map(mode, "linear", b["mat1"], b["mat2"].t(), b["input"])
    out = product(mode, torch.matmul, "matmul", (b["mat1"], b["mat2"]), {}) * alpha
    return mode.mark(out + beta * mode.settle(b["input"]))


@handles("matmul", "mm", "bmm", "mv", "rmatmul", "dot", "inner")
def matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    a, b = (*args, *kwargs.values())[:2]
    if name == "rmatmul":
        a, b = b, a
        func = torch.matmul
    if not mode.tracked(b) and b.ndim == 2 and name in ("matmul", "mm", "rmatmul"):
        return _linear_map(mode, "linear", a, b.t(), None)
    return product(mode, func, name, (a, b), {})


# -- products, quotients, powers ------------------------------------------------------------------


@handles("mul", "bilinear", "einsum", "cross", "kron", "outer", "tensordot", "addcmul", "multiply")
def product(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Products of dependent factors: half of the relevance to each; gates are constants."""
    func = _outplace(func, name)
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs))
    factors = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and mode.tracked(t)]
    signals = [i for i in factors if not _gate(flat[i])] or factors
    positive = all(mode.nonnegative(t) for t in flat if isinstance(t, Tensor | int | float))
    if name == "addcmul" and factors:
        raise UncoveredOperation(
            "addcmul with dependent factors has no rule", "write it as a sum of products"
        )

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
    mode.mark(out, nonnegative=positive, gate=len(factors) > 0 and all(_gate(flat[i]) for i in factors))
    if len(factors) > 1:
        gates = len(factors) - len(signals)
        mode.record(name, out, f"1/{len(signals)} to each factor" if not gates else "gate is a constant")
    return _restream(mode, out, name, args) if name == "mul" and len(factors) == 1 else out


@handles("div", "rdiv", "floor_divide")
def quotient(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The numerator is linear, the denominator a constant."""
    a, b = mode.settle(args[0]), mode.settle(args[1]) if isinstance(args[1], Tensor) else args[1]
    if name == "rdiv":
        a, b = b, a
    if not mode.tracked(a):  # const / x: a scale that depends on the input
        return activation(mode, lambda t: torch.div(a, t), "reciprocal", (b,), {})
    positive = mode.nonnegative(a) and (mode.nonnegative(b) or (not isinstance(b, Tensor) and b > 0))
    with torch.enable_grad():
        out = torch.div(a, mode.stop(b) if mode.tracked(b) else b, **kwargs)
    mode.mark(out, nonnegative=positive, gate=_gate(a))
    if mode.tracked(b):
        mode.record("div", out, "denominator is a constant")
        return out
    return _restream(mode, out, "div", (a, b))


@handles("pow", "square")
def power(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x^p = x · const(x^(p−1)): relevance passes."""
    out = activation(mode, _outplace(func, name), name, args, kwargs)
    out._pfungst.gate = True  # type: ignore[attr-defined]
    return out


@handles("var", "std", "norm", "vector_norm", "linalg_vector_norm", "linalg_norm", "var_mean", "std_mean")
def statistic(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Norms and spreads: homogeneous of degree one (two for var), so the gradient conserves up to the degree."""
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


@handles("normalize")
def normalize(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """x / ‖x‖ with the norm held constant."""
    b = _bind("input p dim eps", args, kwargs)
    x = mode.settle(b["input"])
    with mode.quiet():
        norm = (
            mode.stop(x).norm(b.get("p", 2.0), b.get("dim", 1), keepdim=True).clamp_min(b.get("eps", 1e-12))
        )
    with torch.enable_grad():
        out = x / norm
    mode.record(name, out, "norm is a constant")
    return mode.mark(out, nonnegative=mode.nonnegative(x))


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


# -- normalisation --------------------------------------------------------------------------------


@handles("batch_norm", "instance_norm")
def batch_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    if name == "instance_norm":
        b = _bind("input running_mean running_var weight bias use_input_stats momentum eps", args, kwargs)
        x = mode.settle(b["input"])
        return scale_norm(
            mode, x, tuple(range(2, x.ndim)), b.get("weight"), b.get("bias"), b.get("eps", 1e-5), 1, name
        )
    b = _bind("input running_mean running_var weight bias training momentum eps", args, kwargs)
    x, mean, var = b["input"], b["running_mean"], b["running_var"]
    if b.get("training", False) or mean is None:
        raise InputError(
            f"BatchNorm in module {mode.module_name()!r} uses the statistics of the batch",
            "call model.eval() before explaining it",
        )
    scale = torch.rsqrt(var.detach() + b.get("eps", 1e-5))
    if b.get("weight") is not None:
        scale = scale * b["weight"].detach()
    shift = -mean.detach() * scale
    if b.get("bias") is not None:
        shift = shift + b["bias"].detach()

    def value(t: Tensor) -> Tensor:
        return F.batch_norm(t, mean, var, b.get("weight"), b.get("bias"), False, 0.0, b.get("eps", 1e-5))

    return mode.batch_norm(x, scale, shift, value)


def scale_norm(
    mode: RelevanceMode,
    x: Tensor,
    dims: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    channel: int | None,
    name: str,
    centred: bool = True,
) -> Tensor:
    """Normalisation over `dims`: the mean is linear, the scale a constant (Ali et al. 2022)."""
    x = mode.settle(x)
    with mode.quiet():
        x0 = mode.stop(x).float() if x.dtype in (torch.float16, torch.bfloat16) else mode.stop(x)
        centre0 = x0 - x0.mean(dims, keepdim=True) if centred else x0
        scale = torch.rsqrt(centre0.square().mean(dims, keepdim=True) + eps)
    view = [1, -1, *[1] * (x.ndim - 2)] if channel == 1 else None
    with torch.enable_grad():
        out = (x - x.mean(dims, keepdim=True) if centred else x) * scale.to(x.dtype)
        if weight is not None:
            out = out * (weight.detach().reshape(view) if view else weight.detach())
        if bias is not None:
            c = mode.constant(bias, "bias")
            assert c is not None
            out = out + (c.reshape(view) if view else c)
    mode.record(name, out, "mean linear, scale constant" if centred else "scale constant")
    return mode.mark(out)


@handles("layer_norm", "native_layer_norm")
def layer_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    b = _bind("input normalized_shape weight bias eps", args, kwargs)
    dims = tuple(range(-len(_tuple(b["normalized_shape"], 1)), 0))
    x = b["input"]
    return scale_norm(mode, x, dims, b.get("weight"), b.get("bias"), b.get("eps", 1e-5), None, "layer_norm")


@handles("rms_norm")
def rms_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input normalized_shape weight eps", args, kwargs)
    x = b["input"]
    dims = tuple(range(-len(_tuple(b["normalized_shape"], 1)), 0))
    eps = b.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return scale_norm(mode, x, dims, b.get("weight"), None, eps, None, name, centred=False)


@handles("group_norm")
def group_norm(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    b = _bind("input num_groups weight bias eps", args, kwargs)
    x, groups = mode.settle(b["input"]), b["num_groups"]
    with torch.enable_grad():
        split = mode.mark(x.reshape(x.shape[0], groups, -1))
    out = scale_norm(mode, split, (-1,), None, None, b.get("eps", 1e-5), None, name)
    view = [1, -1, *[1] * (x.ndim - 2)]
    with torch.enable_grad():
        out = out.reshape(x.shape)
        if b.get("weight") is not None:
            out = out * b["weight"].detach().reshape(view)
        if b.get("bias") is not None:
            bias = mode.constant(b["bias"], "bias")
            assert bias is not None
            out = out + bias.reshape(view)
    return mode.mark(out)


# -- attention ------------------------------------------------------------------------------------


@handles("softmax", "log_softmax", "softmin", "gumbel_softmax", "sparse_softmax")
def softmax(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Attention weights are constants; relevance flows through the values."""
    if name != "softmax":
        mode.uncovered(name)
    with mode.quiet():
        out = mode.stop(func(*(mode.stop_all(args)), **mode.stop_all(kwargs)))
    mode.record(name, out, "constant")
    return out


@handles("scaled_dot_product_attention")
def attention(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Queries and keys give constant weights; values propagate linearly."""
    b = _bind("query key value attn_mask dropout_p is_causal scale enable_gqa", args, kwargs)
    if b.get("dropout_p", 0.0):
        raise InputError(
            f"attention dropout is active in module {mode.module_name()!r}", "call model.eval() first"
        )
    q, k, v = (mode.settle(b[n]) for n in ("query", "key", "value"))
    with mode.quiet():
        q, k = mode.stop(q), mode.stop(k)
        if b.get("enable_gqa"):
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        scale = b.get("scale")
        weights = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        mask = b.get("attn_mask")
        if mask is not None:
            mask = mode.stop(mode.settle(mask))
            weights = weights.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else weights + mask
        if b.get("is_causal"):
            causal = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
            weights = weights.masked_fill(~causal, -math.inf)
        weights = weights.softmax(-1).to(v.dtype)
    with torch.enable_grad():
        if b.get("enable_gqa"):
            v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
        out = weights @ v
    mode.record(name, out, "attention weights constant, values linear")
    return mode.mark(out)
