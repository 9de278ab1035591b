"""Composites: which operation gets which rule.

A composite is an ordered list of (matcher, rule); the first match wins. Linear maps (convolutions, linear
layers) must match; every other operation has a conservative rule of its own (see ``engine/dispatch.py``) that
an entry may override by the operation's name.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from pfungst.registry import COMPOSITES, read_parameters
from pfungst.relevance.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Ignore,
    Norm,
    Pass,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)

if TYPE_CHECKING:
    from pfungst.relevance.rules import LinearMap


@dataclass(frozen=True)
class Site:
    """One operation of a network, as matchers see it.

    Attributes:
        operation: name of the functional call, such as "conv2d", "linear", "exp".
        kind: "convolution", "linear" or "other".
        name: qualified name of the innermost module that runs it ("" for the model itself).
        module: that module.
        first: whether a linear map reads the network's input directly.
        kernel, stride: of a convolution, else ().
        map: the linear map with its parameters, where there is one.
    """

    operation: str
    kind: str
    name: str
    module: nn.Module | None
    first: bool = False
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    map: LinearMap | None = None


@dataclass(frozen=True)
class On:
    """Matches operations; every condition that is given must hold.

    Args:
        kind: "convolution", "linear" or "other".
        operation: name of the functional call, such as "conv2d", "linear" or "exp".
        module: type (or tuple of types) of the module that runs the operation.
        name: shell pattern for that module's qualified name, such as "layer4.*".
        first: only a linear map that reads the network's input directly.
        where: any further condition on the :class:`Site`.
    """

    kind: str | None = None
    operation: str | None = None
    module: type[nn.Module] | tuple[type[nn.Module], ...] | None = None
    name: str | None = None
    first: bool | None = None
    where: Callable[[Site], bool] | None = None

    def __call__(self, site: Site) -> bool:
        return (
            (self.kind is None or site.kind == self.kind)
            and (self.operation is None or site.operation == self.operation)
            and (self.module is None or isinstance(site.module, self.module))
            and (self.name is None or fnmatch.fnmatchcase(site.name, self.name))
            and (self.first is None or site.first == self.first)
            and (self.where is None or self.where(site))
        )


Entry = tuple[On, Rule]

#: Rules that operations other than linear maps can have.
_ELEMENTWISE = (Pass, Ignore, Gradient, Norm)


def _strided_shortcut(site: Site) -> bool:
    return all(k == 1 for k in site.kernel) and any(s > 1 for s in site.stride)


@dataclass(frozen=True)
class Composite:
    """An ordered assignment of rules; the first entry that matches an operation wins.

    Entries with Pass, Ignore, Gradient or Norm also apply to operations that are not linear maps.

    Args:
        entries: (matcher, rule) pairs.
        name: how it is called in tables and reports.
        plain: no rules at all: the ordinary derivative, so that relevance is gradient × input.
        auto: after the entries follow those of the composite that conserves on the network at hand.
    """

    entries: tuple[Entry, ...] = ()
    name: str = "custom"
    plain: bool = False
    auto: bool = False

    def rule(self, site: Site) -> Rule | None:
        """The rule of the first entry that matches, or None."""
        fits = _ELEMENTWISE if site.kind == "other" else Rule
        return next((rule for on, rule in self.entries if isinstance(rule, fits) and on(site)), None)

    def assign(self, on: On | str, rule: Rule) -> Composite:
        """A composite in which `rule` takes precedence where `on` matches.

        Args:
            on: a matcher, or the name of an operation ("exp") or of modules ("encoder.*").
            rule: e.g. ``Pass()`` for elementwise operations, ``Ignore()`` for constants.
        """
        if isinstance(on, str):
            on = On(name=on) if "." in on or "*" in on else On(operation=on)
        name = self.name if self.name.endswith("(adapted)") else f"{self.name} (adapted)"
        return replace(self, entries=((on, rule), *self.entries), name=name)


register = COMPOSITES.register


@register("auto")
def auto() -> Composite:
    """The rules that conserve on the network at hand, chosen when it runs; see
    :mod:`pfungst.relevance.auto`."""
    return Composite(name="auto", auto=True)


def _conv_linear(conv: Rule, epsilon: float, name: str, first: Sequence[Entry] = ()) -> Composite:
    entries = (*first, (On(kind="convolution"), conv), (On(kind="linear"), Epsilon(epsilon)))
    return Composite(entries, name)


@register("epsilon_plus")
def epsilon_plus(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """ZPlus on convolutions, Epsilon on linear layers."""
    return _conv_linear(ZPlus(stabilizer), epsilon, "epsilon_plus")


@register("epsilon_plus_flat")
def epsilon_plus_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """epsilon_plus with Flat on the first layer."""
    first = [(On(first=True), Flat(stabilizer))]
    return _conv_linear(ZPlus(stabilizer), epsilon, "epsilon_plus_flat", first)


@register("epsilon_plus_wsquare")
def epsilon_plus_wsquare(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """epsilon_plus with WSquare on the first layer."""
    first = [(On(first=True), WSquare(stabilizer))]
    return _conv_linear(ZPlus(stabilizer), epsilon, "epsilon_plus_wsquare", first)


@register("epsilon_gamma")
def epsilon_gamma(epsilon: float = 1e-6, gamma: float = 0.25, stabilizer: float = 1e-6) -> Composite:
    """Gamma on convolutions, Epsilon on linear layers: conserves whatever the signs of inputs and outputs."""
    return _conv_linear(Gamma(gamma, stabilizer), epsilon, "epsilon_gamma")


@register("epsilon_gamma_box")
def epsilon_gamma_box(
    low: float | tuple[float, ...] = -3.0,
    high: float | tuple[float, ...] = 3.0,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Composite:
    """ZBox on the first convolution, Gamma on the others, Epsilon on linear layers."""
    first = [(On(kind="convolution", first=True), ZBox(low, high, stabilizer))]
    return _conv_linear(Gamma(gamma, stabilizer), epsilon, "epsilon_gamma_box", first)


@register("epsilon_alpha2_beta1")
def epsilon_alpha2_beta1(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """AlphaBeta(2, 1) on convolutions, Epsilon on linear layers."""
    return _conv_linear(AlphaBeta(2.0, 1.0, stabilizer), epsilon, "epsilon_alpha2_beta1")


@register("epsilon_alpha2_beta1_flat")
def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """epsilon_alpha2_beta1 with Flat on the first layer."""
    first = [(On(first=True), Flat(stabilizer))]
    return _conv_linear(AlphaBeta(2.0, 1.0, stabilizer), epsilon, "epsilon_alpha2_beta1_flat", first)


@register("paper_resnet")
def paper_resnet(
    low: float | tuple[float, ...] = -3.0,
    high: float | tuple[float, ...] = 3.0,
    gamma: float = 0.25,
    epsilon: float = 1e-3,
    stabilizer: float = 1e-6,
) -> Composite:
    """The rules of Kauffmann et al. 2025 for ResNets: ZBox, Gamma, ignored strided shortcuts, Epsilon.

    The ignored shortcuts lose relevance: the values sum to about a tenth of the score on ResNet-50 and
    :attr:`Relevance.bias` holds the rest.
    """
    first: list[Entry] = [
        (On(kind="convolution", first=True), ZBox(low, high, stabilizer)),
        (On(kind="convolution", where=_strided_shortcut), Ignore()),
    ]
    return _conv_linear(Gamma(gamma, stabilizer), epsilon, "paper_resnet", first)


@register("transformer")
def transformer(epsilon: float = 1e-6, gamma: float | None = None, stabilizer: float = 1e-6) -> Composite:
    """Conservative rules for transformers: Epsilon on linear layers (Gamma if given) and on the patch
    embedding.

    Attention weights and normalisation scales are constants, activations pass (Ali et al. 2022).
    """
    linear: Rule = Epsilon(epsilon) if gamma is None else Gamma(gamma, stabilizer)
    entries = ((On(kind="convolution"), Epsilon(epsilon)), (On(kind="linear"), linear))
    return Composite(entries, "transformer")


@register("lrp_zero")
def lrp_zero() -> Composite:
    """LRP-0 everywhere."""
    return Composite(((On(kind="convolution"), Zero()), (On(kind="linear"), Zero())), "lrp_zero")


@register("gradient")
def gradient() -> Composite:
    """No rules: relevance is the plain gradient × input. Conserves only piecewise linear networks."""
    return Composite(((On(), Gradient()),), "gradient", plain=True)


@register("mamba")
def mamba(epsilon: float = 1e-6, gamma: float | None = None, stabilizer: float = 1e-6) -> Composite:
    """Rules of Jafari et al. 2024 (MambaLRP) for selective state space models, otherwise those of
    `transformer`.

    Constants are what the input decides about the scan: the step Δ (linear maps named "x_proj" or "dt_proj",
    softplus) and with it the decay exp(ΔA), and in Mamba and FalconMamba the matrices B and C, which "x_proj"
    computes too. Activations pass; the gate that multiplies the scan's output receives half. In Mamba-2,
    where B and C come out of the same projection as the signal, they share the relevance of their products
    with it equally.
    """
    constants = [(On(kind="linear", name=name), Ignore()) for name in ("*x_proj", "*dt_proj")]
    rest = transformer(epsilon, gamma, stabilizer).entries
    return Composite((*constants, (On(operation="softplus"), Ignore()), *rest), "mamba")


def composite(spec: str | Composite, **options: Any) -> Composite:
    """The composite of this name, with options; a composite object is returned as it is.

    Args:
        spec: NAME or NAME:option=value,option=value; ``FILE.py:NAME…`` runs the file first, which registers
            NAME.
        options: of the function that makes it.

    Raises:
        ConfigError: no such name or option.
    """
    if isinstance(spec, Composite):
        return spec
    maker, name, rest = COMPOSITES.find(spec)
    known = {key: parameter.default for key, parameter in inspect.signature(maker).parameters.items()}
    return maker(**read_parameters(rest, known, f"composite {name!r}") | options)
