"""Shares with their intervals, paired falls, and orders of classes that fit better."""

import numpy as np
import pytest
from scipy import stats

from pfungst.measure.proportions import (
    better_order,
    mean_share,
    paired_fall,
    share_difference,
    wilson,
    wilson_of,
)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (1, 4), (8, 10), (500, 1000), (2, 2)])
def test_wilson_is_scipys(right, n):
    found = wilson(np.arange(n) < right)
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_none_of_36_is_up_to_10_percent():
    """Regression: FNR 0 of 36 had the interval 0 to 0."""
    assert wilson_of(0.0, 36) == pytest.approx((0, 0, 0.0964), abs=1e-4)
    assert np.isnan(wilson_of(float("nan"), 0)).all()


def test_a_difference_of_shares_is_newcombes():
    """Newcombe 1998, table II: 56 of 70 less 48 of 80, by method 10."""
    found = share_difference(wilson_of(56 / 70, 70), wilson_of(48 / 80, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_the_mean_of_shares_covers():
    """Of mean recalls near 1, where the bootstrap's interval often has no width."""
    rng = np.random.default_rng(0)
    true = np.array([0.99, 0.95, 0.9])
    hits = rng.binomial(30, true, size=(500, 3))
    found = [mean_share([wilson_of(k / 30, 30) for k in row]) for row in hits]
    covered = np.mean([f.low <= true.mean() <= f.high for f in found])
    assert 0.93 < covered < 0.995
    one = wilson_of(0.7, 20)
    assert mean_share([one]) == pytest.approx(one)
    assert np.isnan(mean_share([wilson_of(float("nan"), 0), one]).value)


def test_a_paired_fall_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.8
    after = before & (rng.random(400) < 0.95)
    found = paired_fall(before, after)
    change = before.astype(float) - after
    half = 1.96 * change.std() / 20
    assert found == pytest.approx((change.mean(), change.mean() - half, change.mean() + half), abs=0.006)
    assert paired_fall(before, before) == (0.0, 0.0, 0.0)


def predictions(rng, labels, order, accuracy, n_outputs):
    right = rng.random(len(labels)) < accuracy
    return np.where(right, np.array(order)[labels], rng.integers(n_outputs, size=len(labels)))


def test_a_permutation_of_the_classes_is_found():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 10
    order = [*range(1, 10), 0]
    share, found = better_order(labels, predictions(rng, labels, order, 0.8, 10))
    assert found == dict(enumerate(order))
    assert share.value > 0.7
    share, found = better_order(labels, predictions(rng, labels, [100 * k + 7 for k in range(10)], 0.8, 1000))
    assert found == {k: 100 * k + 7 for k in range(10)}


@pytest.mark.parametrize("n", [20, 40, 400])
def test_no_order_is_better_by_chance(n):
    """The best assignment of ten classes to random answers fits the images it was chosen on, not others."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 10
        assert better_order(labels, rng.integers(10, size=n)) is None
        assert better_order(labels, predictions(rng, labels, list(range(10)), 0.7, 10)) is None


def test_one_class_taken_for_another_is_no_order():
    labels = np.arange(100) % 2
    assert better_order(labels, np.where(labels == 1, 478, 0)) is None
