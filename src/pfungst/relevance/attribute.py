"""One explanation per input: ``attribute(model, x, output=…)``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError, PfungstWarning
from pfungst.relevance.bases import Basis, DCTBands, PixelBands, Pixels
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.run import Output, check_input, check_model, execute, transformed
from pfungst.relevance.relevance import Relevance
from pfungst.relevance.rules import Flat, WSquare


def cotangent(out: Tensor, output: Any) -> Tensor:
    """The weights (N, K) with which outputs make up the explained score.

    Args:
        out: (N, K).
        output: a class index, one index per input (N,), weights (N, K) or (K,), or None when K = 1.
    """
    n, k = out.shape
    if output is None:
        if k != 1:
            raise InputError(f"the model has {k} outputs", "choose one with output=, for example output=0")
        output = 0
    if isinstance(output, int):
        output = torch.full((n,), output, device=out.device)
    output = torch.as_tensor(output, device=out.device)
    if output.is_floating_point():
        if output.shape not in ((n, k), (k,)):
            raise InputError(
                f"output weights of shape {tuple(output.shape)} do not fit outputs of shape {(n, k)}",
                f"pass ({n}, {k}) or ({k},)",
            )
        return output.to(out.dtype).expand(n, k)
    if output.ndim == 0:
        output = output.expand(n)
    if output.shape != (n,):
        raise InputError(
            f"output indices of shape {tuple(output.shape)} do not fit {n} inputs", "pass one index per input"
        )
    if not transformed(output) and bool(((output < -k) | (output >= k)).any()):
        wrong = output[(output < -k) | (output >= k)][0].item()
        raise InputError(f"output index {wrong} is out of range", f"the model has {k} outputs, 0 … {k - 1}")
    return torch.nn.functional.one_hot(output.long() % k, k).to(out.dtype)


@torch.compiler.disable  # a compiled caller goes on after it; see linearize
def attribute(
    model: nn.Module,
    x: Tensor,
    output: Any = None,
    composite: str | Composite = "epsilon_plus_flat",
    basis: Basis | None = None,
    differentiable: bool = False,
) -> Relevance:
    """Relevance of each input for one score.

    Args:
        model: any module in evaluation mode; it is not changed.
        x: inputs (N, *sample), floating point, finite. Batched inputs are explained independently.
        output: which score: a class index, a tensor of one index per input, weights (N, K) or (K,), or a
            callable from what the model returns to one score per input (N,), which runs under the rules too.
        composite: the rules, by object or name.
        basis: in which the relevance is read; pixels by default.
        differentiable: keep the graph from `x` to the relevance, so that explanations can be differentiated
            (again) with respect to the input; about twice as slow. Implied under ``torch.func`` transforms.

    Returns:
        Relevance with ``values.sum() + bias == score`` for each input.

    Raises:
        InputError: inputs, model or output that cannot be explained.
        UncoveredOperation: the network uses an operation without a rule.
    """
    basis = basis or Pixels()
    model, rules = check_model(model), _composite(composite)
    pick: Output | None = output if callable(output) else None
    check_input(x)
    _warn_flat_spectrum(rules, basis)
    with torch.inference_mode(False):
        if differentiable or transformed(x):
            out, streams, grads, weights = _functional(model, x, rules, output, pick)
        else:
            run = execute(model, x, rules, pick)
            out, streams = run.output.detach(), [s.detach() for s in run.streams]
            weights = _weights(out, output, pick)
            grads = torch.autograd.grad(run.output, run.streams, weights, allow_unused=True)
        total: Tensor | None = None
        for stream, g in zip(streams, grads, strict=True):
            if g is not None:
                r = basis.contract(stream, g, x.ndim - 1)
                total = r if total is None else total + r
        assert total is not None
        score = (out * weights).sum(1)
    return Relevance(total, score, basis, score - total.flatten(1).sum(1))


def _weights(out: Tensor, output: Any, pick: Output | None) -> Tensor:
    if pick is None:
        return cotangent(out, output)
    if out.shape[1] != 1:
        raise InputError(
            f"output= returns {out.shape[1]} values per input", "return one score per input, (N,)"
        )
    return torch.ones_like(out)


def _functional(
    model: nn.Module, x: Tensor, rules: Composite, output: Any, pick: Output | None
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...], Tensor]:
    """Output, streams, modified gradients and weights, all as differentiable functions of `x`."""
    probe = execute(model, x, rules, pick, transforms=True)

    def rewritten(x: Tensor, *streams: Tensor) -> Tensor:
        return execute(model, x, rules, pick, list(streams), transforms=True).output

    transformed_call: Any = torch.func.vjp(rewritten, *probe.streams)
    out, pullback = transformed_call
    weights = _weights(out, output, pick)
    return out, probe.streams, pullback(weights), weights


def _warn_flat_spectrum(rules: Composite, basis: Basis) -> None:
    flat = any(isinstance(rule, Flat | WSquare) and on.first for on, rule in rules.entries)
    if flat and isinstance(basis, DCTBands | PixelBands):
        warnings.warn(
            f"the composite {rules.name!r} ignores the values of the input in its first layer, so all of its "
            "relevance lies at frequency zero; choose epsilon_plus or epsilon_gamma_box",
            PfungstWarning,
            stacklevel=3,
        )
