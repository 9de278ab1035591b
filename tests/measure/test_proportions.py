"""Shares with their intervals, paired falls, and orders of classes that fit better."""

import numpy as np
import pytest
from scipy import stats

from pfungst.measure.proportions import (
    above_chance,
    auroc_interval,
    better_order,
    f1_interval,
    mean_share,
    paired_difference,
    share_difference,
    wilson,
    wilson_of,
)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (1, 4), (8, 10), (500, 1000), (2, 2)])
def test_wilson_is_scipys(right, n):
    found = wilson(np.arange(n) < right)
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_interval_just_above_chance_is_not_above_it():
    """Regression: an untrained network whose accuracy was 0.27 or more, of four classes, was called sound."""
    assert not above_chance(wilson_of(0.33, 200).low, 0.25)
    honest = [(0.6, 40, 0.25), (0.6, 99, 0.001), (0.02, 1000, 0.001), (0.6, 1000, 0.5), (0.75, 40, 0.5)]
    assert [above_chance(wilson_of(p, n).low, chance) for p, n, chance in honest] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert not above_chance(float("nan"), 0.5)


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


def test_a_paired_fall_is_narrower_than_an_unpaired_one_and_has_a_width_at_the_edge():
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.8
    after = before & (rng.random(400) < 0.95)
    found = paired_difference(before, after)
    change = before.astype(float) - after
    half = 1.96 * change.std() / 20
    assert found == pytest.approx((change.mean(), change.mean() - half, change.mean() + half), abs=0.006)
    assert found.high - found.low < 0.6 * np.ptp(share_difference(wilson(before), wilson(after))[1:])
    same = paired_difference(
        before, before
    )  # regression: the loss of a model that answers alike was 0, 0 to 0
    assert -0.02 < same.low < 0 < same.high < 0.02


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


def answers(both, first, second, neither):
    """Two models' answers on the same images, from their fourfold table."""
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, statistics in medicine 17, 2635, table II
        ((1, 1, 7, 12), -0.507, -0.026),  # Bentur et al. 2009, in Fagerland et al. 2017, chapter 8
    ],
)
def test_a_paired_difference_is_newcombes(table, low, high):
    found = paired_difference(*answers(*table))
    assert found.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert found[1:] == pytest.approx((low, high), abs=5e-4)


def test_a_paired_difference_by_hand():
    """20 right in both, 12 and 2 in one, 16 in neither; φ with the continuity correction n/2 = 25."""
    first, second = (stats.binomtest(k, 50).proportion_ci(method="wilson") for k in (32, 22))
    phi = (20 * 16 - 12 * 2 - 25) / np.sqrt(32 * 18 * 22 * 28)
    a, b = 0.64 - first.low, second.high - 0.44
    c, d = first.high - 0.64, 0.44 - second.low
    low, high = (0.2 + s * np.sqrt(x * x - 2 * phi * x * y + y * y) for s, x, y in ((-1, a, b), (1, c, d)))
    assert paired_difference(*answers(20, 12, 2, 16)) == pytest.approx((0.2, low, high), abs=1e-9)


def test_a_difference_has_a_width_where_every_image_agrees():
    """Regression: FPR 0.00 → 1.00 of 30 images had the interval +1.00 to +1.00."""
    end = stats.binomtest(30, 30).proportion_ci(method="wilson").low
    one = paired_difference(np.ones(30), np.zeros(30))
    assert one == pytest.approx((1, 1 - np.hypot(1 - end, 1 - end), 1))
    none = paired_difference(np.ones(30), np.ones(30))
    assert (none.low, none.high) == pytest.approx((end - 1, 1 - end))
    assert share_difference(wilson(np.ones(30)), wilson(np.zeros(30))) == pytest.approx(one)


def test_paired_differences_cover_at_every_level():
    rng = np.random.default_rng(0)
    chances = [0.85, 0.1, 0.03, 0.02]
    for level in (0.95, 0.999):
        found = [paired_difference(*answers(*rng.multinomial(60, chances)), level) for _ in range(1500)]
        covered = np.mean([f.low <= 0.07 <= f.high for f in found])
        assert level - 0.02 < covered < min(1.0, level + 0.03) + 1e-12


def test_the_ends_of_an_aurocs_interval_solve_their_equation():
    """Newcombe 2006: |θ − AUROC| is z standard errors at θ, those of Hanley and McNeil with the mean number."""
    n, m, z = 10, 20, stats.norm.ppf(0.975)
    for value in (0.0, 0.7, 1.0):
        found = auroc_interval(value, n, m)
        for theta in {found.low, found.high} - {0.0, 1.0}:
            q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
            mean = (n + m) / 2
            variance = (theta * (1 - theta) + (mean - 1) * (q1 + q2 - 2 * theta**2)) / (n * m)
            assert abs(theta - value) == pytest.approx(z * np.sqrt(variance), rel=1e-6)
        assert found.low <= value <= found.high
        assert found.high - found.low > 0.1
    assert np.isnan(auroc_interval(0.5, 0, 3).low)


def test_an_f1s_interval_has_a_width_where_everything_is_flagged():
    low, high = (stats.binomtest(n, n).proportion_ci(method="wilson").low for n in (15, 30))
    by_hand = [2 * 15 * tp / (15 * tp + 15 + 30 * fp) for tp, fp in ((low, 1), (1, high))]
    found = f1_interval(np.ones(15), np.ones(30))
    assert found == pytest.approx((0.5, by_hand[0], by_hand[1]))
