import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score

from pfungst.label.agreement import cohen_kappa, pairwise

ANSWER = st.sampled_from(["spurious", "not", "unsure"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ANSWER, ANSWER), min_size=1, max_size=60))
def test_agreement_and_kappa_are_those_of_scikit_learn(pairs):
    agreement, kappa = cohen_kappa(pairs)
    first, second = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(first, second)
    assert agreement == pytest.approx(accuracy_score(first, second), abs=1e-12)
    assert kappa == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_value_by_hand():
    # Cohen (1960): 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohen_kappa(pairs) == (0.7, 0.4)


def test_only_what_both_answered_counts_and_every_pair_is_listed():
    found = pairwise({"a": {"1": "x", "2": "y"}, "b": {"2": "y", "3": "x"}, "c": {}})
    assert [(p.first, p.second, p.items) for p in found] == [("a", "b", 1), ("a", "c", 0), ("b", "c", 0)]
    assert found[0].agreement == 1
    assert math.isnan(found[0].kappa)
    assert math.isnan(found[1].agreement)
