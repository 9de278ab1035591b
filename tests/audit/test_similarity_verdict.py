"""When a similarity audit says Clever Hans: both sides of every part of the rule."""

from types import SimpleNamespace

import numpy as np
import pytest

from pfungst.audit.result import Interval, Variant
from pfungst.audit.similarity.measure import confusion
from pfungst.audit.similarity.prepare import AS_IS
from pfungst.audit.similarity.result import Artefact, Confusion, Findings, ProbeScores, Region
from pfungst.audit.similarity.verdict import judge
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
) -> Findings:
    def pooled(variant, accuracy, mark=""):
        value = Interval(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02)
        return ProbeScores(
            variant=variant, n=300, counts=dict.fromkeys(classes, 100), accuracy=value, rebalanced=value,
            per_seed=[accuracy] * 5, mark=mark,
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
        ({"classes": "ab", "turned_share": 0.7}, "fragile"),  # of two classes one gets most errors anyway
    ],
)
def test_a_part_missing_is_not(what, level):
    assert judge(result(**what)).level == level


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
