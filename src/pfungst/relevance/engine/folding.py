"""Linear maps and BatchNorms, whose rule waits until their consumer is known.

A BatchNorm that follows a map, or precedes it, is folded in; a ReLU that follows discards negative outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from pfungst.relevance.composites import Composite, Site
from pfungst.relevance.rules import Call, Epsilon, Ignore, LinearMap, Pass, Rule, _over


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

    Attributes:
        x: input of the map.
        scale, shift: of a BatchNorm that no map precedes; the scale of one that follows a native map.
        folded: BatchNorms folded in.
        native: output with its graph, where the rule needs no other map.
    """

    x: Tensor
    site: Site
    rule: Rule | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    folded: tuple[str, ...] = ()
    native: Tensor | None = None


@dataclass
class Mark:
    """What the mode knows about a tensor.

    Attributes:
        run: that made it; tensors that a model kept from an earlier run are constants.
        tracked: it depends on the input.
        nonnegative: its version for which every entry is known to be ≥ 0.
        waiting: the rule that is applied when its consumer is known.
        settled: what stands for it: with its rule applied, or what was written into it.
        anchor: the network's input (or a normalised input) and how it was reshaped into this.
        gate: a factor that scales signals, a constant in products.
        version: of the tensor when it was marked.
        source: which of the explained inputs an anchored tensor is.
    """

    run: Folding
    tracked: bool = True
    nonnegative: int | None = None
    waiting: Waiting | None = None
    settled: Tensor | None = None
    anchor: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None
    gate: bool = False
    version: int = 0
    source: int = 0


class Folding:
    """The part of the mode that runs linear maps."""

    composite: Composite
    transforms: bool
    biases: list[tuple[str, Tensor]] | None

    @abstractmethod
    def stop(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def stream(self, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor: ...

    @abstractmethod
    def quiet(self) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def settle(self, t: Tensor, relu: bool = False) -> Tensor: ...

    @overload
    def constant(self, t: Tensor, what: str) -> Tensor: ...
    @overload
    def constant(self, t: None, what: str) -> None: ...
    @abstractmethod
    def constant(self, t: Tensor | None, what: str) -> Tensor | None: ...

    @abstractmethod
    def mark(self, t: Tensor, internal: bool = False, **what: Any) -> Tensor: ...

    @abstractmethod
    def nonnegative(self, t: Any) -> bool: ...

    @abstractmethod
    def record(self, operation: str, out: Any, rule: object, site: Site | None = None) -> None: ...

    @abstractmethod
    def module_name(self) -> str: ...

    @abstractmethod
    def site(self, operation: str, kind: str = "other", **kwargs: Any) -> Site: ...

    @abstractmethod
    def uncovered(self, name: str) -> NoReturn: ...

    def mark_of(self, t: Any) -> Mark | None:
        """The mark that this run set on `t`."""
        mark = getattr(t, "_pfungst", None)
        return mark if mark is not None and mark.run is self else None

    def tracked(self, t: Any) -> bool:
        """Whether `t` depends on the input."""
        mark = self.mark_of(t)
        return mark is not None and mark.tracked

    def waits(self, t: Any) -> bool:
        """Whether the rule of a linear map or BatchNorm waits for the consumer of its value `t`."""
        mark = self.mark_of(t)
        return mark is not None and mark.waiting is not None and mark.settled is None

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
        """`value`, which the model's own call gave, with the derivative of `out`, which rewrites that
        call."""
        return self.attach(self.stop(value).to(out.dtype), [(out, None)])

    def hold(self, z: Tensor, waiting: Waiting) -> Tensor:
        """A value whose rule waits; it requires gradients, so that what an unseen operation makes of it
        shows."""
        if not self.transforms:
            z.requires_grad_()
        return self.mark(z, waiting=waiting)

    def _apply(self, z: Tensor, p: Waiting, relu: bool) -> Tensor:
        """The rule's result for the value z; with `relu`, for what a ReLU leaves of it."""
        if p.site.map is None:  # a BatchNorm that no linear map follows
            assert p.scale is not None
            assert p.shift is not None
            out = p.x * p.scale + self.constant(p.shift, "shift")
            self.record(p.site.operation, out, "per-channel linear map", p.site)
            return self.mark(out.relu() if relu else out, internal=True)
        m, rule = p.site.map, p.rule
        assert rule is not None
        note = "".join(f", {f}" for f in p.folded)
        self.record(p.site.operation, z, f"{rule!r}{note}", p.site)
        epsilon = rule.epsilon if isinstance(rule, Epsilon) else 0.0
        with torch.enable_grad():
            if p.native is not None and epsilon == 0:
                return self.mark(p.native.relu() if relu else p.native, internal=True)
            value = self.stop(z).relu() if relu else self.stop(z)
            if p.native is not None:
                size = value if relu else value.abs()
                c = _over(size, size + epsilon)
                c = c if p.scale is None else c * p.scale
                return self.mark(self.attach(value, [(p.native, c)]), internal=True)
            bias = self.constant(m.bias, "bias")
            if bias is not m.bias:
                m = replace(m, bias=bias)
            call = Call(m, p.x, value, self.nonnegative(p.x), relu, self)
            return self.mark(self.attach(value, rule.terms(call)), internal=True)

    def linear(self, site: Site, x: Tensor, m: LinearMap) -> Tensor:
        """Call a linear map; its rule waits for the consumer."""
        mark = self.mark_of(x)
        before = mark.waiting if mark is not None and self.waits(x) else None
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
            return self.mark(z, waiting=Waiting(x, site, rule, folded=prefix, native=z))
        with self.quiet():
            z = original(self.stop(value), original.raw, original.bias)
        return self.hold(z, Waiting(x, site, rule, folded=prefix))

    def batch_norm(
        self, x: Tensor, scale: Tensor, shift: Tensor, value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A BatchNorm in evaluation mode: folded into the map before it, or left for the one after it.

        Args:
            scale, shift: (C,) what it multiplies with and adds.
            value: the call itself.
        """
        mark = self.mark_of(x)
        before = mark.waiting if mark is not None and self.waits(x) else None
        view = [1, -1, *[1] * (x.ndim - 2)]
        known = before is not None and before.native is not None and before.scale is not None  # a second one
        if before is None or before.site.map is None or not before.site.map.foldable or known:
            x = self.settle(x)
            with self.quiet():
                z = value(self.stop(x))
            waiting = Waiting(x, self.site("batch_norm"), None, scale.reshape(view), shift.reshape(view))
            return self.hold(z, waiting)
        folded = (*before.folded, f"{self.module_name() or 'BatchNorm'} folded in")
        if before.native is None:
            with self.quiet():
                z = value(self.stop(x))
            site = replace(before.site, map=_fold_after(before.site.map, scale, shift))
            return self.hold(z, replace(before, site=site, folded=folded))
        if self.biases is None and isinstance(before.rule, Epsilon) and before.rule.epsilon:
            with self.quiet():  # its scale goes into the rule's constant
                z = value(self.stop(x))
            return self.hold(z, replace(before, scale=scale.reshape(view), folded=folded))
        with torch.enable_grad():
            if self.biases is None:
                z = value(before.native)
            else:
                leaf = self.constant(shift.reshape(view), "shift")
                z = self.exactly(value(self.stop(x)), before.native * scale.reshape(view) + leaf)
        return self.mark(z, waiting=replace(before, native=z, folded=folded))


def _fold_after(m: LinearMap, scale: Tensor, shift: Tensor) -> LinearMap:
    """The map followed by the per-channel y·scale + shift."""
    rest = [1] * (m.raw.ndim - 2)
    if m.out_axis == 0:
        factor = scale.reshape(-1, 1, *rest)
    else:  # transposed convolution: (in, out / groups, ...)
        per_group = scale.reshape(m.groups, 1, -1).expand(m.groups, m.raw.shape[0] // m.groups, -1)
        factor = per_group.reshape(m.raw.shape[0], -1, *rest)
    bias = shift if m.bias is None else m.bias * scale + shift
    return replace(m, factor=factor if m.factor is None else m.factor * factor, bias=bias)


def _fold_before(m: LinearMap, scale: Tensor, shift: Tensor, x: Tensor) -> LinearMap:
    """The map preceded by the per-channel x·scale + shift: scaled weights, and the shift's image as bias.

    With zero padding that image differs at the border, so it is kept as a map of its own.
    """
    flat, rest = scale.flatten(), [1] * (m.raw.ndim - 2)
    if m.out_axis == 0:
        per_input = flat.reshape(m.groups, -1).repeat_interleave(m.raw.shape[0] // m.groups, 0)
        factor = per_input.reshape(m.raw.shape[0], -1, *rest)
    else:
        factor = flat.reshape(-1, 1, *rest)
    image = m(shift.expand_as(x[:1]).contiguous(), m.weight, m.bias)
    inner = m.apply

    def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        out = inner(x, w, None)
        return out if b is None else out + b

    return replace(m, apply=apply, factor=factor, bias=image, foldable=False)
