"""Measures against scikit-learn and SciPy, and what must always hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.utils.class_weight import compute_sample_weight

from pfungst import measure
from pfungst.errors import InputError
from pfungst.measure.intervals import resample_weights


@st.composite
def labelled(draw, low=2, high=40):
    """Labels of both classes, and scores with ties."""
    n = draw(st.integers(low, high))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    labels[:2] = 0, 1
    scores = np.array(draw(st.lists(st.integers(-6, 6), min_size=n, max_size=n))) / 4.0
    return labels, scores


@given(labelled(), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_auroc_is_scikit_learns(data, seed):
    labels, scores = data
    weights = np.random.default_rng(seed).uniform(0.1, 2, (3, len(labels)))
    assert measure.auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
    expected = [metrics.roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(measure.auroc(labels, scores, weights), expected)
    assert measure.auroc(labels, -scores) == pytest.approx(1 - measure.auroc(labels, scores))
    assert measure.auroc(labels, np.exp(scores)) == pytest.approx(measure.auroc(labels, scores))


@given(labelled(), st.floats(-2, 2))
@settings(max_examples=80, deadline=None)
def test_decisions_are_scikit_learns(data, threshold):
    labels, scores = data
    flagged = scores > threshold
    weights = compute_sample_weight("balanced", labels)
    assert measure.f1(labels, flagged) == pytest.approx(metrics.f1_score(labels, flagged))
    balanced = metrics.f1_score(labels, flagged, sample_weight=weights)
    assert measure.f1(labels, flagged, balanced=True) == pytest.approx(balanced)
    tn, fp, fn, tp = metrics.confusion_matrix(labels, flagged, labels=[0, 1]).ravel()
    assert measure.fnr(labels, flagged) == pytest.approx(fn / (fn + tp))
    assert measure.fpr(labels, flagged) == pytest.approx(fp / (fp + tn))
    expected = metrics.balanced_accuracy_score(labels, flagged)
    assert measure.balanced_accuracy(labels, flagged) == pytest.approx(expected)
    counts = measure.confusion(labels, flagged)
    assert counts.balanced_accuracy == pytest.approx(expected)
    assert counts.accuracy == pytest.approx(metrics.accuracy_score(labels, flagged))


def test_balanced_f1_does_not_depend_on_class_sizes():
    labels, flagged = np.array([1, 1, 1, 1, 0, 0]), np.array([1, 1, 1, 0, 1, 0])
    repeated = np.repeat(np.arange(6), np.where(labels == 1, 9, 1))
    assert measure.f1(labels[repeated], flagged[repeated]) > measure.f1(labels, flagged) + 0.05
    assert measure.f1(labels[repeated], flagged[repeated], balanced=True) == pytest.approx(
        measure.f1(labels, flagged, balanced=True)
    )


def test_flagging_everything():
    labels = np.r_[np.ones(83), np.zeros(17)].astype(int)
    assert measure.trivial_f1(labels) == pytest.approx(2 * 83 / 183)
    assert measure.trivial_f1(labels, balanced=True) == pytest.approx(2 / 3)


def test_balanced_accuracy_of_many_classes_with_weights():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(5, size=(2, 60))
    weights = rng.uniform(0.1, 3, 60)
    expected = metrics.balanced_accuracy_score(labels, predicted, sample_weight=weights)
    assert measure.balanced_accuracy(labels, predicted, weights) == pytest.approx(expected)
    names = np.array(list("abcde"))
    assert measure.balanced_accuracy(names[labels], names[predicted], weights) == pytest.approx(expected)


def test_one_class_only():
    assert np.isnan(measure.auroc([1, 1], [0.1, 0.2]))
    assert np.isnan(measure.fnr([0, 0], [0, 1]))
    assert measure.f1([0, 0], [0, 0]) == 0
    with pytest.raises(InputError, match="one class"):
        measure.best_f1_threshold([1, 1], [0.1, 0.2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: measure.auroc([0, 2], [0.1, 0.2]),
        lambda: measure.auroc([0, 1], [0.1]),
        lambda: measure.auroc([0, 1], [0.1, np.nan]),
        lambda: measure.f1([0, 1], [0, 1, 1]),
        lambda: measure.auroc([0, 1], [0.1, 0.2], weights=[-1, 1]),
        lambda: measure.choose_threshold("best"),
        lambda: measure.choose_threshold("held-out"),
        lambda: measure.choose_threshold("published"),
        lambda: measure.held_out_threshold([]),
        lambda: measure.held_out_threshold([1.0], quantile=95),
        lambda: measure.bootstrap_scores([0, 1], [0.1, 0.2], 0.1, ["F1"]),
        lambda: measure.degradation([0, 1], [[1, 0]], [[1]]),
        lambda: measure.eta_squared([1.0, 2.0], ["a"]),
        lambda: measure.provenance([1.0, 2.0], [0, 1], ["a", "a"]),
        lambda: measure.provenance([1.0, 2.0], [0, 0], ["a", "b"]),
        lambda: measure.share(np.ones((2, 4)), np.ones(3)),
        lambda: measure.share(np.ones((2, 4)), np.ones(4), sign="negative"),
        lambda: measure.share_above(np.ones((2, 4)), 5),
        lambda: measure.capped_weights([1, 2], cap=0),
        lambda: measure.clever_hans_score([0, 1], [0.1, 0.2], np.ones((2, 3, 3)), np.zeros((2, 3, 3))),
    ],
)
def test_unusable_input(call):
    with pytest.raises(InputError):
        call()


@given(labelled())
@settings(max_examples=80, deadline=None)
def test_best_f1_threshold_against_trying_all(data):
    labels, scores = data
    for balanced in (False, True):
        values = {t: measure.f1(labels, scores > t, balanced=balanced) for t in np.unique(scores)}
        best = max(values.values())
        found = measure.best_f1_threshold(labels, scores, balanced=balanced)
        assert found == min(t for t, v in values.items() if v >= best - 1e-12)
    assert measure.choose_threshold("published", labels=labels, scores=scores) == measure.best_f1_threshold(
        labels, scores
    )


def test_best_f1_threshold_is_the_lowest_of_equals_that_differ_by_rounding():
    labels, scores = np.array([1, 1, 0, 0, 1, 0, 1]), np.arange(7.0)
    values = [measure.f1(labels, scores > t, balanced=True) for t in scores]
    assert values[0] == pytest.approx(values[3], abs=1e-15) == max(values)
    assert measure.best_f1_threshold(labels, scores, balanced=True) == 0


def test_held_out_threshold_flags_the_rest():
    normal = np.random.default_rng(0).normal(size=2000)
    threshold = measure.choose_threshold(normal_scores=normal, quantile=0.9)
    assert np.mean(normal > threshold) == pytest.approx(0.1, abs=0.001)
    labels, scores = np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 2.0, 4.0])
    validated = measure.choose_threshold(labels=labels, scores=scores)
    assert validated == measure.best_f1_threshold(labels, scores, balanced=True)


def test_bootstrap_keeps_strata_and_is_seeded():
    strata = np.array([0, 0, 0, 1, 1])
    weights = resample_weights(strata, 50, seed=3)
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:].sum(1) == 2).all()
    np.testing.assert_array_equal(weights, resample_weights(strata, 50, seed=3))
    assert not np.array_equal(weights, resample_weights(strata, 50, seed=4))


def test_bootstrap_covers_as_scipys_does():
    from scipy import stats

    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    scores = rng.normal(size=120) + labels
    ours = measure.bootstrap_scores(labels, scores, 0.5, ("auroc", "f1", "fnr"), resamples=4000)

    def area(normal, abnormal):
        return metrics.roc_auc_score(labels, np.r_[normal, abnormal])

    theirs = stats.bootstrap(
        (scores[:60], scores[60:]),
        area,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert ours["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert ours["auroc"].low == pytest.approx(theirs.low, abs=0.012)
    assert ours["auroc"].high == pytest.approx(theirs.high, abs=0.012)
    for value, low, high in ours.values():
        assert low < value < high


def test_a_paired_change_is_narrower_than_its_sides():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    before = rng.normal(size=200) + labels
    after = before - 0.2
    same = measure.bootstrap_change(labels, before, before, 0.5)
    assert same == (0, 0, 0)
    change = measure.bootstrap_change(labels, before, after, 0.5, "fnr")
    assert change.value == pytest.approx(measure.fnr(labels, after > 0.5) - measure.fnr(labels, before > 0.5))
    assert change.low > 0
    alone = measure.bootstrap_scores(labels, after, 0.5, ["fnr"])["fnr"]
    assert change.high - change.low < alone.high - alone.low


def test_clever_hans_score():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    masks = np.zeros((4, 4, 4))
    masks[2:, 1:3, 1:3] = 1
    right = np.where(masks > 0, 5.0, -3.0)
    assert measure.clever_hans_score(labels, scores, right, masks) == pytest.approx((0, 0, 0), abs=1e-9)
    wrong = np.where(masks > 0, -2.0, 1.0)
    assert measure.clever_hans_score(labels, scores, wrong, masks) == pytest.approx((1, 1, 1))
    assert measure.clever_hans_score(labels, -scores, right, masks).value == pytest.approx(-1)
    half = measure.mask_agreement(np.ones((1, 4, 4)), masks[2:3])
    assert half == pytest.approx(2 / 4)  # 4 / (√16 · √4)
    masks[3] = 0  # a defect without a mask does not count in the agreement
    assert measure.clever_hans_score(labels, scores, right, masks).value == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 2**16), st.floats(1e-25, 1e25))
@settings(max_examples=30, deadline=None)
def test_clever_hans_score_is_bounded_and_scale_free(seed, factor):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(2, size=8)]
    scores, relevance = rng.normal(size=10), rng.normal(size=(10, 5, 5))
    masks = rng.integers(2, size=(10, 5, 5))
    masks[:, 0, 0] = 1
    value, low, high = measure.clever_hans_score(labels, scores, relevance, masks, resamples=50)
    assert -1 <= low <= high <= 1
    again = measure.clever_hans_score(labels, scores, relevance * factor, masks, resamples=50)
    assert again.value == pytest.approx(value)


def flips(n, turned, seed=0):
    """Labels of two classes, all right before, `turned` of each class wrong after: (S=1)."""
    labels = np.repeat([0, 1], n)
    after = np.ones((1, 2 * n), bool)
    after[0, :turned] = after[0, n : n + turned] = False
    return labels, np.ones((1, 2 * n), bool), after


def test_degradation_marks():
    for turned, mark in ((10, "↓↓"), (4, "↓"), (2, "")):
        labels, before, after = flips(100, turned)
        found = measure.degradation(labels, before, after)
        assert found.change.value == pytest.approx(-turned / 100)
        assert found.mark == (mark if found.p < 0.001 else "")
        assert found.change.low <= found.change.value <= found.change.high
    labels, before, after = flips(100, 10)
    assert measure.degradation(labels, before, after).mark == "↓↓"
    assert measure.degradation(labels, after, before).mark == "↑"


def test_degradation_is_the_sign_test_where_images_change_one_way():
    """Exchanging k images that all fall gives the two-sided sign test of SciPy."""
    from scipy import stats

    for turned in (3, 4):
        labels, before, after = flips(20, turned)
        expected = stats.binomtest(2 * turned, 2 * turned).pvalue
        found = measure.degradation(labels, before, after, resamples=20_000)
        assert found.p == pytest.approx(expected, rel=0.15)


def test_degradation_of_f1_is_scikit_learns():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    labels, before, after = rng.integers(0, 2, 80), rng.random((3, 80)) < 0.5, rng.random((3, 80)) < 0.6
    found = measure.degradation(labels, before, after, measure.f1_of_flags)
    mean = [np.mean([f1_score(labels, flags) for flags in side]) for side in (before, after)]
    assert (found.before, found.after) == pytest.approx(mean)
    assert found.change.value == pytest.approx(mean[1] - mean[0])


def test_fits_of_the_same_data_are_no_evidence():
    """Regression: a t-test over five seeds that all fit the same data gave P = 0.0 for three images."""
    labels, before, after = flips(20, 2)
    once = measure.degradation(labels, before, after)
    often = measure.degradation(labels, np.repeat(before, 5, 0), np.repeat(after, 5, 0))
    assert often.p == once.p > 0.05
    assert often.mark == ""


def test_units_are_exchanged_together():
    labels, before, after = flips(40, 10)
    patients = np.repeat(np.arange(8), 10)  # two patients hold all that changed
    assert measure.degradation(labels, before, after, units=patients).p > 0.2
    assert measure.degradation(labels, before, after).p < 0.001


def test_where_nothing_changes_nothing_is_established():
    labels, before, _ = flips(10, 0)
    found = measure.degradation(labels, before, before)
    assert (found.change, found.p, found.mark, found.spread) == ((0, 0, 0), 1.0, "", 0)
    assert measure.mean_change([found, found]).p == 1.0


def test_the_mean_change_of_several_sets_is_the_normal_approximation():
    """Four sets, each with the same few changes: against one set of all their images."""
    labels, before, after = flips(30, 3)
    one = measure.degradation(labels, before, after)
    four = measure.mean_change([one] * 4)
    whole = measure.degradation(np.tile(labels, 4), np.tile(before, 4), np.tile(after, 4), resamples=40_000)
    assert four.change.value == pytest.approx(whole.change.value)
    assert four.spread == pytest.approx(whole.spread, rel=0.1)
    assert four.p < one.p / 5


def test_eta_squared_is_the_regressions():
    rng = np.random.default_rng(0)
    groups = rng.integers(4, size=50)
    values = groups + rng.normal(size=50)
    design = np.eye(4)[groups]
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    assert measure.eta_squared(values, groups) == pytest.approx(np.var(fitted) / np.var(values))
    assert measure.eta_squared(values, np.arange(50)) == 1
    assert measure.eta_squared(np.ones(50), groups) == 0


def by_group(slope_group, slope_label, n=240, confounded=0.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    groups = np.where(rng.random(n) < confounded, labels, rng.integers(2, size=n))
    scores = slope_group * groups + slope_label * labels + rng.normal(size=n)
    return scores, labels, np.where(groups == 1, "late", "early")


def test_provenance_finds_a_score_that_follows_the_group():
    result = measure.provenance(*by_group(3, 0.5))
    assert result.follows_group
    assert result.eta2_group > result.eta2_label
    assert "variance" in result.reasons[0]
    assert [(g.group, g.auroc is not None) for g in result.groups] == [("early", True), ("late", True)]
    confounded = measure.provenance(*by_group(3, 0.0, n=1500, confounded=0.8))
    assert confounded.follows_group
    assert confounded.auroc_pooled > 0.8
    assert confounded.auroc_within == pytest.approx(0.5, abs=0.15)
    assert confounded.gap.low > 0.1


@pytest.mark.parametrize("seed", range(8))
def test_provenance_does_not_cry_wolf(seed):
    assert not measure.provenance(*by_group(0, 3, seed=seed)).follows_group
    assert not measure.provenance(*by_group(0, 0, seed=seed, n=60)).follows_group  # useless, not provenance
    scores, labels, _ = by_group(0, 1, seed=seed)
    many = np.random.default_rng(seed).integers(60, size=len(labels))
    assert not measure.provenance(scores, labels, many).follows_group


def test_provenance_where_groups_hold_one_class():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c", "d"], 30)
    labels = np.repeat([0, 0, 1, 1], 30)
    result = measure.provenance(5.0 * labels + rng.normal(size=120), labels, groups)
    assert result.nested
    assert result.auroc_within is None
    assert result.gap is None
    assert not result.follows_group  # the group explains all the label does, but no more
    shifted = 5.0 * np.isin(groups, ["b", "d"]) + 0.1 * labels + rng.normal(size=120)
    assert measure.provenance(shifted, labels, groups).follows_group
    # one group with both classes among groups of one class
    labels[:10] = 1
    mixed = measure.provenance(5.0 * labels + rng.normal(size=120), labels, groups)
    assert not mixed.nested
    assert mixed.auroc_within == pytest.approx(mixed.groups[0].auroc)


def test_exposure():
    r = np.array([[1.0, 2.0, 3.0, -2.0]])
    assert measure.share(r, [0, 0, 1, 1]) == pytest.approx(3 / 6)
    assert measure.share(r, [0, 0, 1, 1], sign="net") == pytest.approx(1 / 4)
    assert measure.share(r, [0, 0, 1, 1], sign="magnitude") == pytest.approx(5 / 8)
    assert measure.share_above(r, 2) == pytest.approx(3 / 6)
    assert measure.share_above(r, 0) == pytest.approx(1)
    joint = np.stack([np.ones((3, 3)), 3 * np.ones((3, 3))])[None]
    assert measure.share_above(joint, 1) == pytest.approx(0.75)
    maps, mask = np.ones((2, 4, 4)), np.zeros((2, 4, 4))
    mask[0, :2] = 1
    np.testing.assert_allclose(measure.share_outside(maps, mask), [0.5, 1])
    np.testing.assert_allclose(measure.share_on_region(maps, (0, 2), (0, 2)), 0.25)
    assert np.isnan(measure.share(np.zeros((1, 4)), np.ones(4))).all()


def test_confusion_share():
    labels = np.array(["a", "b", "c", "d", "a"])
    predicted = np.array(["a", "c", "a", "c", "b"])
    assert measure.confusion_share(labels, predicted) == ("c", 0.5, 4)
    assert measure.confusion_share(labels, labels) == (None, 0.0, 0)


def test_capped_weights():
    labels = np.r_[np.zeros(40), np.ones(5), np.full(10, 2)]
    weights = measure.capped_weights(labels)
    assert [weights[labels == k].sum() for k in range(3)] == pytest.approx([10, 5, 10])


def test_best_split_is_the_best_of_all_splits():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(0, 1, 30), rng.normal(6, 1, 20)]
    found = measure.best_split(rng.permutation(x))
    ordered = np.sort(x)
    within = [(ordered[:i].var() * i + ordered[i:].var() * (50 - i)) / 50 for i in range(1, 50)]
    assert found.explained == pytest.approx(1 - min(within) / x.var())
    assert found.share == pytest.approx(0.4)
    assert found.gap == pytest.approx(ordered[30:].mean() - ordered[:30].mean())
    assert found.low == pytest.approx(ordered[:30].mean())
    assert ordered[29] < found.threshold < ordered[30]
    assert found.separation > 0.5
    same = measure.best_split(np.ones(9))
    assert (same.explained, same.share, same.low, same.separation) == (0, 0, 1, 0)
