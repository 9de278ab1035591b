"""Two models on the same images, and samples that shift, against scikit-learn, SciPy and sums by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from pfungst.errors import InputError
from pfungst.measure import auroc
from pfungst.measure.paired import change, class_balanced, mcnemar, shift

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 9), (7, 7), (20, 3)])
def test_mcnemar_is_the_binomial_sum_by_hand(lost, gained):
    before = np.r_[np.ones(lost), np.zeros(gained), np.ones(30), np.zeros(5)].astype(bool)
    after = np.r_[np.zeros(lost), np.ones(gained), np.ones(30), np.zeros(5)].astype(bool)
    n = lost + gained
    tail = sum(math.comb(n, i) for i in range(min(lost, gained) + 1)) / 2**n
    assert mcnemar(before, after) == (lost, gained, pytest.approx(min(1.0, 2 * tail) if n else 1.0))
    with pytest.raises(InputError, match="same images"):
        mcnemar(before, after[1:])


def test_class_balanced_accuracy_is_scikit_learns():
    labels = RNG.integers(0, 3, 60)
    predicted = np.where(RNG.random(60) < 0.7, labels, RNG.integers(0, 3, 60))
    weights = RNG.integers(0, 4, (5, 60)).astype(float)
    found = class_balanced(predicted == labels, labels)(weights)
    expected = [balanced_accuracy_score(labels, predicted, sample_weight=w) for w in weights]
    assert found == pytest.approx(expected)


def test_a_paired_change_is_surer_than_an_unpaired_one():
    labels = np.repeat([0, 1], 80)
    a = labels + RNG.normal(0, 0.8, 160)
    b = a + RNG.normal(0, 0.05, 160)
    before, after = (lambda w, s=s: np.asarray(auroc(labels, s, w)) for s in (a, b))
    (paired,) = change(before, after, labels)
    (other,) = change(before, after, labels, labels)
    assert paired.value == pytest.approx(float(auroc(labels, b)) - float(auroc(labels, a)))
    assert paired.high - paired.low < 0.5 * (other.high - other.low)
    narrow, wide = change(before, after, labels, levels=(0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_of_a_paired_change_covers_as_the_normal_approximation_does():
    n = 4000
    a, b = RNG.random(n) < 0.8, RNG.random(n) < 0.7
    (found,) = change(class_balanced(a, np.zeros(n)), class_balanced(b, np.zeros(n)), np.zeros(n))
    half = 1.96 * (b.astype(float) - a).std() / math.sqrt(n)
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_the_shift_of_numbers_is_scipys_and_the_distance_that_of_distribution_functions():
    a, b = RNG.normal(0, 1, 80), np.r_[RNG.normal(0.5, 1, 60), np.nan, np.inf]
    found = shift(a, b)
    b = b[:60]
    at = np.concatenate([a, b])
    by_hand = max(abs((a <= x).mean() - (b <= x).mean()) for x in at)
    assert found.distance == pytest.approx(by_hand)
    assert found.p == stats.ks_2samp(a, b).pvalue
    assert (found.before, found.after) == (np.median(a), np.median(b))


def test_the_shift_of_words_is_the_total_variation():
    a, b = np.array(["png"] * 30 + ["jpg"] * 10), np.array(["png"] * 10 + ["jpg"] * 20 + ["bmp"] * 10)
    found = shift(a, b)
    assert found.distance == pytest.approx((abs(0.75 - 0.25) + abs(0.25 - 0.5) + 0.25) / 2)
    assert found.p == 1 / 2000
    again = shift(a, np.array(["png"] * 31 + ["jpg"] * 9))
    # both of two words: Fisher's exact test is the same permutation test
    assert again.p == pytest.approx(stats.fisher_exact([[30, 10], [31, 9]]).pvalue, abs=0.05)
    with pytest.raises(InputError, match="0 and 3 values"):
        shift(np.array([np.nan]), np.arange(3.0))
