"""Likenesses over a data set: against all pairs by hand."""

import itertools

import numpy as np
import pytest

from pfungst.similarity import shared_likeness, similar_pairs


def made(seed=0, n=90, shared=1.0):
    """Three classes; the images of a group share a direction that no class has."""
    rng = np.random.default_rng(seed)
    labels = np.array(list("abc"))[np.arange(n) % 3]
    inside = np.arange(n) % 2 == 0
    x = 3 * np.eye(8)[np.arange(n) % 3] + rng.normal(0, 0.5, (n, 8))
    x[inside, 7] += shared
    return x, labels, inside


def test_means_are_those_of_all_pairs():
    x, labels, inside = made(shared=2.0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    by_hand = []
    for side in (inside, ~inside):
        cells = []
        for c, d in itertools.combinations("abc", 2):
            a, b = unit[side & (labels == c)], unit[side & (labels == d)]
            cells.append(np.mean([u @ v for u in a for v in b]))
        by_hand.append(np.mean(cells))  # all cells have equally many pairs
    found = shared_likeness(x, labels, inside)
    assert (found.inside, found.outside) == pytest.approx(by_hand)
    assert found.excess.value == pytest.approx(by_hand[0] - by_hand[1])
    assert found.excess.low > 0
    assert found.classes == ("a", "b", "c")


def test_nothing_shared_is_nothing_found():
    found = [shared_likeness(*made(seed, shared=0.0)).excess for seed in range(20)]
    assert np.mean([e.low <= 0 <= e.high for e in found]) >= 0.8


def test_one_class_on_both_sides_is_too_few():
    x, labels, inside = made()
    assert shared_likeness(x, labels, inside & (labels == "a")) is None


def test_pairs_of_different_classes_by_hand():
    x, labels, _ = made(n=30)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    best = max(
        (unit[i] @ unit[j], i, j) for i, j in itertools.combinations(range(30), 2) if labels[i] != labels[j]
    )
    ((i, j, s),) = similar_pairs(x, np.arange(30), np.arange(30), 1, apart=labels)
    assert (s, i, j) == pytest.approx(best)
