"""Attention: the weights are constants, the values linear."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.engine.calls import bind
from pfungst.relevance.engine.mode import RelevanceMode


def softmax(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Attention weights are constants; relevance flows through the values."""
    if name != "softmax":
        mode.uncovered(name)
    with mode.quiet():
        out = mode.stop(func(*(mode.stop_all(args)), **mode.stop_all(kwargs)))
    mode.record(name, out, "constant")
    return out


def attention(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Queries and keys give constant weights; values propagate linearly."""
    b = bind("query key value attn_mask dropout_p is_causal scale enable_gqa", args, kwargs)
    if b.get("dropout_p", 0.0):
        raise InputError(
            f"attention dropout is active in module {mode.module_name()!r}", "call model.eval() first"
        )
    b = {k: mode.settle(v) if isinstance(v, Tensor) else v for k, v in b.items()}
    q, k, v = b["query"], b["key"], b["value"]
    with mode.quiet():
        value = func(**{k: mode.stop(v) if isinstance(v, Tensor) else v for k, v in b.items()})
        q, k = mode.stop(q), mode.stop(k)
        if b.get("enable_gqa"):
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        scale = b.get("scale")
        weights = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        mask = b.get("attn_mask")
        if mask is not None:
            mask = mode.stop(mask)
            weights = weights.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else weights + mask
        if b.get("is_causal"):
            causal = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
            weights = weights.masked_fill(~causal, -math.inf)
        masked = (weights == -math.inf).all(-1, keepdim=True)  # attends to nothing: its output is zero
        weights = weights.softmax(-1).masked_fill(masked, 0.0).to(v.dtype)
    with torch.enable_grad():
        if b.get("enable_gqa"):
            v = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
        out = mode.exactly(value, weights @ v)
    mode.record(name, out, "attention weights constant, values linear")
    return mode.mark(out)
