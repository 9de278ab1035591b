"""Similarities and distances of two vectors.

A cosine is linear in each of its vectors once their norms are constants. A distance ‖x₁ − x₂‖ is homogeneous
of degree one: its derivative hands it out completely to both vectors. Where one of them does not depend on
the input, what it receives is a constant of the explanation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.engine.calls import bind
from pfungst.relevance.engine.formulas import original
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.rules import Term, _quotient


def _sides(mode: RelevanceMode, name: str, *tensors: Tensor) -> list[Tensor]:
    """The arguments of a similarity; what does not depend on the input is a constant that may take
    relevance."""
    out = []
    for t in tensors:
        t = mode.settle(t)
        if not mode.tracked(t):
            t = mode.constant(t, name)
        out.append(t)
    return out


def _joined(
    mode: RelevanceMode, name: str, value: Tensor, terms: list[Term], note: str, **marks: Any
) -> Tensor:
    out = mode.attach(value, [(zhat, c.expand_as(zhat).contiguous()) for zhat, c in terms])
    mode.record(name, out, note)
    return mode.mark(out, **marks)


def cosine_similarity(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """⟨x₁, x₂⟩ / (‖x₁‖ ‖x₂‖) with constant norms; half to each vector that depends on the input."""
    b = bind("x1 x2 dim eps", args, kwargs)
    dim, eps = b.get("dim", 1), b.get("eps", 1e-8)
    value = original(mode, func, name, args, kwargs)
    a, c = mode.settle(b["x1"]), mode.settle(b["x2"])
    with mode.quiet():
        a0, c0 = torch.broadcast_tensors(mode.stop(a), mode.stop(c))
        norm = a0.norm(dim=dim, keepdim=True).clamp_min(eps) * c0.norm(dim=dim, keepdim=True).clamp_min(eps)
        a0, c0 = a0 / norm, c0 / norm
    with torch.enable_grad():
        products = [(x * y).sum(dim) for x, y in ((a, c0), (c, a0)) if mode.tracked(x)]
    share = torch.full((), 1 / len(products), dtype=value.dtype, device=value.device)
    return _joined(mode, name, value, [(p, share) for p in products], "norms are constants")


def _along(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """∂‖d‖ₚ / ∂d over the last axis of d, zero where the distance is zero."""
    distance = distance.unsqueeze(-1)
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return difference.sign()
    if p == float("inf"):
        most = difference.abs() == difference.abs().amax(-1, keepdim=True)
        return difference.sign() * most / most.sum(-1, keepdim=True)
    ratio = _quotient(difference.abs(), distance, 0.0)
    return difference.sign() * torch.where(ratio == 0, 0.0, ratio ** (p - 1))


def _distance(
    mode: RelevanceMode,
    name: str,
    value: Tensor,
    a: Tensor,
    c: Tensor,
    p: float,
    eps: float = 0.0,
    pairs: bool = False,
) -> Tensor:
    """Attach the derivative of ‖a − c + ε‖ₚ over the last axis, for every pair of rows if asked for."""
    a, c = _sides(mode, name, a, c)
    with mode.quiet():
        flat, a0, c0 = value, mode.stop(a), mode.stop(c)
        if pairs and p == 2:  # without the differences of all pairs in memory
            inverse = _quotient(torch.ones_like(flat), flat, 0.0)
        else:
            if pairs:
                a0, c0 = a0.unsqueeze(-2), c0.unsqueeze(-3)
            g = _along(a0 - c0 + eps, flat, p)
    with torch.enable_grad():
        if pairs and p == 2:
            zhat = (a * a0).sum(-1)[..., :, None] - a @ c0.mT - a0 @ c.mT + (c * c0).sum(-1)[..., None, :]
            terms = [(zhat, inverse)]
        else:
            if pairs:
                a, c = a.unsqueeze(-2), c.unsqueeze(-3)
            terms = [(((a - c) * g).sum(-1), torch.ones((), dtype=value.dtype, device=value.device))]
    return _joined(mode, name, value, terms, "in proportion to the differences", nonnegative=True, gate=True)


def cdist(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Distances of all pairs of two sets of rows."""
    b = bind("x1 x2 p compute_mode", args, kwargs)
    value = original(mode, func, name, args, kwargs)
    return _distance(mode, name, value, b["x1"], b["x2"], float(b.get("p", 2.0)), pairs=True)


def pairwise_distance(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Distances of rows, row by row."""
    b = bind("x1 x2 p eps keepdim", args, kwargs)
    kept = bool(b.get("keepdim", False))
    value = original(mode, func, name, args, kwargs)
    value = value.squeeze(-1) if kept else value
    out = _distance(mode, name, value, b["x1"], b["x2"], float(b.get("p", 2.0)), b.get("eps", 1e-6))
    return _kept(mode, out) if kept else out


def _kept(mode: RelevanceMode, out: Tensor) -> Tensor:
    with torch.enable_grad():
        return mode.mark(out.unsqueeze(-1), nonnegative=True, gate=True)


def pdist(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Distances of all pairs of rows of one set."""
    b = bind("input p", args, kwargs)
    x = mode.settle(b["input"])
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    value = original(mode, func, name, args, kwargs)
    with torch.enable_grad():
        a, c = mode.mark(x[first]), mode.mark(x[second])
    return _distance(mode, name, value, a, c, float(b.get("p", 2.0)))


def dist(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """The distance of two tensors."""
    b = bind("input other p", args, kwargs)
    value = original(mode, func, name, args, kwargs)
    sides = (mode.settle(t) for t in (b["input"], b["other"]))
    with torch.enable_grad():
        a, c = (mode.mark(t.flatten(), tracked=mode.tracked(t)) for t in torch.broadcast_tensors(*sides))
    return _distance(mode, name, value, a, c, float(b.get("p", 2.0)))


def hypot(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """√(x² + y²), homogeneous of degree one; zero at zero."""
    b = bind("input other", args, kwargs)
    value = original(mode, func, name, args, kwargs)
    x, y = _sides(mode, name, b["input"], b["other"])
    with torch.enable_grad():
        terms = [(t.expand_as(value), _quotient(mode.stop(t).expand_as(value), value, 0.0)) for t in (x, y)]
    return _joined(mode, name, value, terms, "in proportion to the squares", nonnegative=True, gate=True)
