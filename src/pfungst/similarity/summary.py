"""What similarity within a group of inputs rests on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance import Relevance
from pfungst.similarity.factors import Factors


@dataclass
class GroupSummary:
    """BiLRP averaged over the pairs of a group.

    Attributes:
        label: the group; for pairs across groups a tuple.
        pairs: number of pairs averaged.
        of: number of pairs there are.
        similarity: mean similarity.
        magnitude: (P, P) mean |relevance| of each pair of components.
        net: (P, P) mean relevance.
        profile: mean |relevance| of each component, both sides together, in the shape of the grid, summing to
            1.
        top: the pairs of components of largest mean magnitude, (p, q, share of all).
        bias_share: mean share of the similarity that biases absorbed.
    """

    label: Any
    pairs: int
    of: int
    similarity: float
    magnitude: Tensor
    net: Tensor
    profile: Tensor
    top: list[tuple[int, int, float]]
    bias_share: float


def summarise(
    pair: Callable[[int, int], Relevance],
    factors: Factors,
    labels: Sequence[Any],
    max_pairs: int = 200,
    top: int = 10,
    seed: int = 0,
) -> list[GroupSummary]:
    """Mean BiLRP over the pairs within each group.

    Args:
        pair: gives BiLRP of two inputs by number.
        factors: of inputs with the same components.
        labels: the group of each input; groups of one input have no pair and are left out.
        max_pairs: at most this many pairs per group, drawn at random.
        top: number of pairs of components that are named.
        seed: of the draw.

    Raises:
        InputError: labels that do not match, or no group with two inputs.
    """
    values = list(labels)
    if len(values) != len(factors):
        raise InputError(f"{len(values)} labels for {len(factors)} inputs", "pass one label per input")
    if len(set(factors.grids)) > 1:
        raise InputError("inputs with different components cannot be averaged", "compare texts one by one")
    rng = np.random.default_rng(seed)
    summaries = []
    for label in dict.fromkeys(values):
        members = [i for i, v in enumerate(values) if v == label]
        everything = list(itertools.combinations(members, 2))
        if not everything:
            continue
        chosen = everything
        if len(everything) > max_pairs:
            chosen = [everything[i] for i in sorted(rng.choice(len(everything), max_pairs, replace=False))]
        summaries.append(_average(label, pair, chosen, len(everything), factors.grids[0], top))
    if not summaries:
        raise InputError(
            f"none of the {len(set(values))} groups has two inputs", "pairs need groups of two or more"
        )
    return summaries


def _average(
    label: Any,
    pair: Callable[[int, int], Relevance],
    chosen: list[tuple[int, int]],
    count: int,
    grid: tuple[int, ...],
    top: int,
) -> GroupSummary:
    magnitude, net, score, bias = torch.zeros(()), torch.zeros(()), 0.0, 0.0
    for i, j in chosen:
        r = pair(i, j)
        magnitude = magnitude + (r.values[0].abs() + r.values[0].abs().T) / 2  # pairs have no order
        net = net + (r.values[0] + r.values[0].T) / 2
        score += float(r.score[0])
        bias += r.bias_share
    magnitude, net = magnitude / len(chosen), net / len(chosen)
    total = magnitude.sum().clamp(min=torch.finfo(magnitude.dtype).tiny)
    upper = magnitude.triu() + magnitude.tril(-1).T  # p ↔ q and q ↔ p are one pair
    order = upper.flatten().topk(min(top, upper.numel())).indices.tolist()
    size = len(magnitude)
    return GroupSummary(
        label=label,
        pairs=len(chosen),
        of=count,
        similarity=score / len(chosen),
        magnitude=magnitude,
        net=net,
        profile=(magnitude.sum(1) / total).reshape(grid),
        top=[(i // size, i % size, float(upper.flatten()[i] / total)) for i in order],
        bias_share=bias / len(chosen),
    )
