"""The function mode that rewrites a forward pass so that gradient × input is relevance.

While the mode is active every functional call of the network passes through it. The values that the network
computes stay exactly what they were; only what autograd records is replaced, by the rules of the composite.
The model's modules and parameters are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pfungst.errors import UncoveredOperation
from pfungst.relevance.composites import Composite, Site
from pfungst.relevance.engine.folding import Attach, Folding, Mark, Waiting, mark_of
from pfungst.relevance.rules import _quotient


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
        self.records.append(Record(name, operation, shape, rule if isinstance(rule, str) else repr(rule)))

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


__all__ = ["Attach", "Mark", "Record", "RelevanceMode", "Waiting", "mark_of", "operation_name"]
