"""How well people agree: raw agreement and Cohen's κ (Cohen 1960)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class PairAgreement:
    """Two labellers on the items that both answered.

    Args:
        first, second: names of the labellers.
        items: how many items both answered.
        agreement: share of equal answers, NaN without common items.
        kappa: Cohen's κ, NaN where it is undefined (no common items, or both always gave one same answer).
    """

    first: str
    second: str
    items: int
    agreement: float
    kappa: float


def cohen_kappa(pairs: list[tuple[str, str]]) -> tuple[float, float]:
    """Raw agreement p_o and κ = (p_o − p_e) / (1 − p_e), p_e from the two margins.

    Args:
        pairs: the two answers to each item.

    Returns:
        Agreement and κ; NaN where undefined.
    """
    first, second = ({str(i): pair[k] for i, pair in enumerate(pairs)} for k in (0, 1))
    (found,) = pairwise({"first": first, "second": second})
    return found.agreement, found.kappa


def pairwise(answers: Mapping[str, Mapping[str, str]]) -> list[PairAgreement]:
    """Agreement of every two labellers; see :func:`cohen_kappa`.

    Args:
        answers: item → answer, by labeller.

    Returns:
        One entry per pair, in the order of the labellers.
    """
    names = list(answers)
    items = {item: i for i, item in enumerate(dict.fromkeys(i for given in answers.values() for i in given))}
    choices = {a: i for i, a in enumerate(dict.fromkeys(a for g in answers.values() for a in g.values()))}
    gave = np.zeros((len(choices), len(names), len(items)), np.float32)  # counts below 2²⁴ are exact
    for person, given in enumerate(answers.values()):
        for item, answer in given.items():
            gave[choices[answer], person, items[item]] = 1
    known = gave.sum(0)
    n, same = known @ known.T, np.einsum("api,aqi->pq", gave, gave, optimize=True)
    margins = gave @ known.T  # how often the one gave an answer to what the other has answered too
    by_chance = (margins.astype(float) * margins.transpose(0, 2, 1)).sum(0)
    result = []
    for p, q in combinations(range(len(names)), 2):
        # Integers until the last division: exactly 1 stays exactly 1.
        count, equal, chance = int(n[p, q]), int(same[p, q]), int(by_chance[p, q])
        share = equal / count if count else math.nan
        kappa = math.nan if chance == count**2 else (count * equal - chance) / (count**2 - chance)
        result.append(PairAgreement(names[p], names[q], count, share, kappa))
    return result
