"""The function mode that rewrites a forward pass so that gradient × input is relevance.

While the mode is active every functional call of the network passes through it. The values that the network
computes stay exactly what they were; only what autograd records is replaced, by the rules of the composite.
The model's modules and parameters are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pfungst.errors import UncoveredOperation
from pfungst.relevance.composites import Composite, Site
from pfungst.relevance.rules import Call, Epsilon, Ignore, LinearMap, Pass, Rule, Term, _quotient


class Attach(torch.autograd.Function):
    """The value z with the derivative Σ c · ∂ẑ: ``Attach.apply([z], ẑ₁, c₁, ẑ₂, c₂, …)``.

    z comes in a list because autograd forbids in-place changes of an argument that is handed back.
    """

    @staticmethod
    def forward(ctx: Any, z: list[Tensor], *terms: Tensor) -> Tensor:
        ctx.save_for_backward(*terms[1::2])
        return z[0].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out: list[Tensor | None] = [None]
        for i, c in enumerate(ctx.saved_tensors):
            out += [grads[0] * c if ctx.needs_input_grad[1 + 2 * i] else None, None]
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


@dataclass
class Mark:
    """What the mode knows about a tensor."""

    tracked: bool = True
    nonnegative: int | None = None
    pending: Waiting | None = None
    settled: Tensor | None = None
    anchor: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None
    gate: bool = False
    owner: int = 0


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


def mark_of(t: Any) -> Mark | None:
    return getattr(t, "_pfungst", None) if isinstance(t, Tensor) else None


def _version(t: Tensor) -> int:
    try:
        return t._version
    except RuntimeError:  # inference tensors do not count versions
        return 0


_ALIASES = {"rsub": "rsub", "radd": "add", "rmul": "mul", "rtruediv": "rdiv", "rdiv": "rdiv", "rpow": "rpow"}
_ALIASES |= {"truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub"}
_ALIASES |= {"iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_", "idiv": "div_"}
_ALIASES |= {
    "rmatmul": "rmatmul",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
}
_ALIASES |= {
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "absolute": "abs",
    "clip": "clamp",
    "arctan": "atan",
}


def operation_name(func: Any) -> str:
    """The canonical name of a functional call: "conv2d", "add", "relu_" …"""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        return ("get:" if name == "__get__" else "set:") + getattr(func.__self__, "__name__", "?")
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
        self.owners: list[int] = []
        self.biases: list[tuple[str, Tensor]] | None = [] if biases else None
        self.records: list[Record] = []
        self.stack: list[nn.Module] = []
        self.level: int | None = None

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
        mark = mark_of(x)
        if mark is None or mark.anchor is None:
            v = self.stop(value(x))
            return self.attach(v, [(x, _quotient(v, self.stop(x), 0.0))])
        base, replay = mark.anchor
        return replay(self.leaf(value(self.stop(base)), base))

    def entry(self, x: Tensor, owner: int) -> Tensor:
        """The input number `owner` of the network, as the run reads it."""
        if self.transforms:
            x = x.view_as(x)
        else:
            x = (x.detach().clone() if x.is_inference() else x.detach().view_as(x)).requires_grad_()
        return self.mark(x, anchor=(x, lambda t: t), owner=owner)

    def leaf(self, value: Tensor, base: Tensor) -> Tensor:
        """A new stream with this value, beside the input (or the stream) `base`."""
        mark = mark_of(base)
        assert mark is not None
        self.owners.append(mark.owner)
        if self.given is not None:
            leaf = self.given[len(self.streams)]
        elif self.transforms:
            leaf = value
        else:
            leaf = value.detach().requires_grad_()
        self.streams.append(leaf)
        return leaf

    def attach(self, z: Tensor, terms: list[Term]) -> Tensor:
        """The value z with the derivative of Σ c ẑ."""
        if not self.transforms:
            return Attach.apply([z], *(t for term in terms for t in term))
        out = self.stop(z)
        for zhat, c in terms:
            out = out + (zhat - self.stop(zhat)) * self.stop(c)
        return out

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
        mark = mark_of(t)
        return mark is not None and mark.tracked

    def mark(self, t: Tensor, **what: Any) -> Tensor:
        """Note that `t` depends on the input."""
        if what.pop("nonnegative", False):
            what["nonnegative"] = _version(t)
        t._pfungst = Mark(**what)  # type: ignore[attr-defined]
        return t

    def nonnegative(self, t: Any) -> bool:
        """Whether every entry of `t` is known to be ≥ 0 from where it comes."""
        mark = mark_of(t)
        return mark is not None and mark.nonnegative is not None and mark.nonnegative == _version(t)

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
        mark = mark_of(t)
        if mark is None:
            return t
        if mark.settled is not None:
            return self.settle(mark.settled)
        if mark.pending is None:
            return t
        out = self._apply(t, mark.pending, relu)
        if not relu and out is not t:
            mark.settled = out
        return out

    def _apply(self, z: Tensor, p: Waiting, relu: bool) -> Tensor:
        if p.site.map is None:  # a BatchNorm that no linear map follows
            assert p.scale is not None
            assert p.shift is not None
            out = p.x * p.scale + self.constant(p.shift, "shift")  # type: ignore[operator]
            self.record(p.site.operation, out, "per-channel linear map", p.site)
            return self.mark(out)
        m, rule = p.site.map, p.rule
        note = "".join(f", {f}" for f in p.folded)
        self.record(p.site.operation, z, f"{rule!r}{note}", p.site)
        if isinstance(rule, Ignore):
            return self.mark(self.stop(z), tracked=False)
        if p.native:
            epsilon = rule.epsilon if isinstance(rule, Epsilon) else 0.0
            if epsilon == 0:
                return self.mark(z)
            z0 = self.stop(z)
            return self.mark(self.attach(z0, [(z, _quotient(z0, z0, epsilon))]))
        bias = self.constant(m.bias, "bias")
        assert rule is not None
        if bias is not m.bias:
            m = replace(m, bias=bias)
        call = Call(m, p.x, self.stop(z), self.nonnegative(p.x), relu, self)
        with torch.enable_grad():
            return self.mark(self.attach(call.z, rule.terms(call)))

    def linear(self, site: Site, x: Tensor, m: LinearMap) -> Tensor:
        """Call a linear map; its rule waits for the consumer."""
        mark = mark_of(x)
        before = mark.pending if mark is not None and mark.settled is None else None
        value, original = x, m
        prefix: tuple[str, ...] = ()
        if before is not None and before.site.map is None and (site.kind == "convolution" or x.ndim == 2):
            assert before.scale is not None
            assert before.shift is not None
            m = _fold_before(m, before.scale, before.shift, self.stop(before.x))
            x, prefix = before.x, (f"{before.site.name or 'BatchNorm'} folded in",)
        else:
            x = value = self.settle(x)
        mark = mark_of(x)
        site = replace(site, first=mark is not None and mark.anchor is not None, map=m)
        rule = self.composite.rule(site)
        if rule is None:
            self.uncovered(site.operation)
        if isinstance(rule, Pass):
            rule.terms(None)  # type: ignore[arg-type]  # raises: not for linear maps
        if rule.native:
            with torch.enable_grad():
                z = m(x, m.weight, self.constant(m.bias, "bias"))
            return self.mark(z, pending=Waiting(x, site, rule, folded=prefix, native=True))
        with self.quiet():
            z = original(self.stop(value), original.weight, original.bias)
        return self.mark(z, pending=Waiting(x, site, rule, folded=prefix))

    def batch_norm(
        self, x: Tensor, scale: Tensor, shift: Tensor, value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A BatchNorm in evaluation mode: folded into the map before it, or left for the one after it."""
        mark = mark_of(x)
        before = mark.pending if mark is not None and mark.settled is None else None
        view = [1, -1, *[1] * (x.ndim - 2)]
        if before is not None and before.site.map is not None and before.site.map.foldable:
            site = replace(before.site, map=_fold_after(before.site.map, scale, shift))
            folded = (*before.folded, f"{self.module_name() or 'BatchNorm'} folded in")
            if not before.native:
                with self.quiet():
                    z = value(self.stop(x))
            else:
                z = x * scale.reshape(view) + self.constant(shift.reshape(view), "shift")  # type: ignore[operator]
            return self.mark(z, pending=replace(before, site=site, folded=folded))
        x = self.settle(x)
        with self.quiet():
            z = value(self.stop(x))
        pending = Waiting(x, self.site("batch_norm"), None, scale.reshape(view), shift.reshape(view))
        return self.mark(z, pending=pending)

    # -- dispatch ---------------------------------------------------------------------------------

    def uncovered(self, name: str) -> NoReturn:
        """Raise for an operation without a rule."""
        where = self.module_name()
        place = f"module {where!r} ({type(self.stack[-1]).__name__})" if self.stack else "the model"
        raise UncoveredOperation(
            f"no relevance rule covers the operation {name!r}, called in {place}",
            f"assign one: composite.assign({name!r}, Pass()) for elementwise operations, Ignore() where its "
            "result is a constant of the explanation, Gradient() for its plain derivative",
        )

    def __torch_function__(
        self, func: Any, types_: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if self.composite.plain:
            return func(*args, **kwargs)
        leaves = _tensors(args, kwargs)
        if not any(self.tracked(t) for t in leaves):
            if _is_view_query(name) or torch.is_grad_enabled() is False:
                return func(*args, **kwargs)
            with self.quiet():
                return func(*args, **kwargs)
        return self.dispatch(self, func, name, args, kwargs)

    def settled(self, tree: Any) -> Any:
        """`tree` (tensors in tuples, lists, dictionaries) with every pending rule applied."""
        return pytree.tree_map(lambda t: self.settle(t) if isinstance(t, Tensor) else t, tree)

    def stop_all(self, tree: Any) -> Any:
        """`tree` with every tensor that depends on the input as a constant."""
        return pytree.tree_map(lambda t: self.stop(t) if self.tracked(t) else t, self.settled(tree))

    @contextmanager
    def active(self, module: nn.Module) -> Iterator[RelevanceMode]:
        """Run `module` in the mode; global state is restored afterwards, whatever happens inside."""
        known = self.names

        def enter(m: nn.Module, args: Any) -> None:
            if id(m) in known:
                self.stack.append(m)

        def leave(m: nn.Module, args: Any, out: Any) -> None:
            if self.stack and self.stack[-1] is m:
                self.stack.pop()

        handles = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        ]
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        if self.transforms:
            level = torch._C._functorch.maybe_current_level()
            self.level = level
        try:
            with torch.enable_grad(), self:
                yield self
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()
            self.stack.clear()


def _is_view_query(name: str) -> bool:
    return name.startswith("get:")


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    out: list[Tensor] = []
    for a in (*args, *kwargs.values()):
        if isinstance(a, Tensor):
            out.append(a)
        elif isinstance(a, list | tuple):
            out += [t for t in a if isinstance(t, Tensor)]
    return out


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


__all__ = ["Attach", "Mark", "Record", "RelevanceMode", "Waiting", "mark_of", "operation_name"]
