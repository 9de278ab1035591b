"""Mixtures of experts: each group of rows has a linear map of its own, the routing is a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.engine.calls import bind
from pfungst.relevance.engine.formulas import attached, expanded, original
from pfungst.relevance.engine.mode import RelevanceMode


def _first(bound: dict[str, Any], names: str) -> Any:
    return next(bound[n] for n in names.split() if n in bound)


def grouped_matmul(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Rows offs[e − 1] … offs[e] of (S, in) times matrix e of (experts, in, out); the composite's rule for
    each."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    signature = {"grouped_mm": "mat_a mat_b offs bias", "_grouped_mm": "input mat2 offs bias"}
    b = bind(signature.get(name, "input weight offs"), args, kwargs)
    x, weight = _first(b, "input mat_a"), _first(b, "weight mat2 mat_b")
    offs, bias = b.get("offs"), b.get("bias")
    if mode.tracked(weight) or mode.tracked(bias):
        mode.uncovered(f"{name} with weights computed from the input")
    if offs is None and x.ndim == 3:
        return attached(
            mode,
            original(mode, func, name, args, kwargs),
            expanded(mode, name, "each group its product", lambda: x @ weight),
        )
    if x.ndim != 2 or weight.ndim != 3:
        mode.uncovered(name)
    ends = b["offs"].tolist()

    def run() -> Tensor:
        parts = []
        for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                parts.append(
                    F.linear(x[start:end], weight[expert].t(), None if bias is None else bias[expert])
                )
        if not parts or ends[-1] < len(x):
            parts.append(0 * (x[ends[-1] :] @ weight[0]))
        return torch.cat(parts)

    zhat = expanded(mode, name, "each group the composite's linear rule", run)
    return attached(mode, original(mode, func, name, args, kwargs), zhat)
