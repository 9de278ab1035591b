"""The function mode that rewrites a forward pass so that gradient × input is relevance.

While the mode is active every functional call of the network passes through it. The values that the network
computes stay exactly what they were; only what autograd records is replaced, by the rules of the composite.
The model's modules and parameters are never touched.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pfungst.errors import InputError, UncoveredOperation
from pfungst.relevance.composites import Composite, Site
from pfungst.relevance.engine.folding import Folding, Mark
from pfungst.relevance.rules import _quotient

_RECENT = 64  # marked tensors among which the source of an unseen operation is looked for


@dataclass(frozen=True)
class Record:
    """One operation of a run.

    Attributes:
        name: qualified name of the module that runs it.
        operation: name of the functional call.
        shape: of the output.
        rule: what it got.
        kind: "convolution", "linear" or "other".
        first: a linear map that reads the network's input directly.
        terms: how many products a linear map sums for one output.
    """

    name: str
    operation: str
    shape: tuple[int, ...]
    rule: str
    kind: str = "other"
    first: bool = False
    terms: int = 0


def _version(t: Tensor) -> int:
    try:
        return t._version
    except RuntimeError:  # inference tensors do not count versions
        return 0


_ALIASES = {
    "radd": "add", "rmul": "mul", "rtruediv": "rdiv", "truediv": "div", "true_divide": "div", "divide": "div",
    "multiply": "mul", "subtract": "sub", "iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_",
    "idiv": "div_", "ifloordiv": "floor_divide_", "floordiv": "floor_divide", "ipow": "pow_", "negative": "neg",
    "imod": "remainder_", "mod": "remainder", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose",
    "swapdims": "transpose", "moveaxis": "movedim", "absolute": "abs", "clip": "clamp", "arctan": "atan",
    "permute_copy": "permute", "view_copy": "view", "_unsafe_view": "view", "_to_copy": "to", "_softmax": "softmax",
    "_log_softmax": "log_softmax", "fix": "trunc", "row_stack": "vstack", "true_divide_": "div_", "divide_": "div_",
    "multiply_": "mul_", "subtract_": "sub_", "negative_": "neg_", "absolute_": "abs_", "clip_": "clamp_",
}  # fmt: skip
#: Python's conversions; their functional namesakes mean something else.
_CONVERSIONS = {"__float__", "__int__", "__bool__", "__complex__", "__index__", "__nonzero__", "__long__"}


@cache
def operation_name(func: Any) -> str:
    """The canonical name of a functional call: "conv2d", "add", "relu_" …"""
    name = getattr(func, "__name__", str(func))
    if isinstance(func, torch._ops.OpOverload):  # "relu.default", in exported programs
        name = name.split(".")[0]
    if name in ("__get__", "__set__"):
        return ("get:" if name == "__get__" else "set:") + getattr(func.__self__, "__name__", "?")
    if name in _CONVERSIONS:
        return "item"
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    return _ALIASES.get(name, name)


class RelevanceMode(Folding, TorchFunctionMode):
    """Rewrites functional calls; see :func:`running` for the way to run a model in it.

    Args:
        dispatch: runs an operation that reads something tracked: (mode, function, name, arguments, keywords).
        composite: the rules.
        model: to name modules in tables and errors.
        transforms: run under ``torch.func`` transforms: constants are constants of the innermost derivative
            only, so that explanations can be differentiated again.
        streams: values of the extra input streams of a previous run, in the order of their creation.
        biases: keep the additive constants as leaves, to account for what they absorb.
    """

    def __init__(
        self,
        dispatch: Callable[..., Any],
        composite: Composite,
        model: nn.Module,
        transforms: bool = False,
        streams: Sequence[Tensor] | None = None,
        biases: bool = False,
    ) -> None:
        super().__init__()
        self.dispatch = dispatch
        self.composite = composite
        self.names = {id(m): name for name, m in model.named_modules()}
        self.transforms = transforms
        self.given = None if streams is None else list(streams)
        self.streams: list[Tensor] = []
        self.owners: list[int] = []
        self.biases: list[tuple[str, Tensor]] | None = [] if biases else None
        self.records: list[Record] = []
        self.stack: list[nn.Module] = []
        self.level: int | None = None
        self.base: int | None = None
        self.inputs: list[Tensor] = []
        self.recent: deque[Tensor] = deque(maxlen=_RECENT)
        self.written: set[int] = set()
        self.constants: set[Any] = set()
        self.expanding: list[Any] = []

    # -- what rules may ask -----------------------------------------------------------------------

    def stop(self, t: Tensor) -> Tensor:
        """`t` as a constant of the explanation."""
        if not self.transforms:
            return t.detach()
        if self.level is None:
            return t
        return torch._C._functorch._unwrap_for_grad(t, self.level)

    def quiet(self) -> AbstractContextManager[Any]:
        """Where values are computed that the explanation does not differentiate."""
        return nullcontext() if self.transforms else torch.no_grad()

    def stream(self, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """A second input with the values ``value(x)``, whose relevance is added to that of `x`.

        Where `x` is the network's input (reshaped, perhaps) the stream is a new input of the run;
        elsewhere its relevance is handed to x in proportion.
        """
        mark = self.mark_of(x)
        if mark is None or mark.anchor is None:
            v = self.stop(value(x))
            return self.attach(v, [(x, _quotient(v, self.stop(x), 0.0))])
        base, replay = mark.anchor
        return replay(self.leaf(value(self.stop(base)), base))

    def entry(self, x: Tensor, source: int) -> Tensor:
        """The input number `source` of the network, as the run reads it."""
        if self.transforms:
            x = x.view_as(x)
        else:
            x = (x.detach().clone() if x.is_inference() else x.detach().view_as(x)).requires_grad_()
        return self.mark(x, anchor=(x, lambda t: t), source=source)

    def leaf(self, value: Tensor, base: Tensor) -> Tensor:
        """A new stream with this value, beside the input (or the stream) `base`."""
        mark = self.mark_of(base)
        assert mark is not None
        self.owners.append(mark.source)
        if self.given is not None:
            leaf = self.given[len(self.streams)]
        elif self.transforms:
            leaf = value
        else:
            leaf = value.detach().requires_grad_()
        self.streams.append(leaf)
        return leaf

    @overload
    def constant(self, t: Tensor, what: str) -> Tensor: ...
    @overload
    def constant(self, t: None, what: str) -> None: ...
    def constant(self, t: Tensor | None, what: str) -> Tensor | None:
        """An additive constant; a leaf of its own when the biases' share is accounted for."""
        if t is None or self.biases is None or not t.is_floating_point():
            return t if t is None else t.detach()
        leaf = t.detach().clone().requires_grad_()
        self.biases.append((f"{self.module_name()}:{what}", leaf))
        return leaf

    # -- bookkeeping ------------------------------------------------------------------------------

    def module_name(self) -> str:
        return self.names.get(id(self.stack[-1]), "") if self.stack else ""

    def site(self, operation: str, kind: str = "other", **kwargs: Any) -> Site:
        module = self.stack[-1] if self.stack else None
        return Site(operation, kind, self.module_name(), module, **kwargs)

    def tracked(self, t: Any) -> bool:
        mark = self.mark_of(t)
        return mark is not None and mark.tracked

    def mark(self, t: Tensor, internal: bool = False, **what: Any) -> Tensor:
        """Note that `t` depends on the input; an internal tensor is never seen by the model."""
        if what.pop("nonnegative", False):
            what["nonnegative"] = _version(t)
        t._pfungst = Mark(self, version=_version(t), **what)  # type: ignore[attr-defined]
        if not internal:
            anchor = what.get("anchor")
            (self.inputs if anchor is not None and anchor[0] is t else self.recent).append(t)
        return t

    def nonnegative(self, t: Any) -> bool:
        """Whether every entry of `t` is known to be ≥ 0 from where it comes."""
        mark = self.mark_of(t)
        return mark is not None and mark.nonnegative is not None and mark.nonnegative == _version(t)

    def gate(self, t: Any) -> bool:
        """Whether `t` is a factor that scales signals."""
        mark = self.mark_of(t)
        return mark is not None and mark.gate

    def record(self, operation: str, out: Any, rule: object, site: Site | None = None) -> None:
        shape = tuple(out.shape) if isinstance(out, Tensor) else ()
        name = self.module_name() if site is None else site.name
        text = rule if isinstance(rule, str) else repr(rule)
        m = None if site is None else site.map
        if site is None or m is None:
            self.records.append(Record(name, operation, shape, text))
        else:
            self.records.append(Record(name, operation, shape, text, site.kind, site.first, m.terms))

    # -- linear maps ------------------------------------------------------------------------------

    def settle(self, t: Tensor, relu: bool = False) -> Tensor:
        """`t` with its rule applied, if that was still pending."""
        mark = self.mark_of(t)
        if mark is None:
            return t
        if mark.settled is not None:
            return self.settle(mark.settled)
        if mark.waiting is None:
            return t
        with torch.enable_grad():
            out = self._apply(t, mark.waiting, relu)
        if not relu and out is not t:
            mark.settled = out
        return out

    # -- dispatch ---------------------------------------------------------------------------------

    def place(self) -> str:
        """Where the run is, for messages."""
        return (
            f"module {self.module_name()!r} ({type(self.stack[-1]).__name__})" if self.stack else "the model"
        )

    def uncovered(self, name: str) -> NoReturn:
        """Raise for an operation without a rule."""
        raise UncoveredOperation(
            f"no relevance rule covers the operation {name!r}, called in {self.place()}",
            f"assign one: composite.assign({name!r}, Pass()) for elementwise operations, Ignore() where its "
            "result is a constant of the explanation, Gradient() for its plain derivative",
        )

    def __torch_function__(
        self, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None  # what a model runs under no_grad is explained like the rest
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self._recorded(func, args, kwargs)
        return self._recorded(func, args, kwargs)

    def _recorded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with what autograd needs for it, whatever the model does to save memory."""
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:  # activation checkpointing
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):
                return self._call(func, args, kwargs)
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inside = not torch.is_grad_enabled()  # then an autograd.Function runs its forward
        reentrant = inside and in_reentrant_checkpoint()
        if self.composite.plain:
            if reentrant:
                raise InputError(
                    f"the model checkpoints activations with use_reentrant=True in module {self.module_name()!r}",
                    "switch checkpointing off, or use use_reentrant=False",
                )
            return func(*args, **kwargs)
        leaves = tensors((args, kwargs))
        if any(t.is_inference() for t in leaves):
            args, kwargs = pytree.tree_map(_normal, (args, kwargs))
            leaves = tensors((args, kwargs))
        if inside and not reentrant:
            return func(*self.settled(args), **self.settled(kwargs))
        dependent = False
        for t in leaves:
            dependent = self._depends(t) or dependent
        if not dependent:
            if not any(
                t.requires_grad for t in leaves
            ):  # a view made under no_grad could not be written into
                return func(*args, **kwargs)
            with self.quiet():
                return func(*args, **kwargs)
        name = operation_name(func)
        if not reentrant:
            return self.dispatch(self, func, name, args, kwargs)
        with torch.enable_grad():
            out = self.dispatch(self, func, name, args, kwargs)
            # the checkpoint hides what autograd recorded of its results: an alias keeps it
            return pytree.tree_map(lambda t: self._alias(t) if self.tracked(t) else t, out)

    def _alias(self, t: Tensor) -> Tensor:
        mark = self.mark_of(t)
        assert mark is not None
        if mark.waiting is not None and mark.settled is None:
            return self.mark(t.detach(), waiting=mark.waiting)
        return self.mark(t.detach(), settled=self.settle(t))

    # -- what the mode could not see --------------------------------------------------------------

    def _depends(self, t: Tensor) -> bool:
        """Whether `t` depends on the input; what depends on it through an unseen operation gets a mark or raises."""
        mark = self.mark_of(t)
        if mark is not None:
            if _version(t) != mark.version and mark.settled is None and storage_of(t) not in self.written:
                self.unseen("an operation wrote into a tensor", "")
            return mark.tracked
        if self._foreign(t):
            self.unseen("torch.vmap or another transform of torch.func is used", "vmap")
        if not self._differentiable(t) or t.grad_fn is None or t.grad_fn in self.constants:
            return False
        sources = self._sources(t)
        if not sources:
            self.constants.add(t.grad_fn)  # computed from parameters
            return False
        x = sources[0]
        if self.transforms or len(sources) > 1 or x.shape != t.shape or not _elementwise(t, x):
            self.unseen("an operation made a tensor", t.grad_fn.name())
        value, mark = t.detach(), self.mark_of(x)
        x = self.settle(x)
        with torch.enable_grad():
            out = self.attach(value, [(x, _quotient(value, self.stop(x), 1e-12))])
        self.record(t.grad_fn.name().removesuffix("Backward"), out, "Pass()")
        self.mark(t, settled=self.mark(out, internal=True))
        return True

    def _differentiable(self, t: Tensor) -> bool:
        if self.transforms and self.level is not None:
            return torch._C._functorch.maybe_get_level(t) == self.level
        return t.requires_grad

    def _foreign(self, t: Tensor) -> bool:
        """Whether `t` is inside a transform that the model itself applies, and depends on the input."""
        inner = torch._C._functorch.maybe_current_level()
        if inner is None or inner == self.base:
            return False
        while torch._C._functorch.is_functorch_wrapped_tensor(t):
            if (torch._C._functorch.maybe_get_level(t) or 0) <= (self.base or 0):
                return self.transforms
            t = torch._C._functorch.get_unwrapped(t)
        return (t.requires_grad and t.grad_fn is not None) or (
            t.requires_grad and self.mark_of(t) is not None
        )

    def _sources(self, t: Tensor) -> list[Tensor]:
        """The nearest tensors of this run from which autograd computed `t`."""
        known = {(s.grad_fn, s.output_nr): s for s in self.recent if s.grad_fn is not None}
        leaves = {id(s): s for s in (*self.inputs, *self.recent) if s.grad_fn is None}
        found: dict[int, Tensor] = {}
        nodes: list[tuple[Any, int]] = [(t.grad_fn, t.output_nr)]
        seen: set[Any] = set()
        while nodes:
            node, number = nodes.pop()
            if node is None or (node, number) in seen:
                continue
            seen.add((node, number))
            source = known.get((node, number))
            if source is None and hasattr(node, "variable"):
                source = leaves.get(id(node.variable))
            if source is not None:
                found[id(source)] = source
            else:
                nodes += node.next_functions
        return list(found.values())

    def unseen(self, what: str, made_by: str) -> NoReturn:
        """Raise for an operation that does not pass through the mode."""
        called = f" (autograd calls it {made_by})" if made_by else ""
        raise UncoveredOperation(
            f"{what}{called} whose inside cannot be seen, in or before {self.place()}: a TorchScript function, a "
            "custom autograd.Function that is not elementwise, torch.vmap, or code outside PyTorch",
            "write it with torch operations, or pass the original nn.Module instead of a scripted or traced one",
        )

    def settled(self, tree: Any) -> Any:
        """`tree` (tensors in tuples, lists, dictionaries) with every pending rule applied."""
        return pytree.tree_map(lambda t: self.settle(t) if isinstance(t, Tensor) else t, tree)

    def stop_all(self, tree: Any) -> Any:
        """`tree` with every tensor that depends on the input as a constant; rules go on waiting."""
        return pytree.tree_map(lambda t: self.stop(self._latest(t)) if self.tracked(t) else t, tree)

    def _latest(self, t: Tensor) -> Tensor:
        """What was written into `t` last."""
        mark = self.mark_of(t)
        return t if mark is None or mark.settled is None else self._latest(mark.settled)

    @contextmanager
    def active(self) -> Iterator[RelevanceMode]:
        """Run a model in the mode; global state is restored afterwards, whatever happens inside."""
        self.base = torch._C._functorch.maybe_current_level()
        if self.transforms:
            self.level = self.base
        with _following(self), torch.enable_grad(), self:
            try:
                yield self
            finally:
                self.stack.clear()
                self.recent.clear()


_running: list[tuple[int, RelevanceMode]] = []
_hooks: list[Any] = []
_lock = threading.Lock()


def _of_this_thread(module: nn.Module) -> RelevanceMode | None:
    me = threading.get_ident()
    mode = next((m for thread, m in reversed(_running) if thread == me), None)
    return mode if mode is not None and id(module) in mode.names else None


def _enter(module: nn.Module, args: Any) -> None:
    mode = _of_this_thread(module)
    if mode is not None:
        mode.stack.append(module)


def _leave(module: nn.Module, args: Any, out: Any) -> None:
    mode = _of_this_thread(module)
    if mode is not None and mode.stack and mode.stack[-1] is module:
        mode.stack.pop()


@contextmanager
def _following(mode: RelevanceMode) -> Iterator[None]:
    """Keep `mode.stack` at the modules that run; several threads may explain at once."""
    entry = (threading.get_ident(), mode)
    with _lock:
        if not _running:
            _hooks.append(nn.modules.module.register_module_forward_pre_hook(_enter))
            _hooks.append(nn.modules.module.register_module_forward_hook(_leave, always_call=True))
        _running.append(entry)
    try:
        yield
    finally:
        with _lock:
            _running.remove(entry)
            while _hooks and not _running:
                _hooks.pop().remove()


def in_reentrant_checkpoint() -> bool:
    """Whether the caller runs inside ``torch.utils.checkpoint(..., use_reentrant=True)``."""
    import torch.utils.checkpoint as checkpoint

    code = checkpoint.CheckpointFunction.forward.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _same(t: Tensor) -> Tensor:
    return t


def _normal(t: Any) -> Any:
    """An inference tensor as one that autograd can save."""
    return t.clone() if isinstance(t, Tensor) and t.is_inference() else t


def storage_of(t: Tensor) -> int:
    """Where the memory of `t` begins; 0 inside a transform of torch.func."""
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    out: list[Tensor] = []
    stack = [tree]
    while stack:
        a = stack.pop()
        if isinstance(a, Tensor):
            out.append(a)
        elif isinstance(a, list | tuple):
            stack += a
        elif isinstance(a, dict):
            stack += a.values()
    return out


def _elementwise(t: Tensor, x: Tensor) -> bool:
    """Whether autograd's derivative of `t` by `x` is diagonal: Jᵀv = v ⊙ Jᵀ1 for random v."""
    ones, v = torch.ones_like(t), torch.rand_like(t) + 0.5
    try:
        diagonal, g = (torch.autograd.grad(t, x, w, retain_graph=True)[0] for w in (ones, v))
    except RuntimeError:  # a custom function without a derivative
        return False
    return bool(torch.allclose(g, v * diagonal, rtol=1e-4, atol=1e-7 + 1e-5 * float(diagonal.abs().max())))
