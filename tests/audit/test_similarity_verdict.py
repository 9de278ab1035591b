"""When a similarity audit says Clever Hans: both sides of every part of the rule."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from pfungst.audit.result import Interval, Variant
from pfungst.audit.similarity.gates import metrics
from pfungst.audit.similarity.measure import beyond_label, confusion
from pfungst.audit.similarity.prepare import AS_IS, ERASED, OPPOSITE
from pfungst.audit.similarity.result import (
    Artefact,
    Confusion,
    Faithful,
    Fall,
    Findings,
    ProbeScores,
    Provenance,
    Region,
    Subgroup,
)
from pfungst.audit.similarity.verdict import judge, nearly_all
from pfungst.probes import Plan, Predictions

NAME = "logo:tag"
UNDER = Variant(condition=NAME)


def result(
    fall=0.4,
    turned_share=0.9,
    share=0.6,
    without=0.05,
    evidence=0.8,
    evidence_without=0.1,
    mark="↓↓",
    classes="abc",
    faithful: float | None = 0.1,
) -> Findings:
    def pooled(variant, accuracy, mark=""):
        value = Interval(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02)
        return ProbeScores(
            variant=variant, n=300, counts=dict.fromkeys(classes, 100), accuracy=value, rebalanced=value,
            per_seed=[accuracy] * 5, mark=mark, p_value=0.02,
        )  # fmt: skip

    matrix = (np.eye(len(classes), dtype=int) * 80).tolist()
    return Findings(
        encoder="net", trained=True, width=8, modality="images", n=300,
        classes=list(classes), split="given", variants=[AS_IS, UNDER],
        scores=[pooled(AS_IS, 0.9), pooled(UNDER, 0.9 - fall, mark)],
        confusion={
            "original": Confusion(matrix=matrix, into="b", share=0.4, errors=60),
            NAME: Confusion(matrix=matrix, into="b", share=0.7, errors=150, turned=100, turned_share=turned_share),
        },
        artefacts=[
            Artefact(
                condition=NAME, area=0.08, share=share, share_without=without, similarity=0.9,
                similarity_without=0.7, evidence=evidence, evidence_without=evidence_without,
            )
        ],
        regions=[
            Region(name=f"where {NAME} lies", group="b", share=0.6, area=0.08),
            Region(name=f"where {NAME} lies", group="a", share=0.04, area=0.08),
            Region(name=f"where {NAME} lies", group="c", share=0.06, area=0.08),
        ],
        faithfulness=None if faithful is None else Faithful(
            value=Interval(value=0.2, low=faithful, high=0.3), images=8
        ),
        basis="patches of 2 px", composite="epsilon", conservation=0.0,
    )  # fmt: skip


def test_all_four_parts_together_are_clever_hans():
    verdict = judge(result())
    assert verdict.level == "clever-hans"
    assert "reads logo:tag as 'b'" in verdict.headline
    assert any(
        "60% of what makes two images of 'b' alike lies there (other classes: 5%)" in s
        for s in verdict.sentences
    )


@pytest.mark.parametrize(
    ("what", "level"),
    [
        ({"fall": 0.01, "mark": ""}, "sound"),  # nothing is lost
        ({"turned_share": 0.45}, "fragile"),  # errors scatter: an occlusion
        ({"share": 0.15}, "fragile"),  # similarity does not rest on it
        ({"without": 0.5}, "fragile"),  # the place counts as much without it
        ({"evidence": 0.15}, "fragile"),  # the probe reads something else
        ({"evidence_without": 0.6}, "fragile"),
        ({"faithful": -0.01}, "fragile"),  # the explanation does not beat random
        ({"faithful": None}, "fragile"),  # nobody knows whether it does
        ({"classes": "ab", "turned_share": 0.7}, "fragile"),  # of two classes one gets most errors anyway
    ],
)
def test_a_part_missing_is_not(what, level):
    assert judge(result(**what)).level == level


@pytest.mark.parametrize(("low", "level"), [(0.34, "unfit"), (0.39, "unfit"), (0.41, "sound")])
def test_a_probe_that_just_exceeds_chance_is_unfit(low, level):
    """Regression: an interval whose lower end lay just above chance was enough."""
    found = result(fall=0, mark="")
    found.scores[0].accuracy = Interval(value=low + 0.05, low=low, high=low + 0.1)
    found.scores[1].accuracy = found.scores[0].accuracy
    assert judge(found).level == level


def test_two_classes_need_more():
    assert judge(result(classes="ab", turned_share=0.85)).level == "clever-hans"


def test_images_turned_wrong_by_hand():
    labels = np.array(list("aabbcc"))
    plan = Plan(labels, np.arange(6), (((np.arange(6), np.arange(6)),),), "given")
    said = {AS_IS: np.array([list("aabbba")]), UNDER: np.array([list("abbbba")])}
    study = SimpleNamespace(plan=plan, found=Predictions(said, {}, np.zeros((3, 2))))
    found = confusion(study, UNDER)
    assert (found.errors, found.into, found.share) == (3, "b", pytest.approx(2 / 3))
    assert (found.turned, found.turned_share) == (1, 1.0)
    assert confusion(study, AS_IS).turned == 0


@pytest.mark.parametrize(("control", "level"), [(0.9, "fragile"), (0.72, "sound")])
def test_erasing_text_counts_only_beyond_erasing_as_much_elsewhere(control, level):
    base = result(fall=0.0, mark="")
    under = base.scores[1]
    scores = [
        under.model_copy(update={"variant": v, "accuracy": Interval(value=a), "mark": "↓↓"})
        for v, a in ((ERASED, 0.7), (OPPOSITE, control))
    ]
    confusion = {v.key: base.confusion[NAME] for v in (ERASED, OPPOSITE)}
    variants = [AS_IS, ERASED, OPPOSITE]
    found = base.model_copy(
        update={
            "variants": variants,
            "scores": [base.scores[0], *scores],
            "confusion": base.confusion | confusion,
        }
    )
    verdict = judge(found)
    assert verdict.level == level
    assert any("text erased the accuracy is 0.70" in s for s in verdict.sentences)


def test_what_a_score_knows_beyond_the_label_is_kruskal_and_wallis_within_labels():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 30)
    groups = np.tile(["x", "y", "z"], 20)
    scores = rng.normal(size=60) + (groups == "x") * 0.7
    every = np.arange(60)
    total = sum(
        stats.kruskal(*[scores[(labels == c) & (groups == g)] for g in "xyz"]).statistic for c in "ab"
    )
    assert beyond_label(scores, labels, groups, every) == pytest.approx(stats.chi2.sf(total, 4))
    assert beyond_label((labels == "a") * 1.0, labels, groups, every) == 1.0  # only the label
    assert beyond_label(scores, labels, labels, every) == 1.0  # the group is the label
    doubled = [np.repeat(v, 2) for v in (scores, labels, groups, every)]
    assert beyond_label(*doubled) == pytest.approx(stats.chi2.sf(total, 4))  # a patient counts once


def test_of_scores_that_know_the_label_only_one_in_a_hundred_is_marked():
    rng = np.random.default_rng(1)
    labels = np.repeat(["a", "b"], 40)
    groups = np.where(rng.random(80) < np.where(labels == "a", 0.7, 0.3), "x", "y")
    p = [
        beyond_label(rng.normal(size=80) + (labels == "a"), labels, groups, np.arange(80)) for _ in range(400)
    ]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def doubtful(low, p=0.11):
    """Chain saws of a group fall by 0.22; by its own interval no chance, but not after Holm."""
    fall = Fall(
        classes=["a"], n=11, inside=0.73, outside=0.95, p_value=p,
        fall=Interval(value=0.22, low=low, high=0.51),
    )  # fmt: skip
    whole = fall.model_copy(update={"classes": ["a", "b"], "fall": Interval(value=0.02, low=-0.1, high=0.1)})
    group = Subgroup(column="faces>0", group="faces>0", n=106, whole=whole, classes=[fall])
    return result(fall=0.0, mark="").model_copy(update={"subgroups": [group]})


def test_a_large_fall_that_is_not_significant_is_not_established():
    """Regression: such an audit said "sound"."""
    found = judge(doubtful(0.04))
    assert found.level == "not-established"
    assert "falls on faces>0: accuracy for 'a' 0.95 → 0.73 over 11 images, P = 0.11" in found.headline
    assert judge(doubtful(-0.01)).level == "sound"
    by_chance = judge(doubtful(0.04, p=1.0))
    assert by_chance.level == "sound"  # one of many tests, which is said
    assert "Of 2 tests of groups 1 shows a fall of 0.1 or more" in " ".join(by_chance.sentences)
    assert "P = 1 or more after Holm" in " ".join(by_chance.sentences)


def test_a_column_that_the_score_may_follow_is_not_established():
    """Regression: AUROC 0.62 pooled and 0.51 within locations was "sound", as P was 0.53."""
    seen = Provenance(
        column="location", label="a", eta2_group=0.08, eta2_label=0.03, auroc_pooled=0.62, auroc_within=0.51,
        accuracy_pooled=0.56, accuracy_within=0.5, by_group_alone=0.67, group_readable=0.4, group_chance=0.3,
        p_value=0.53, follows=False, reasons=["AUROC differs by 0.11"],
    )  # fmt: skip
    found = judge(result(fall=0.0, mark="").model_copy(update={"provenance": [seen]}))
    assert found.level == "not-established"
    assert "follows location: AUROC 0.62 pooled, 0.51 within it, P = 0.53" in found.headline


def test_a_condition_that_costs_much_without_significance_is_not_established():
    assert judge(result(fall=0.08, mark="")).level == "not-established"
    assert judge(result(fall=0.04, mark="")).level == "sound"


def test_a_gate_sees_what_is_not_a_number():
    """Regression: metrics that are NaN were left out, and a gate on them passed or did not exist."""
    base = result()
    nan = base.artefacts[0].model_copy(update={"share": float("nan")})
    metric = metrics(base.model_copy(update={"artefacts": [nan]}))["artefact-excess"]
    assert np.isnan(metric.value)


@pytest.mark.parametrize(
    ("share", "said"), [(0.5, "50%"), (0.99998, "99.998%"), (0.997, "99.7%"), (1.0, "100%"), (1.4, "140%")]
)
def testnearly_all_is_not_all(share, said):
    """Regression: biases that absorb 99.998 % were said to absorb 100 %."""
    assert nearly_all(share) == said
