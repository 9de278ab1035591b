"""The function mode that rewrites a forward pass so that gradient × input is relevance.

While the mode is active every functional call of the network passes through it. The values that the network
computes stay exactly what they were; only what autograd records is replaced, by the rules of the composite.
The model's modules and parameters are never touched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pfungst.errors import InputError, UncoveredOperation
from pfungst.relevance.composites import Composite, Site
from pfungst.relevance.engine.folding import Mark
from pfungst.relevance.engine.modules import following
from pfungst.relevance.engine.unseen import Unseen, in_reentrant_checkpoint, storage_of, version_of
from pfungst.relevance.engine.vocabulary import operation_name
from pfungst.relevance.rules import _quotient


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


class RelevanceMode(Unseen, TorchFunctionMode):
    """Rewrites functional calls; :func:`pfungst.relevance.engine.run.execute` runs a model in it.

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
        self.names: dict[int, str] = {id(m): name for name, m in model.named_modules()}
        self.transforms = transforms
        self.given = None if streams is None else list(streams)
        self.streams: list[Tensor] = []
        self.owners: list[int] = []
        self.biases: list[tuple[str, Tensor]] | None = [] if biases else None
        self.records: list[Record] = []
        self.stack: list[nn.Module] = []
        self.level: int | None = None
        self.expanding: list[Any] = []
        self.where = "the model"
        self.marked: list[weakref.ref[Tensor]] = []

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

    def mark(self, t: Tensor, internal: bool = False, **what: Any) -> Tensor:
        """Note that `t` depends on the input; an internal tensor is never seen by the model."""
        if what.pop("nonnegative", False):
            what["nonnegative"] = version_of(t)
        t._pfungst = Mark(self, version=version_of(t), **what)  # type: ignore[attr-defined]
        self.marked.append(weakref.ref(t))
        anchor = what.get("anchor")
        given = anchor is not None and anchor[0] is t
        if t._is_view() and not given:
            self.bases.add(storage_of(t))
        if not internal:
            (self.inputs if given else self.recent).append(t)
        return t

    def nonnegative(self, t: Any) -> bool:
        """Whether every entry of `t` is known to be ≥ 0 from where it comes."""
        mark = self.mark_of(t)
        return mark is not None and mark.nonnegative is not None and mark.nonnegative == version_of(t)

    def viewed(self, *tensors: Tensor | None) -> bool:
        """Whether other tensors of the model look into the memory of one of these."""
        return any(t is not None and storage_of(t) in self.bases for t in tensors)

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
                    "the model checkpoints activations with use_reentrant=True in module "
                    f"{self.module_name()!r}",
                    "switch checkpointing off, or use use_reentrant=False",
                )
            return func(*args, **kwargs)
        leaves = tensors((args, kwargs))
        if any(t.is_inference() for t in leaves):
            args, kwargs = pytree.tree_map(_normal, (args, kwargs))
            leaves = tensors((args, kwargs))
        if inside and not reentrant:
            name = operation_name(func)
            if (name.endswith("_") or name == "setitem") and self.tracked(args[0]):
                self.unseen("an autograd.Function writes into its input", name)
            return func(*self.settled(args), **self.settled(kwargs))
        dependent = False
        for t in leaves:
            dependent = self.depends(t) or dependent
        if not dependent:
            if not any(t.requires_grad for t in leaves):
                return func(*args, **kwargs)  # a view made under no_grad could not be written into
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

    def forget(self) -> None:
        """Let go of all tensors, so that a graph goes with what came out of it, and not with the next sweep
        of Python's collector: marks lead from tensors to the mode and back."""
        for reference in self.marked:
            if (mark := self.mark_of(reference())) is not None:
                mark.waiting = mark.settled = mark.anchor = None
        for kept in (self.marked, self.inputs, self.streams, self.recent, self.expanding):
            kept.clear()

    @contextmanager
    def active(self) -> Iterator[RelevanceMode]:
        """Run a model in the mode; global state is restored afterwards, whatever happens inside."""
        self.base = torch._C._functorch.maybe_current_level()
        if self.transforms:
            self.level = self.base
        with following(self), torch.enable_grad(), self:
            try:
                yield self
            finally:
                self.where = self.place()
                self.stack.clear()
                self.recent.clear()


def _same(t: Tensor) -> Tensor:
    return t


def _normal(t: Any) -> Any:
    """An inference tensor as one that autograd can save."""
    return t.clone() if isinstance(t, Tensor) and t.is_inference() else t


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
