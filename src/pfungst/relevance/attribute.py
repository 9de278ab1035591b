"""One explanation per input: ``attribute(model, x, output=…)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.relevance.bases import Basis, Pixels
from pfungst.relevance.composites import Composite, composite as _composite
from pfungst.relevance.linearize import Output, check_input, check_model, execute
from pfungst.relevance.relevance import Relevance


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
    if bool(((output < -k) | (output >= k)).any()):
        wrong = output[(output < -k) | (output >= k)][0].item()
        raise InputError(f"output index {wrong} is out of range", f"the model has {k} outputs, 0 … {k - 1}")
    return torch.nn.functional.one_hot(output.long() % k, k).to(out.dtype)


def attribute(
    model: nn.Module,
    x: Tensor,
    output: Any = None,
    composite: str | Composite = "epsilon_plus_flat",
    basis: Basis | None = None,
) -> Relevance:
    """Relevance of each input for one score.

    Args:
        model: any module in evaluation mode; it is not changed.
        x: inputs (N, *sample), floating point, finite. Batched inputs are explained independently.
        output: which score: a class index, a tensor of one index per input, weights (N, K) or (K,), or a
            callable from what the model returns to one score per input (N,), which runs under the rules too.
        composite: the rules, by object or name.
        basis: in which the relevance is read; pixels by default.

    Returns:
        Relevance with ``values.sum() + bias == score`` for each input.

    Raises:
        InputError: inputs, model or output that cannot be explained.
        UncoveredOperation: the network uses an operation without a rule.
    """
    basis = basis or Pixels()
    model, rules = check_model(model), _composite(composite)
    pick: Output | None = output if callable(output) else None
    with torch.inference_mode(False):
        run = execute(model, check_input(x), rules, pick)
        if pick is not None and run.output.shape[1] != 1:
            raise InputError(
                f"output= returns {run.output.shape[1]} values per input", "return one score per input, (N,)"
            )
        weights = cotangent(run.output.detach(), None if pick is not None else output)
        grads = torch.autograd.grad(run.output, run.streams, weights, allow_unused=True)
        total: Tensor | None = None
        for stream, g in zip(run.streams, grads, strict=True):
            if g is not None:
                r = basis.contract(stream.detach(), g, x.ndim - 1)
                total = r if total is None else total + r
        assert total is not None
        score = (run.output.detach() * weights).sum(1)
    return Relevance(total, score, basis, score - total.flatten(1).sum(1))
