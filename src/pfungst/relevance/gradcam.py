"""GradCAM (Selvaraju et al. 2017) for layers with positions: convolutions in 1, 2 and 3 dimensions, token
grids."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pfungst.errors import InputError
from pfungst.relevance import positions
from pfungst.relevance.engine.eager import eager
from pfungst.relevance.engine.inputs import check_input
from pfungst.relevance.engine.run import check_model, select
from pfungst.relevance.layout import Wish, stated
from pfungst.relevance.outputs import cotangent

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU),
    *(nn.Identity, nn.Dropout),
)
_REENTRANT = "pass use_reentrant=False to checkpoint, or switch checkpointing off"
_KINDS = ("Conv", "ConvTranspose", "BatchNorm", "InstanceNorm", "MaxPool", "AvgPool")
#: Modules whose outputs PyTorch defines as (N, C, *grid), by the number of axes of the grid.
_CHANNELS_FIRST = {d: (*(getattr(nn, f"{kind}{d}d") for kind in _KINDS), nn.Upsample) for d in (2, 3)}


class _Differentiable(TorchFunctionMode):
    """Keeps gradients on where a forward pass switches them off with no_grad or inference_mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and args and not args[0]:
            return None
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            return func(*args, **(kwargs or {}))


class _Reached(BaseException):
    """The layer has run; the rest of the forward pass is not needed."""


def _module(model: nn.Module, layer: str | nn.Module) -> tuple[nn.Module, str]:
    modules = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return module, name or type(layer).__name__
        raise InputError(
            f"the layer {type(layer).__name__} is not part of the model", "pass one of its modules"
        )
    if layer not in modules:
        near = [n for n in modules if n.startswith(layer.split(".")[0])] or list(modules)[1:]
        raise InputError(f"the model has no layer {layer!r}", f"some of its layers: {', '.join(near[:12])}")
    return modules[layer], layer


def _pick(out: Any, layer: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The tensor to explain of what a layer returns, and how to put another in its place."""
    if isinstance(out, Tensor):
        return out, lambda t: t
    if isinstance(out, Mapping):
        chosen = out[_named(out, out, layer)]
    elif dataclasses.is_dataclass(out):
        key = _named({f.name: getattr(out, f.name) for f in dataclasses.fields(out)}, out, layer)
        return getattr(out, key), lambda t: dataclasses.replace(out, **{key: t})  # type: ignore[type-var]
    elif isinstance(out, Sequence) and out and isinstance(out[0], Tensor):
        chosen = out[0]
        maps = [t for t in out if isinstance(t, Tensor) and t.ndim == chosen.ndim > 3]
        if len(maps) > 1:
            raise InputError(
                f"layer {layer} returns {len(maps)} maps", "choose a layer inside it that returns one of them"
            )
    else:
        raise InputError(
            f"layer {layer} returns a {type(out).__name__}", "choose a layer that returns a tensor"
        )
    leaves, spec = pytree.tree_flatten(out)
    return chosen, lambda t: pytree.tree_unflatten([t if v is chosen else v for v in leaves], spec)


def _named(fields: Mapping[str, Any], out: Any, layer: str) -> str:
    """The field to explain of those that a layer returns."""
    tensors = [key for key, value in fields.items() if isinstance(value, Tensor)]
    if "last_hidden_state" in tensors:
        return "last_hidden_state"
    if len(tensors) != 1:
        raise InputError(
            f"layer {layer} returns {type(out).__name__} with tensors {tensors}",
            "choose a layer inside it that returns one tensor",
        )
    return tensors[0]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda m, args, out: hook(out))
    try:
        yield
    finally:
        handle.remove()


def _leaf(x: Tensor) -> Tensor:
    # a copy that the model may write into, and that makes all that depends on it differentiable
    return x.detach().clone().requires_grad_().clone()


def _response(model: nn.Module, module: nn.Module, name: str, call: int) -> Callable[[Tensor], Tensor]:
    """Inputs → output of a layer at its call number `call`, by a forward pass that stops there."""

    def respond(x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        calls = 0

        def keep(out: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > call:
                kept.append(_pick(out, name)[0].detach().clone())
                raise _Reached

        with _hooked(module, keep), _Differentiable():
            try:
                model(_leaf(x))
            except _Reached:
                pass
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise InputError(
                    f"the model cannot process a batch of {len(x)} copies of an input, with which the "
                    f"positions of layer {name} are found: {error}",
                    "pass channels_last=, and for tokens grid= and prefix=",
                ) from error
        if not kept:
            raise InputError(f"layer {name} does not run for every batch", "choose another layer")
        return kept[0]

    return respond


def _channels_first(respond: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, a: Tensor) -> bool:
    """Whether the last operation in a layer that is not elementwise defines its output as (N, C, *grid).

    Channels as many as rows or columns do not count: the layer could permute axes without changing the shape.
    """
    last: list[tuple[nn.Module, Any]] = []
    leaves = [m for m in module.modules() if not any(m.children()) and not isinstance(m, _ELEMENTWISE)]
    handles = [m.register_forward_hook(lambda m, args, out: last.append((m, out))) for m in leaves]
    try:
        respond(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not last or a.ndim != x.ndim or a.ndim < 4 or a.shape[1] in a.shape[2:]:
        return False
    m, out = last[-1]
    return (
        isinstance(m, _CHANNELS_FIRST[a.ndim - 2])
        and isinstance(out, Tensor)
        and out.shape[1:] == a.shape[1:]
    )


def _declared(model: nn.Module) -> int | None:
    """The number of class tokens and registers that a model says it has."""
    counts = {getattr(m, "num_prefix_tokens", None) for m in model.modules()}
    numbers = [c for c in counts if isinstance(c, int)]
    return numbers[0] if len(numbers) == 1 else None


def _forward_and_gradient(
    model: nn.Module, x: Tensor, module: nn.Module, name: str, output: Any, call: int | None
) -> tuple[Tensor, Tensor, int]:
    """A layer's output, the score's gradient by it, and the number of the call."""
    kept: list[Tensor] = []
    replaying = False

    def keep(out: Any) -> Any:
        first, replace = _pick(out, name)
        if not first.is_floating_point():
            raise InputError(
                f"layer {name} returns {first.dtype}", "choose a layer that returns real numbers"
            )
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise InputError(
                f"layer {name} runs inside an autograd.Function (reentrant checkpointing): no gradient there",
                _REENTRANT,
            )
        # other layers may write into what they get, or into what this one got: both keep a copy of their own
        own = first.clone()
        if not own.requires_grad:
            own = own.detach().requires_grad_()
        if not replaying:
            kept.append(own)
        return replace(own.clone())

    with _hooked(module, keep), _Differentiable():
        out = select(model(_leaf(x)), output if callable(output) else None)
        if not kept:
            raise InputError(f"layer {name} does not run in the forward pass", "choose another layer")
        if call is None and len(kept) > 1:
            raise InputError(
                f"layer {name} runs {len(kept)} times in a forward pass",
                f"say which with call=0 … {len(kept) - 1}, or choose a layer that runs once",
            )
        number = range(len(kept))[call or 0] if -len(kept) <= (call or 0) < len(kept) else None
        if number is None:
            raise InputError(
                f"layer {name} has no call {call}", f"it runs {len(kept)} times, 0 … {len(kept) - 1}"
            )
        weights = cotangent(out.detach(), None if callable(output) else output)
        score = (out * weights).reshape(len(out), -1).sum(1)
        if not bool(torch.isfinite(score).all()):
            raise InputError("the score is NaN or infinite", "check the model and the inputs")
        replaying = True
        g = _gradient(score, kept[number], name)
    return kept[number].detach(), g, number


def _gradient(score: Tensor, at: Tensor, name: str) -> Tensor:
    g = None
    if score.requires_grad:
        try:
            (g,) = torch.autograd.grad(score.sum(), at, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error) and "checkpoint" not in str(error).lower():
                raise
            raise InputError(
                "the model uses reentrant activation checkpointing, which has no gradient of a layer",
                _REENTRANT,
            ) from error
    if g is None:
        raise InputError(f"the score does not depend on layer {name}", "choose a layer before the output")
    if not bool(torch.isfinite(g).all() & torch.isfinite(at).all()):
        raise InputError(
            f"layer {name} or the score's gradient by it is NaN or infinite",
            "check the model, or use float32",
        )
    return g


_FOUND: weakref.WeakKeyDictionary[nn.Module, dict[Any, positions.Layout]] = weakref.WeakKeyDictionary()


def _layout(
    model: nn.Module,
    module: nn.Module,
    name: str,
    number: int,
    x: Tensor,
    a: Tensor,
    wish: Wish,
    resize: bool,
) -> positions.Layout:
    """Where the positions are in the layer's output `a`: as stated, else as found, which is found once for
    each shape."""
    layout = stated(a.shape, x, wish, resize)
    if layout is not None:
        return layout
    known, key = _FOUND.setdefault(module, {}), (number, x.shape, a.shape, wish, resize)
    if key in known:
        return known[key]
    respond = _response(model, module, name, number)
    try:
        layout = positions.find(respond, x, a.shape, name, wish, _declared(model))
    except positions.Unclear:
        if wish.channels_last is True or not _channels_first(respond, module, x, a):
            raise
        layout = stated(a.shape, x, dataclasses.replace(wish, channels_last=False), resize)
        if layout is None:
            raise
    known[key] = layout
    return layout


@eager
def gradcam(
    model: nn.Module,
    x: Tensor,
    layer: str | nn.Module,
    output: Any = None,
    *,
    resize: bool = True,
    relu: bool = True,
    channels_last: bool | None = None,
    grid: Sequence[int] | None = None,
    prefix: int | None = None,
    call: int | None = None,
) -> Tensor:
    """Where a layer's channels speak for a score: ReLU(Σ_c mean(∂score/∂a_c) a_c), the mean over positions.

    Which axes of the layer's output are positions, how tokens are laid out on the grid and how many class
    tokens and registers there are is found by the parts of the input that they respond to: the forward pass
    up to the layer is repeated for one input, disturbed in four stripes along each axis. Where this does not
    leave one answer, an error names the argument that decides; no layout is guessed.

    Args:
        model: module in evaluation mode; not changed. Gradients are kept where its forward pass switches them
            off.
        x: inputs (N, C, H, W), (N, C, T, H, W), (N, C, T), (N, T) or, like text, (N, L, D); floating point,
            finite.
        layer: qualified name or module whose output has positions in any layout, such as (N, C, h, w),
            (N, h, w, C), (N, L, C). Of a tuple its first tensor, of a mapping or dataclass its
            ``last_hidden_state`` or only tensor.
        output: which score, as in :func:`attribute`.
        resize: interpolate linearly to the size of the input; otherwise the grid of the layer.
        relu: drop evidence against the score.
        channels_last: whether the last axis of the layer's output are channels; otherwise the first after the
            batch.
        grid: rows and columns of tokens, in general the number of positions along each axis of the result.
        prefix: number of tokens before the grid, which have no position.
        call: which call of a layer that runs several times in a forward pass, from 0, negative from the end.

    Returns:
        (N, H, W), (N, T, H, W), (N, T) or (N, L), in units of the score's gradient times activation; with
        ``resize=False`` (N, *grid).

    Raises:
        InputError: unknown layer, one without positions or without effect on the score, an ambiguous layout,
            or numbers that are not finite.
    """
    model, x = check_model(model), check_input(x)
    module, name = _module(model, layer)
    if not 2 <= x.ndim <= 5:
        raise InputError(
            f"the input has shape {tuple(x.shape)}", "pass (N, T), (N, C, T), (N, C, H, W) or (N, C, T, H, W)"
        )
    wish = Wish(channels_last, None if grid is None else tuple(int(side) for side in grid), prefix)
    with torch.inference_mode(False), torch.enable_grad():
        a, g, number = _forward_and_gradient(model, x, module, name, output, call)
        if a.ndim < 3:
            raise InputError(
                f"layer {name} has output of shape {tuple(a.shape)}, without positions",
                "choose an earlier layer",
            )
        layout = _layout(model, module, name, number, x, a, wish, resize)
    g, a = layout(g), layout(a)
    cam = (g.mean(tuple(range(2, g.ndim)), keepdim=True) * a).sum(1)
    cam = cam.clamp(min=0) if relu else cam
    size = tuple(x.shape[axis] for axis in layout.inputs)
    if resize and cam.shape[1:] != size:
        cam = F.interpolate(cam[:, None], size, mode=_INTERPOLATION[len(size)], align_corners=False)[:, 0]
    return cam
