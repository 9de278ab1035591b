"""How well people agree: raw agreement and Cohen's κ (Cohen 1960, A coefficient of agreement for nominal
scales)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations


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
    n = len(pairs)
    if n == 0:
        return math.nan, math.nan
    same = sum(a == b for a, b in pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    # Integers until the last division: exactly 1 stays exactly 1.
    by_chance = sum(first[answer] * second[answer] for answer in first)
    if by_chance == n * n:
        return same / n, math.nan
    return same / n, (n * same - by_chance) / (n * n - by_chance)


def pairwise(answers: Mapping[str, Mapping[str, str]]) -> list[PairAgreement]:
    """Agreement of every two labellers.

    Args:
        answers: item → answer, by labeller.

    Returns:
        One entry per pair, in the order of the labellers.
    """
    result = []
    for first, second in combinations(answers, 2):
        common = [i for i in answers[first] if i in answers[second]]
        share, kappa = cohen_kappa([(answers[first][i], answers[second][i]) for i in common])
        result.append(PairAgreement(first, second, len(common), share, kappa))
    return result
