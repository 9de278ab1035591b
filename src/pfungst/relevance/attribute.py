"""One explanation per input: ``attribute(model, x, output=…)``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError, NotFinite, PfungstWarning
from pfungst.relevance import auto
from pfungst.relevance.bases import Basis, Pixels
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.eager import eager
from pfungst.relevance.engine.inputs import Inputs, transformed
from pfungst.relevance.engine.run import (
    Output,
    backward,
    check_model,
    check_values,
    execute,
    first_use,
    written,
)
from pfungst.relevance.outputs import cotangent
from pfungst.relevance.relevance import Relevance
from pfungst.relevance.rules import Flat, WSquare

#: The share of a score that a composite may lose without a warning.
LOSS = 0.05

_HALF = (torch.float16, torch.bfloat16)


@eager
def attribute(
    model: nn.Module,
    x: Any,
    output: Any = None,
    composite: str | Composite = "auto",
    basis: Any = None,
    differentiable: bool = False,
    explain: Any = None,
    measure: bool | None = None,
) -> Any:
    """Relevance of each input for one score.

    Args:
        model: any module in evaluation mode; it is not changed.
        x: inputs (N, *sample), floating point, finite; batched inputs are explained independently. Several
            inputs are a tuple, for ``model(*x)``, or a dictionary, for ``model(**x)``.
        output: which score. Where the model returns (N, K): a class index, a tensor of one index per input,
            or weights (N, K) or (K,). Where it returns more axes: ``(class,)``, ``(class, row, column)``,
            ``(class, mask)``, ``(token, class)`` and so on, or a mask, see
            :func:`pfungst.relevance.outputs.cotangent`. Always: a callable from what the model returns to one
            score per input (N,), which runs under the rules too.
        composite: the rules, by object or name; "auto" chooses those that conserve on this network.
        basis: in which the relevance is read; pixels by default. For several inputs one for all, or a tuple
            or dictionary with one for each explained input.
        differentiable: keep the graph from `x` to the relevance, so that explanations can be differentiated
            (again) with respect to the input; about twice as slow. Implied under ``torch.func`` transforms.
        explain: which of several inputs, by position or name; by default every floating tensor. The others
            are constants, whatever they are: ids, masks, flags.
        measure: whether the explained values are compared with those of the plain forward pass, and the
            biases accounted for, to know which share of the score the rules lost (:attr:`Relevance.lost`);
            costs a forward pass, and a heatmap takes up to a quarter longer. By default when the model is
            explained under these rules for the first time.

    Returns:
        Relevance with ``values.sum() + bias == score`` for each input. For several inputs a tuple with one
        for each explained input in their order, or a dictionary; they share `score` and `bias`, and the
        values of all of them and the bias make up the score. An input on which the score does not depend has
        relevance zero.

    Raises:
        InputError: inputs, model or output that cannot be explained; values that are not those of the plain
            forward pass; a result that is not finite (NotFinite).
        UncoveredOperation: the network uses an operation without a rule.

    Warns:
        PfungstWarning: the composite loses more than 5 % of the score, biases accounted for, or ignores what
            the basis reads.
    """
    model, rules = check_model(model), _composite(composite)
    pick: Output | None = output if callable(output) else None
    given = Inputs.read(x, explain)
    bases: list[Basis] = given.spread(basis, Pixels)
    frequency = any(auto.spectral(b) for b in bases)
    functional = differentiable or any(transformed(t) for t in given.tensors)
    with torch.inference_mode(False):
        if functional:
            found = _functional(model, given, rules, output, pick, frequency)
        else:
            found = _eager(model, given, rules, output, pick, frequency, measure)
        warn_flat_spectrum(found.rules, bases, 4)
        values: list[Tensor | None] = [None] * len(bases)
        for stream, owner, g in zip(found.streams, found.owners, found.grads, strict=True):
            if g is not None:
                r = bases[owner].contract(stream, g, given.tensors[owner].ndim - 1)
                old = values[owner]
                values[owner] = r if old is None else old + r
        if all(v is None for v in values):
            raise InputError(
                "the score does not depend on any of the explained inputs",
                "choose another score or other inputs",
            )
        score = torch.where(found.weights == 0, 0.0, found.out * found.weights).sum(1)
        full = [
            score.new_zeros(len(given), *b.shape(tuple(t.shape[1:]))) if v is None else v
            for v, b, t in zip(values, bases, given.tensors, strict=True)
        ]
        sums = [v.flatten(1).sum(1) for v in full]
        total = sum(sums[1:], sums[0])
        bias = score - total
        if not functional:
            _check_finite(score, full, given.explained, found.rules)
        lost = None if found.constants is None else _lost(score, total, found.constants, found.rules)
        parts = [
            Relevance(v, score, b, bias, composite=found.rules.name, lost=lost, elsewhere=total - s)
            for v, b, s in zip(full, bases, sums, strict=True)
        ]
    return given.gather(parts)


@dataclass
class _Found:
    """Output and weights (N, K), streams with their owners and modified gradients, the rules, and the
    relevance of all additive constants together where it is known."""

    out: Tensor
    weights: Tensor
    streams: list[Tensor]
    owners: list[int]
    grads: Sequence[Tensor | None]
    rules: Composite
    constants: Tensor | None = None


def _eager(
    model: nn.Module,
    given: Inputs,
    rules: Composite,
    output: Any,
    pick: Output | None,
    frequency: bool,
    measure: bool | None,
) -> _Found:
    if measure is None:
        measure = first_use(model, given, rules)
    run, rules = auto.run(model, given, rules, pick, frequency, biases=measure and not rules.plain)
    if measure:
        check_values(model, given, run, pick)
    out, k = run.output.detach(), len(run.streams)
    weights = _weights(out, run.shape, output, pick)
    if not run.output.requires_grad:
        raise InputError("the score does not depend on the input", "explain an output that does")
    leaves = [leaf for _, leaf in run.biases]
    with backward():
        grads = torch.autograd.grad(run.output, [*run.streams, *leaves], weights, allow_unused=True)
    constants = None
    if measure and not rules.plain:
        constants = out.new_zeros((), dtype=torch.promote_types(out.dtype, torch.float32))
        for leaf, g in zip(leaves, grads[k:], strict=True):
            if g is not None:
                constants = constants + (leaf.detach() * g).sum()
    streams = [s.detach() for s in run.streams]
    return _Found(out, weights, streams, run.owners, grads[:k], rules, constants)


def _functional(
    model: nn.Module, given: Inputs, rules: Composite, output: Any, pick: Output | None, frequency: bool
) -> _Found:
    """Everything as differentiable functions of the inputs."""
    probe, rules = auto.run(model, given, rules, pick, frequency, transforms=True)
    k = len(given.tensors)

    def rewritten(*streams: Tensor) -> Tensor:
        inputs = given.replace(streams[:k])
        return execute(model, inputs, rules, pick, list(streams[k:]), transforms=True).output

    transformed_call: Any = torch.func.vjp(rewritten, *probe.streams)
    out, pullback = transformed_call
    weights = _weights(out, probe.shape, output, pick)
    return _Found(out, weights, probe.streams, probe.owners, pullback(weights), rules)


def _weights(out: Tensor, shape: tuple[int, ...], output: Any, pick: Output | None) -> Tensor:
    """Weights (N, K) of the outputs (N, K) that the model returned in this shape."""
    if pick is None:
        return cotangent(out.reshape(shape), output).reshape(out.shape)
    if out.shape[1] != 1:
        raise InputError(
            f"output= returns a tensor of shape {shape}, not one score per input",
            f"go on from there to (N,), for example {written(shape, '(…)')}",
        )
    return torch.ones_like(out)


def _check_finite(score: Tensor, values: Sequence[Tensor], keys: Sequence[Any], rules: Composite) -> None:
    """Raise NotFinite with what to do about it."""
    bad = ~torch.isfinite(score.detach())
    worse = [(~torch.isfinite(v.detach())).flatten(1).any(1) for v in values]
    if not bool(torch.stack([bad, *worse]).any()):
        return
    half = "compute in float32: model.float(), x.float(), no autocast"
    remedy = half if score.dtype in _HALF else None
    if bool(bad.any()):
        raise NotFinite(
            f"the explained score of input {int(bad.nonzero()[0])} is {score[bad][0].item()}",
            remedy
            or "look at model(x): the network itself overflows or divides by zero here, or the chosen output "
            "is masked; explain another output or repair the weights",
        )
    at = next(i for i, w in enumerate(worse) if bool(w.any()))
    which = f" of input {keys[at]!r}" if len(values) > 1 else ""
    raise NotFinite(
        f"the relevance{which} for sample {int(worse[at].nonzero()[0])} is not finite under {rules.name!r}",
        remedy
        or "try float64, a larger stabiliser such as composite('epsilon_gamma', epsilon=1e-3), or "
        "composite='auto'",
    )


def _lost(score: Tensor, total: Tensor, constants: Tensor, rules: Composite) -> float:
    """Which share of the scores neither inputs nor additive constants received; warns where it is large."""
    size = float(score.detach().abs().sum())
    gap = abs(float(score.detach().sum() - total.detach().sum() - constants))
    lost = gap / size if size > 0 else (0.0 if gap == 0 else float("inf"))
    if lost > LOSS and score.dtype not in _HALF:  # half precision rounds as much
        warnings.warn(
            f"the composite {rules.name!r} loses {lost:.1%} of the score on this network, biases accounted "
            "for: "
            "compare Relevance.lost of composite='auto', 'epsilon_gamma' and 'transformer'",
            PfungstWarning,
            stacklevel=5,
        )
    return lost


def warn_flat_spectrum(rules: Composite, bases: Sequence[Basis], stacklevel: int = 4) -> None:
    """Warn where the first layer's rule has nothing to say in frequency."""
    flat = any(isinstance(rule, Flat | WSquare) and on.first for on, rule in rules.entries)
    if flat and any(auto.spectral(b) for b in bases):
        warnings.warn(
            f"the composite {rules.name!r} ignores the values of the input in its first layer, so all of its "
            "relevance lies at frequency zero; choose epsilon_plus or epsilon_gamma_box",
            PfungstWarning,
            stacklevel=stacklevel,
        )
