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
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pfungst.errors import InputError, UncoveredOperation
from pfungst.relevance.composites import Composite, Site
from pfungst.relevance.rules import Call, Epsilon, Ignore, LinearMap, Pass, Rule, _quotient

_RECENT = 64  # marked tensors among which the source of an unseen operation is looked for


class Attach(torch.autograd.Function):
    """The value z with the derivative Σ c · ∂ẑ: ``Attach.apply([z], ẑ₁, c₁, ẑ₂, c₂, …)``; c = None is 1.

    z comes in a list because autograd forbids in-place changes of an argument that is handed back.
    """

    @staticmethod
    def forward(ctx: Any, z: list[Tensor], *terms: Tensor | None) -> Tensor:
        ctx.save_for_backward(*terms[1::2])
        return z[0].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out: list[Tensor | None] = [None]
        for i, c in enumerate(ctx.saved_tensors):
            needed = ctx.needs_input_grad[1 + 2 * i]
            out += [None if not needed else grads[0] if c is None else grads[0] * c, None]
        return tuple(out)


@dataclass
class Waiting:
    """A linear map (or a BatchNorm) whose rule is applied when its consumer is known.

    A BatchNorm that follows is folded into the map; a ReLU that follows discards negative outputs.
    """

    x: Tensor
    site: Site
    rule: Rule | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    folded: tuple[str, ...] = ()
    native: bool = False
    z: Tensor | None = None


@dataclass
class Mark:
    """What the mode knows about a tensor.

    Attributes:
        owner: the run that made it; tensors that a model kept from an earlier run are constants.
        tracked: it depends on the input.
        nonnegative: its version for which every entry is known to be ≥ 0.
        waiting: the rule that is applied when its consumer is known.
        settled: what stands for it: with its rule applied, or what was written into it.
        anchor: the network's input (or a normalised input) and how it was reshaped into this.
        gate: a factor that scales signals, a constant in products.
        version: of the tensor when it was marked.
    """

    owner: RelevanceMode
    tracked: bool = True
    nonnegative: int | None = None
    waiting: Waiting | None = None
    settled: Tensor | None = None
    anchor: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None
    gate: bool = False
    version: int = 0


@dataclass(frozen=True)
class Record:
    """One operation of a run, for :meth:`Composite.describe`."""

    name: str
    operation: str
    shape: tuple[int, ...]
    rule: str


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


class RelevanceMode(TorchFunctionMode):
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
        return replay(self.leaf(value(self.stop(base))))

    def leaf(self, value: Tensor) -> Tensor:
        """A new input stream with this value."""
        if self.given is not None:
            leaf = self.given[len(self.streams)]
        elif self.transforms:
            leaf = value
        else:
            leaf = value.detach().requires_grad_()
        self.streams.append(leaf)
        return leaf

    def attach(self, z: Tensor, terms: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """The value z with the derivative of Σ c ẑ; c = None is 1."""
        if not self.transforms:
            return Attach.apply([z], *(t for term in terms for t in term))
        out = self.stop(z)
        for zhat, c in terms:
            change = zhat - self.stop(zhat)
            out = out + (change if c is None else change * self.stop(c))
        return out

    def exactly(self, value: Tensor, out: Tensor) -> Tensor:
        """`value`, which the model's own call gave, with the derivative of `out`, which rewrites that call."""
        return self.attach(self.stop(value).to(out.dtype), [(out, None)])

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

    def mark_of(self, t: Any) -> Mark | None:
        """The mark that this run set on `t`."""
        mark = getattr(t, "_pfungst", None)
        return mark if mark is not None and mark.owner is self else None

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
        self.records.append(Record(name, operation, shape, rule if isinstance(rule, str) else repr(rule)))

    def hold(self, z: Tensor, waiting: Waiting) -> Tensor:
        """A value whose rule waits; it requires gradients, so that what an unseen operation makes of it shows."""
        if not self.transforms:
            z.requires_grad_()
        return self.mark(z, waiting=waiting)

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
            out = self._apply(t if mark.waiting.z is None else mark.waiting.z, mark.waiting, relu)
        if not relu and out is not t:
            mark.settled = out
        return out

    def _apply(self, z: Tensor, p: Waiting, relu: bool) -> Tensor:
        if p.site.map is None:  # a BatchNorm that no linear map follows
            assert p.scale is not None
            assert p.shift is not None
            out = p.x * p.scale + self.constant(p.shift, "shift")
            self.record(p.site.operation, out, "per-channel linear map", p.site)
            return self.mark(out, internal=True)
        m, rule = p.site.map, p.rule
        note = "".join(f", {f}" for f in p.folded)
        self.record(p.site.operation, z, f"{rule!r}{note}", p.site)
        if p.native:
            epsilon = rule.epsilon if isinstance(rule, Epsilon) else 0.0
            if epsilon == 0:
                return self.mark(z, internal=True)
            z0 = self.stop(z)
            return self.mark(self.attach(z0, [(z, _quotient(z0, z0, epsilon))]), internal=True)
        bias = self.constant(m.bias, "bias")
        assert rule is not None
        if bias is not m.bias:
            m = replace(m, bias=bias)
        call = Call(m, p.x, self.stop(z), self.nonnegative(p.x), relu, self)
        return self.mark(self.attach(call.z, rule.terms(call)), internal=True)

    def linear(self, site: Site, x: Tensor, m: LinearMap) -> Tensor:
        """Call a linear map; its rule waits for the consumer."""
        mark = self.mark_of(x)
        before = mark.waiting if mark is not None and mark.settled is None else None
        value, original = x, m
        prefix: tuple[str, ...] = ()
        if before is not None and before.site.map is None and (site.kind == "convolution" or x.ndim == 2):
            assert before.scale is not None
            assert before.shift is not None
            m = _fold_before(m, before.scale, before.shift, self.stop(before.x))
            x, prefix = before.x, (f"{before.site.name or 'BatchNorm'} folded in",)
        else:
            x = value = self.settle(x)
        mark = self.mark_of(x)
        site = replace(site, first=mark is not None and mark.anchor is not None, map=m)
        rule = self.composite.rule(site)
        if rule is None:
            self.uncovered(site.operation)
        if isinstance(rule, Pass):
            rule.terms(None)  # type: ignore[arg-type]  # raises: not for linear maps
        if isinstance(rule, Ignore):  # a constant at once, so that what reads it sees one
            with self.quiet():
                z = self.stop(original(self.stop(value), original.weight, original.bias))
            self.record(site.operation, z, rule, site)
            return self.mark(z, tracked=False)
        if rule.native:
            with torch.enable_grad():
                z = m(x, m.weight, self.constant(m.bias, "bias"))
            return self.mark(z, waiting=Waiting(x, site, rule, folded=prefix, native=True))
        with self.quiet():
            z = original(self.stop(value), original.weight, original.bias)
        return self.hold(z, Waiting(x, site, rule, folded=prefix))

    def batch_norm(
        self, x: Tensor, scale: Tensor, shift: Tensor, value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A BatchNorm in evaluation mode: folded into the map before it, or left for the one after it."""
        mark = self.mark_of(x)
        before = mark.waiting if mark is not None and mark.settled is None else None
        view = [1, -1, *[1] * (x.ndim - 2)]
        if before is not None and before.site.map is not None and before.site.map.foldable:
            site = replace(before.site, map=_fold_after(before.site.map, scale, shift))
            folded = (*before.folded, f"{self.module_name() or 'BatchNorm'} folded in")
            if not before.native:
                with self.quiet():
                    z = value(self.stop(x))
                return self.hold(z, replace(before, site=site, folded=folded))
            else:
                z = (x if before.z is None else before.z) * scale.reshape(view) + self.constant(
                    shift.reshape(view), "shift"
                )
            return self.mark(z, waiting=replace(before, site=site, folded=folded, z=None))
        x = self.settle(x)
        with self.quiet():
            z = value(self.stop(x))
        return self.hold(
            z, Waiting(x, self.site("batch_norm"), None, scale.reshape(view), shift.reshape(view))
        )

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
            return self.mark(t.detach(), waiting=replace(mark.waiting, z=t if mark.waiting.native else None))
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


def _fold_after(m: LinearMap, scale: Tensor, shift: Tensor) -> LinearMap:
    """The map followed by the per-channel y·scale + shift."""
    if m.out_axis == 0:
        weight = m.weight * scale.reshape(-1, *[1] * (m.weight.ndim - 1))
    else:  # transposed convolution: (in, out / groups, ...)
        per_group = scale.reshape(m.groups, 1, -1).expand(m.groups, m.weight.shape[0] // m.groups, -1)
        weight = m.weight * per_group.reshape(m.weight.shape[0], -1, *[1] * (m.weight.ndim - 2))
    bias = shift if m.bias is None else m.bias * scale + shift
    return replace(m, weight=weight, bias=bias)


def _fold_before(m: LinearMap, scale: Tensor, shift: Tensor, x: Tensor) -> LinearMap:
    """The map preceded by the per-channel x·scale + shift: scaled weights, and the shift's image as bias.

    With zero padding that image differs at the border, so it is kept as a map of its own.
    """
    flat = scale.flatten()
    if m.out_axis == 0:
        per_input = flat.reshape(m.groups, -1).repeat_interleave(m.weight.shape[0] // m.groups, 0)
        weight = m.weight * per_input.reshape(m.weight.shape[0], -1, *[1] * (m.weight.ndim - 2))
    else:
        weight = m.weight * flat.reshape(-1, *[1] * (m.weight.ndim - 1))
    image = m(shift.expand_as(x[:1]).contiguous(), m.weight, m.bias)
    inner = m.apply

    def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        out = inner(x, w, None)
        return out if b is None else out + b

    return replace(m, apply=apply, weight=weight, bias=image, foldable=False)
