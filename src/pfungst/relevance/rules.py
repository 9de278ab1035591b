"""LRP rules for linear maps (convolutions, linear layers).

A rule turns a linear map z = W x + b into *terms* (ẑ, c): modified maps ẑ of the same input and constants c.
The engine gives the operation the unmodified value z and the gradient Σ c · ∂ẑ/∂x, so that gradient × input
is the rule's relevance. Literature names; the parameters mean what they mean in zennit.

Sources: Bach et al. 2015 (LRP-0, Epsilon, AlphaBeta); Montavon et al. 2017 (ZPlus, WSquare, ZBox);
Montavon et al. 2019 (Gamma); Andéol et al. 2021 (generalised Gamma); Lapuschkin et al. 2019 (Flat).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pfungst.errors import ConfigError, InputError
from pfungst.relevance.prepared import prepared

Term = tuple[Tensor, Tensor]

_FEW = 4  # channels


@dataclass(frozen=True)
class LinearMap:
    """A linear operation with its parameters: ``apply(x, weight, bias)``.

    Attributes:
        apply: (x, weight, bias or None) → output; linear in x and in (weight, bias) together.
        raw: the layer's own weights, detached.
        bias: (out,) or None, detached.
        out_axis: axis of the weights that counts outputs.
        groups: number of channel groups.
        foldable: a BatchNorm that follows can be folded in (`bias` is a vector over outputs).
        factor: a folded BatchNorm's, which the weights are multiplied with; broadcasts.
        owner: the parameter that the weights are.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    raw: Tensor
    bias: Tensor | None
    out_axis: int = 0
    groups: int = 1
    foldable: bool = True
    factor: Tensor | None = None
    owner: Tensor | None = None

    @property
    def terms(self) -> int:
        """How many products one output sums."""
        inputs = self.raw.shape[0] // self.groups if self.out_axis else self.raw.shape[1]
        return inputs * math.prod(self.raw.shape[2:])

    def __call__(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return self.apply(x, self.weight if weight is None else weight, bias)

    @cached_property
    def weight(self) -> Tensor:
        """The weights with what is folded into them."""
        return self.raw if self.factor is None else self.raw * self.factor

    def part(self, name: str, of: Callable[[Tensor], Tensor]) -> Tensor:
        """``of(weight)``, such as the positive weights, kept from call to call while the weights do not
        change."""
        return prepared(self.owner, self.factor, name, lambda: of(self.weight))


class Context(Protocol):
    """What a rule may ask of the engine."""

    def stop(self, t: Tensor) -> Tensor:
        """`t` as a constant of the explanation."""

    def stream(self, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """A second input beside `x` with the values ``value(x)`` whose relevance is added to that of x."""


@dataclass(frozen=True)
class Call:
    """One call of a linear map that awaits its rule.

    Attributes:
        x: input with its graph.
        z: output value, a constant; what a ReLU leaves of it if `relu`.
        nonnegative: x is known to be ≥ 0.
        relu: a ReLU has discarded the negative outputs: z ≥ 0, and nothing is redistributed where z = 0.
    """

    map: LinearMap
    x: Tensor
    z: Tensor
    nonnegative: bool
    relu: bool
    context: Context


def stabilize(t: Tensor, epsilon: float) -> Tensor:
    """t + ε·sign(t) with sign(0) = +1."""
    if epsilon == 0:
        return t
    return t + torch.where(t >= 0, epsilon, -epsilon).to(t.dtype)


def _quotient(z: Tensor, zhat: Tensor, epsilon: float, nonnegative: bool = False) -> Tensor:
    """z / stab(ẑ); zero where nothing can be redistributed (ẑ = 0 without a stabiliser).

    Args:
        nonnegative: ẑ is known to be ≥ 0.
    """
    if epsilon == 0:
        return torch.where(zhat == 0, 0.0, z / torch.where(zhat == 0, 1.0, zhat))
    return _over(z, zhat + epsilon if nonnegative else stabilize(zhat, epsilon))


def _over(z: Tensor, fresh: Tensor) -> Tensor:
    """z / fresh, in the memory of `fresh` where that is possible: new pages cost as much as the division."""
    alike = z.shape == fresh.shape and z.dtype == fresh.dtype
    if (
        not alike
        or fresh.requires_grad
        or z.requires_grad
        or torch._C._functorch.maybe_current_level() is not None
    ):
        return z / fresh
    return torch.div(z, fresh, out=fresh)


def _pos(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.clamp(min=0)


def _neg(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.clamp(max=0)


def _signed(
    m: LinearMap,
    x: tuple[Tensor, Tensor | None],
    weight: tuple[Tensor | None, Tensor | None],
    bias: Tensor | None,
) -> Tensor:
    """The map of the positive and of the negative part of an input, each with weights of its own, summed."""
    (x_pos, x_neg), (w_pos, w_neg) = x, weight
    if x_neg is None:
        return m(x_pos, w_pos, bias)
    assert w_pos is not None
    assert w_neg is not None
    few = w_pos.ndim > 2 and w_pos.shape[1] <= _FEW and x_pos.ndim == w_pos.ndim
    if few and m.groups == 1 and m.out_axis == 0:  # kernels take as long for twice so few channels
        return m(torch.cat([x_pos, x_neg], 1), torch.cat([w_pos, w_neg], 1), bias)
    return m(x_pos, w_pos, bias) + m(x_neg, w_neg)


@dataclass(frozen=True, repr=False)
class Rule:
    """Base of all rules. Rules are immutable and compare by value."""

    #: The map itself is the modified map: no second evaluation is needed.
    native = False

    def terms(self, call: Call) -> list[Term]:
        """The modified maps of the call's input and their constants."""
        raise NotImplementedError

    def __repr__(self) -> str:
        parts = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class Zero(Rule):
    """LRP-0: relevance in proportion to the contributions x_i w_ij. Gradient × input on ReLU networks."""

    native = True


@dataclass(frozen=True, repr=False)
class Epsilon(Rule):
    """LRP-ε: contributions over the stabilised output; ε absorbs weak and contradictory relevance."""

    epsilon: float = 1e-6
    native = True


@dataclass(frozen=True, repr=False)
class Gamma(Rule):
    """LRP-γ, generalised to inputs and outputs of either sign: agreeing contributions count 1 + γ times."""

    gamma: float = 0.25
    stabilizer: float = 1e-6

    def terms(self, call: Call) -> list[Term]:
        m, g, b = call.map, self.gamma, call.map.bias
        up = m.part(f"{g} up", lambda w: w + g * w.clamp(min=0))
        b_up = None if b is None else b + g * b.clamp(min=0)
        x = (call.x, None) if call.nonnegative else (call.x.clamp(min=0), call.x.clamp(max=0))
        down = None
        if not (call.nonnegative and call.relu):
            down = m.part(f"{g} down", lambda w: w + g * w.clamp(max=0))
        zhat = _signed(m, x, (up, down), b_up)
        positive = _quotient(call.z, call.context.stop(zhat), self.stabilizer)
        if call.relu:
            return [(zhat, positive)]
        terms = [(zhat, torch.where(call.z > 0, positive, 0.0))]
        zhat = _signed(m, x, (down, up), None if b is None else b + g * b.clamp(max=0))
        negative = _quotient(call.z, call.context.stop(zhat), self.stabilizer)
        terms.append((zhat, torch.where(call.z < 0, negative, 0.0)))
        return terms


@dataclass(frozen=True, repr=False)
class AlphaBeta(Rule):
    """LRP-αβ: positive contributions count α, negative ones β, α − β = 1."""

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ConfigError(
                f"AlphaBeta(alpha={self.alpha}, beta={self.beta}) does not conserve relevance",
                "choose alpha ≥ 1 and beta = alpha − 1",
            )

    def terms(self, call: Call) -> list[Term]:
        m, b = call.map, call.map.bias
        w_pos = m.part("positive", lambda w: w.clamp(min=0))
        w_neg = None
        if not call.nonnegative or self.beta:
            w_neg = m.part("negative", lambda w: w.clamp(max=0))
        x = (call.x, None) if call.nonnegative else (call.x.clamp(min=0), call.x.clamp(max=0))
        zhat = _signed(m, x, (w_pos, w_neg), _pos(b))
        c = _quotient(call.z, call.context.stop(zhat), self.stabilizer, nonnegative=True)
        terms = [(zhat, c if self.alpha == 1 else self.alpha * c)]
        if self.beta == 0:
            return terms
        zhat = _signed(m, x, (w_neg, w_pos), _neg(b))
        c = _quotient(call.z, call.context.stop(zhat), self.stabilizer)
        return [*terms, (zhat, -self.beta * c)]


@dataclass(frozen=True, repr=False)
class ZPlus(Rule):
    """Positive contributions only; AlphaBeta(1, 0)."""

    stabilizer: float = 1e-6

    def terms(self, call: Call) -> list[Term]:
        return AlphaBeta(1.0, 0.0, self.stabilizer).terms(call)


@dataclass(frozen=True, repr=False)
class Flat(Rule):
    """Every input of a receptive field receives the same share, whatever its value. For first layers."""

    stabilizer: float = 1e-6

    def terms(self, call: Call) -> list[Term]:
        m = call.map
        ones = call.context.stream(call.x, torch.ones_like)
        if m.groups == 1 and m.out_axis == 0:  # all outputs share one map: evaluate it once
            zhat = m(ones, torch.ones_like(m.weight[:1])).expand_as(call.z)
        else:
            zhat = m(ones, torch.ones_like(m.weight))
        return [(zhat, _quotient(call.z, call.context.stop(zhat), self.stabilizer))]


@dataclass(frozen=True, repr=False)
class WSquare(Rule):
    """Shares in proportion to the squared weights, whatever the input. For unbounded first layers."""

    stabilizer: float = 1e-6

    def terms(self, call: Call) -> list[Term]:
        m = call.map
        ones = call.context.stream(call.x, torch.ones_like)
        zhat = m(ones, m.weight**2, None if m.bias is None else m.bias**2)
        return [(zhat, _quotient(call.z, call.context.stop(zhat), self.stabilizer))]


@dataclass(frozen=True, repr=False)
class ZBox(Rule):
    """For inputs in a box [low, high]: ẑ = W x − W⁺ low − W⁻ high, three streams of relevance.

    Args:
        low, high: smallest and largest value of an input, in the units of the first layer's input
            (that is, after a normalisation inside the model); numbers, or one per channel.
    """

    low: float | tuple[float, ...] = -3.0
    high: float | tuple[float, ...] = 3.0
    stabilizer: float = 1e-6

    def _bound(self, value: float | tuple[float, ...]) -> Callable[[Tensor], Tensor]:
        def fill(x: Tensor) -> Tensor:
            if not isinstance(value, Sequence):
                return torch.full_like(x, value)
            if x.ndim < 2 or len(value) not in (1, x.shape[1]):
                raise InputError(
                    f"ZBox has {len(value)} bounds for an input of shape {tuple(x.shape)}",
                    "give one number, or one per channel",
                )
            bound = torch.cat(
                [x.new_full((1,), v) for v in value]
            )  # made on the device: a graph can replay it
            return bound.reshape(-1, *[1] * (x.ndim - 2)).expand_as(x).clone()

        return fill

    def terms(self, call: Call) -> list[Term]:
        m, b, w = call.map, call.map.bias, call.map.weight
        low = call.context.stream(call.x, self._bound(self.low))
        high = call.context.stream(call.x, self._bound(self.high))
        zhat = m(call.x, w, b) - m(low, w.clamp(min=0), _pos(b)) - m(high, w.clamp(max=0), _neg(b))
        return [(zhat, _quotient(call.z, call.context.stop(zhat), self.stabilizer))]


@dataclass(frozen=True, repr=False)
class Ignore(Rule):
    """Zero relevance: the operation's output is a constant of the explanation."""


@dataclass(frozen=True, repr=False)
class Pass(Rule):
    """Elementwise operations: relevance passes unchanged, R_in = R_out."""

    def terms(self, call: Call) -> list[Term]:
        raise ConfigError(
            "Pass() cannot serve a linear layer or convolution: input and output differ in shape",
            "use Epsilon(), Gamma(), ZPlus() … for it",
        )


@dataclass(frozen=True, repr=False)
class Norm(Rule):
    """Relevance in proportion to the contributions; what sums and average pools do anyway."""

    native = True


@dataclass(frozen=True, repr=False)
class Gradient(Rule):
    """The plain derivative; conserves only where the operation is homogeneous of degree one."""

    native = True
