"""What the anomaly audit concludes from numbers, what the verdict says it is about, and when it says nothing."""

import math

import pytest

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.explain import above
from pfungst.audit.anomaly.measure import DEPLOYED, MENDED, ORIGINAL
from pfungst.audit.anomaly.result import (
    Entry,
    Exposure,
    Faithfulness,
    Group,
    Provenance,
    Scored,
    Scores,
    Spectrum,
)
from pfungst.audit.anomaly.verdict import explain_numbers, judge, metrics
from pfungst.audit.result import Interval
from pfungst.measure import limits

CONFIG = AnomalyConfig(data="synthetic")
FAITHFUL = Faithfulness(value=0.24, low=0.2, high=0.28, images=16)
UNFAITHFUL = Faithfulness(value=0.02, low=-0.05, high=0.09, images=16)


def provenance(column="session", pooled=0.5, within=0.9, follows=True):
    groups = [
        Group(name=n, n_good=9, n_defect=9, mean_score=s, auroc=within) for n, s in (("a", 1.0), ("b", 250.0))
    ]
    shares = {"eta2_group": 0.7, "eta2_label": 0.1, "auroc_pooled": pooled, "auroc_within": within}
    return Provenance(column=column, follows=follows, groups=groups, **shares)


def entry(
    model="kde",
    f1=(0.9, 0.8, 0.9),
    auroc=0.95,
    lost=0.3,
    hans=0.2,
    n=(50, 50),
    category="ring",
    found=(),
    faithful=FAITHFUL,
    fnr=None,
    fpr=None,
    low=None,
    p=None,
):
    def scores(variant, value):
        rates = dict.fromkeys(("f1", "f1_balanced", "balanced_accuracy"), Interval(value=value))
        rates |= dict.fromkeys(("fnr", "fpr"), Interval(value=1 - value))
        if fnr is not None:
            rates["fnr"] = Interval(value=fnr)
        if fpr is not None and variant == MENDED:
            rates["fpr"] = Interval(value=fpr)
        rates["auroc"] = Interval(value=auroc, low=low, high=None if low is None else 0.99)
        change = {} if p is None else {"p_value": p, "change": Interval(value=-0.1, low=-0.2, high=0.02)}
        return Scores(variant=variant, clever_hans=Interval(value=hans), **rates, **change)

    return Entry(
        scores=[scores(v, value) for v, value in zip((ORIGINAL, DEPLOYED, MENDED), f1, strict=False)],
        category=category,
        model=model,
        n_train=60,
        n_good=n[0],
        n_defect=n[1],
        kinds={},
        trivial_f1=0.67,
        threshold=1,
        spectrum=Spectrum(edges=[0, 4], original=[1], kept=[1]),
        exposure=Exposure(high=0.4, lost_in_deployment=lost),
        faithfulness=faithful,
        provenance=list(found),
        arrays="",
    )


def verdict(*entries):
    mean = {e.model: Scored(scores=e.scores) for e in entries}
    return judge(list(entries), mean, CONFIG)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "clever-hans"),
        ({"f1": (0.9, 0.8)}, "clever-hans"),  # no mitigation to disagree
        ({"f1": (0.9, 0.8, 0.84)}, "fragile"),  # recovers less than half
        ({"lost": limits.LOST_SHARE - 0.01}, "fragile"),
        ({"f1": (0.9, 0.9 - limits.FALL + 0.001, 0.9)}, "sound"),
        ({"auroc": limits.FIT_AUROC - 0.01}, "unfit"),
        ({"auroc": math.nan}, "unfit"),
        ({"found": [provenance()]}, "provenance"),
        ({"found": [provenance(follows=False)]}, "clever-hans"),
        ({"found": [provenance()], "auroc": 0.5}, "unfit"),
        ({"n": (limits.TEST_IMAGES - 1, 50)}, "too-few"),
        ({"n": (50, limits.TEST_IMAGES - 1), "found": [provenance()], "auroc": 0.5}, "too-few"),
        ({"n": (20, 20)}, "clever-hans"),
        ({"n": (20, 20), "fnr": 0.49}, "too-few"),  # FNR 29 to 70 %
        ({"n": (limits.TEST_IMAGES, 50)}, "clever-hans"),  # FPR 2 to 40 %
        ({"fnr": limits.MISSED}, "unfit"),
        ({"fnr": limits.MISSED - 0.01}, "clever-hans"),
        ({"low": 0.5}, "unfit"),  # AUROC's lower end is chance
        ({"low": 0.5 + limits.ABOVE_CHANCE / 2 - 0.001}, "unfit"),  # hardly above it
        ({"low": 0.5 + limits.ABOVE_CHANCE / 2}, "clever-hans"),
        ({"p": limits.P_FALL}, "not-established"),
        ({"p": limits.P_FALL / 2}, "clever-hans"),
        ({"faithful": UNFAITHFUL}, "fragile"),
        ({"faithful": None}, "fragile"),
    ],
)
def test_levels(changes, level):
    assert verdict(entry(**changes)).level == level


def test_a_detector_that_misses_half_of_the_defects_is_not_called_sound():
    """Regression: PatchCore at FNR 55 % was "sound", as deployment cost it nothing."""
    found = verdict(entry(f1=(0.6, 0.7), fnr=0.55, auroc=0.83))
    assert found.level == "unfit"
    assert "misses 55% of the defects" in found.headline
    assert "flagging everything has 0.67" in " ".join(found.sentences)
    held = verdict(entry(f1=(0.9, 0.9), fnr=0.3))
    assert held.level == "sound"
    assert "but misses 30% of the defects" in held.headline
    assert "misses" not in verdict(entry(f1=(0.9, 0.9), fnr=0.1)).headline


def test_the_price_of_mending_is_in_the_headline():
    """Regression: FPR 6 → 26 % by the mend stood in a table only."""
    mean = {"kde": Scored(scores=entry(f1=(0.9, 0.8, 0.9), fpr=0.46).scores)}
    worse = [entry(category="a", f1=(0.9, 0.8, 0.7)), *(entry(category=c) for c in "bcde")]
    found = judge(worse, mean, CONFIG)
    assert ", at the price of FPR 20% → 46%, F1 lower in 1 of 5 categories ↓" in found.headline
    assert "price" not in verdict(entry()).headline


def test_a_fall_that_may_be_chance_is_not_established():
    found = verdict(entry(p=0.2))
    assert found.headline.startswith("Not established whether kde survives pillow-bilinear")
    assert "F1 falls by 0.10 (-0.02 to 0.20), P = 0.2 over the test images" in found.sentences[0]


def test_no_verdict_rests_on_an_explanation_that_does_not_beat_random():
    """Regression: heatmaps of a network's random walk were quoted as evidence of Clever Hans."""
    found = verdict(entry(faithful=UNFAITHFUL))
    told = " ".join(found.sentences)
    assert "Faithfulness is 0.02 (-0.05 to 0.09): the explanation does not beat a random order" in told
    assert "not shown to be faithful, so the cause is not established" in told
    assert "Clever Hans" not in f"{found.headline} {told}"
    assert "Faithfulness was not measured" in " ".join(verdict(entry(faithful=None)).sentences)
    off = {"f1": (0.9, 0.9, 0.9), "hans": limits.OUTSIDE + 0.1}
    assert "Look at the heatmaps" in " ".join(verdict(entry(**off)).sentences)
    assert "Look at the heatmaps" not in " ".join(verdict(entry(**off, faithful=UNFAITHFUL)).sentences)


def test_explanations_are_faithful_where_most_categories_say_so():
    mean = {"kde": Scored(scores=entry().scores)}
    most = [
        entry(category=c, faithful=f) for c, f in zip("abc", (FAITHFUL, UNFAITHFUL, FAITHFUL), strict=True)
    ]
    found = judge(most, mean, CONFIG)
    assert found.level == "clever-hans"
    assert "Faithfulness is 0.17 on average, above a random order in 2 of 3 categories." in found.sentences
    assert judge(most[:2], mean, CONFIG).level == "fragile"


def test_too_few_images_are_counted_over_categories_and_named():
    few = [entry(category=c, n=(6, 3)) for c in ("ring", "wood", "hair")]
    assert judge(few[:2], {"kde": Scored(scores=few[0].scores)}, CONFIG).headline.startswith(
        "6 defective test images"
    )
    assert "1 good test image:" in verdict(entry(n=(1, 3))).headline
    assert judge([*few, entry(n=(6, 1))], {"kde": Scored(scores=few[0].scores)}, CONFIG).level != "too-few"


def test_the_verdict_is_about_the_worst_detector_of_its_level():
    found = verdict(
        entry("a", f1=(0.9, 0.85, 0.9)), entry("b", f1=(0.9, 0.6, 0.9)), entry("c", f1=(0.9, 0.9, 0.9))
    )
    assert found.about.entry == "b"
    assert found.about.numbers["fall"] == pytest.approx(0.3)
    assert found.sentences[-2].startswith("a relies on")
    assert found.sentences[-1].startswith("c holds")
    assert verdict(entry("a", auroc=0.7), entry("b", auroc=0.6), entry("c")).about.entry == "b"


def test_provenance_is_about_the_column_with_the_largest_gap():
    found = verdict(entry(found=[provenance("device", 0.7, 0.8), provenance("session", 0.5, 0.9)]))
    assert (found.about.entry, found.about.column) == ("ring / kde", "session")
    assert found.about.numbers["gap"] == pytest.approx(0.4)
    assert "1 (a) to 250 (b)" in found.sentences[1]


def test_high_frequencies_begin_within_a_band():
    """Regression: the band of indices 189 to 409 was left out because it begins below 190 (wood 0.615 instead of 0.710).

    By hand: 220 of its 221 indices are at or above 190, and a band is counted by that part.
    """
    edges = [0, 3, 189, 410, 770]
    assert above(edges, limits.HIGH_BAND).tolist() == pytest.approx([0, 0, 220 / 221, 1])
    high = [0.3, 0.09, 0.1, 0.51] @ above(edges, limits.HIGH_BAND)
    assert high == pytest.approx(0.6095475, abs=1e-7)


def test_metrics_are_the_worst_and_left_out_where_nothing_has_them():
    found = metrics([entry("a"), entry("b", f1=(0.9, 0.7), found=[provenance(within=None)])])
    assert found["f1-drop"].where == "ring / b"
    assert found["mitigated-f1-drop"].per == {"ring / a": pytest.approx(0.0)}
    assert found["provenance-eta2-excess"].per == {"ring / b by session": pytest.approx(0.6)}
    assert "provenance-gap" not in found
    assert "outside-mask-share" not in found


def test_notes_quote_the_limits():
    told = " ".join(explain_numbers(CONFIG))
    for limit in (
        f"{limits.FALL:.2f}",
        f"{limits.LARGE_FALL:.2f}",
        f"P < {limits.P_MARK:g}",
        f"first {limits.HIGH_BAND:g} waves",
    ):
        assert limit in told


def test_a_mend_that_makes_a_fall_worse_is_not_said_to_recover_a_negative_share():
    told = " ".join(verdict(entry(f1=(0.9, 0.6, 0.45))).sentences)
    assert "The mitigation makes it worse by 50% of the fall in F1." in told
    assert "-50%" not in told
    assert "recovers 80% of the fall in F1" in " ".join(verdict(entry(f1=(0.9, 0.4, 0.8))).sentences)
