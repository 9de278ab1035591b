"""Falls on groups of images: against SciPy and numbers by hand."""

import numpy as np
import pytest
from scipy import stats

from pfungst.errors import InputError
from pfungst.measure import holm, subgroup_fall


def made(seed=0, n=400, inside=0.6, outside=0.9, classes=2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    group = rng.random(n) < 0.3
    correct = (rng.random(n) < np.where(group, inside, outside)).astype(float)
    return correct, labels, group


def test_one_class_is_scipys_permutation_test_and_bootstrap():
    correct, labels, group = made(classes=1, inside=0.8)
    found = subgroup_fall(correct, labels, group, resamples=4000).whole
    sides = correct[~group], correct[group]

    def difference(a, b, axis=-1):
        return a.mean(axis) - b.mean(axis)

    test = stats.permutation_test(sides, difference, n_resamples=4000, random_state=np.random.default_rng(0))
    assert found.fall.value == pytest.approx(test.statistic)
    assert found.p == pytest.approx(test.pvalue, abs=0.01)
    interval = stats.bootstrap(
        sides, difference, method="percentile", n_resamples=4000, random_state=np.random.default_rng(0)
    ).confidence_interval
    assert (found.fall.low, found.fall.high) == pytest.approx(interval, abs=0.015)


def test_a_group_that_is_always_right_has_an_interval():
    """Regression: 11 of 11 against 89 of 89 was a fall of 0, from 0 to 0."""
    found = subgroup_fall(np.ones(100), np.zeros(100), np.arange(100) < 11).whole
    assert found.fall == pytest.approx((0, -0.041, 0.259), abs=1e-3)


def test_the_harder_classes_alone_are_no_fall():
    """Class 1 is hard for everybody and most of the group: only the plain accuracy is lower."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 500)
    group = rng.random(1000) < np.where(labels, 0.6, 0.1)
    correct = (rng.random(1000) < np.where(labels, 0.5, 0.95)).astype(float)
    assert correct[~group].mean() - correct[group].mean() > 0.15
    found = subgroup_fall(correct, labels, group)
    assert abs(found.whole.fall.value) < 0.06
    assert found.whole.p > 0.05


def test_a_group_that_lifts_one_class_and_lowers_another_shows_by_class():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 400)
    group = np.tile([True, False], 400)
    correct = (rng.random(800) < np.where(group == labels.astype(bool), 0.6, 0.9)).astype(float)
    found = subgroup_fall(correct, labels, group)
    assert found.whole.p > 0.05
    assert found.classes["1"].fall.value > 0.2 > -0.2 > found.classes["0"].fall.value
    assert max(f.p for f in found.classes.values()) < 0.01


def test_by_hand():
    labels = np.repeat(["a", "b"], 20)
    group = np.tile([True, False], 20)
    correct = np.ones(40)
    correct[[0, 2, 4, 6, 21]] = 0  # four of class a in the group, one of class b outside
    found = subgroup_fall(correct, labels, group)
    assert (found.whole.inside, found.whole.outside) == pytest.approx((0.8, 0.95))
    assert found.classes["a"].fall.value == pytest.approx(0.4)
    assert (found.classes["b"].n, found.classes["b"].others) == (10, 10)


def test_too_few_images_are_not_compared():
    correct, labels, group = made()
    group[:] = False
    group[:9] = True
    assert subgroup_fall(correct, np.zeros(400), group) is None
    assert subgroup_fall(correct, np.zeros(400), group, least=9) is not None
    with pytest.raises(InputError, match="pass one each"):
        subgroup_fall(correct, labels[1:], group)


def test_units_that_repeat_their_images_widen_the_interval():
    """Ten copies of every image say no more than one."""
    correct, labels, group = made(n=120, inside=0.75)
    units = np.tile(np.arange(120), 10)
    ten = [np.tile(v, 10) for v in (correct, labels, group)]
    one, copies = subgroup_fall(correct, labels, group), subgroup_fall(*ten, units=units)
    assert copies.whole.p == pytest.approx(one.whole.p, abs=0.03)
    assert copies.whole.fall.high - copies.whole.fall.low == pytest.approx(
        one.whole.fall.high - one.whole.fall.low, rel=0.15
    )
    assert subgroup_fall(*ten).whole.p < one.whole.p / 2


def test_holms_adjustment_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_false_falls_are_rare():
    """Of 200 random groups of a model that is right by chance alone, about one in twenty has P < 0.05."""
    wrong = [
        subgroup_fall(*made(seed, inside=0.8, outside=0.8), resamples=400).whole.p < 0.05
        for seed in range(200)
    ]
    assert np.mean(wrong) < 0.09
