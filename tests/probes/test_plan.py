"""Splits for probes, without an audit."""

import numpy as np
import pytest

from pfungst.errors import DataError
from pfungst.probes import Plan, predict

LABELS = np.repeat(["a", "b"], 30)


def test_a_notebook_needs_labels_and_representations_only():
    x = np.random.default_rng(0).normal(0, 1, (60, 4)) + np.where(LABELS == "a", 3, -3)[:, None]
    plan = Plan.make(LABELS, folds=3, seeds=[0, 1])
    found = predict(plan, {"clean": x, "shifted": x - 6}, "clean")
    assert (found.predicted["clean"] == LABELS).mean() > 0.9
    assert (found.predicted["shifted"] == LABELS).mean() < 0.7
    assert plan.tested.tolist() == list(range(60))


def test_validation_images_are_tested_where_nothing_is_called_test():
    given = np.tile(["train", "train", "validation"], 20)
    plan = Plan.make(LABELS, given=given)
    assert plan.split == "given"
    assert plan.tested.tolist() == np.flatnonzero(given == "validation").tolist()
    given[::5] = "test"
    assert Plan.make(LABELS, given=given).tested.tolist() == np.flatnonzero(given == "test").tolist()


def test_units_on_both_sides_of_a_given_split_are_refused():
    given = np.tile(["train", "test"], 30)
    with pytest.raises(DataError, match="--split folds"):
        Plan.make(LABELS, units=np.repeat(np.arange(30), 2), given=given)
    assert Plan.make(LABELS, units=np.repeat(np.arange(30), 2), given=given, how="folds").split == "folds"
