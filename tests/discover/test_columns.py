"""What columns tell of a class: against scikit-learn, by chance, and with patients of many images."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pfungst.audit.findings.result import DiscoveryEntry, Proved
from pfungst.audit.findings.result import Told as Row
from pfungst.audit.findings.verdict import conclude, verdict
from pfungst.audit.result import Interval
from pfungst.discover.columns import told
from pfungst.errors import InputError


def drawn(seed, follows=1.0, object_=0.0, n=240):
    """Labels, sources that go with them (70 % against 30 %), and evidence that follows either."""
    rng = np.random.default_rng(seed)
    own = rng.random(n) < 0.5
    source = np.where(rng.random(n) < np.where(own, 0.7, 0.3), "north", "south")
    return follows * (source == "north") + object_ * own + rng.normal(size=n), own, source


def test_auroc_over_all_and_within_values_is_that_of_scikit_learn():
    evidence, own, source = drawn(0, object_=0.5)
    found = told(evidence, own, source)
    assert found.pooled == pytest.approx(roc_auc_score(own, evidence))
    parts = [(roc_auc_score(own[m], evidence[m]), own[m].sum() * (~own[m]).sum()) for m in (source == "north", source == "south")]  # fmt: skip
    areas, pairs = zip(*parts, strict=True)
    assert found.within == pytest.approx(np.average(areas, weights=pairs))
    assert found.fall.value == pytest.approx(found.pooled - found.within)
    assert found.fall.low < found.fall.value < found.fall.high
    assert (found.value, found.n) == ("north", 240)
    assert found.share == pytest.approx((source == "north").mean())
    assert found.inside == pytest.approx(own[source == "north"].mean())
    assert found.outside == pytest.approx(own[source == "south"].mean())
    assert found.p < 0.001


def test_evidence_that_follows_the_object_alone_is_not_told_by_the_column():
    ps = [told(*drawn(seed, follows=0, object_=1)).p for seed in range(40)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.15
    assert 0.3 < np.mean(ps) < 0.7


def test_patients_count_once():
    evidence, own, source = drawn(1, n=60)
    patients = np.arange(60)
    once = told(evidence, own, source, patients)
    many = told(*(np.repeat(a, 9) for a in (evidence, own, source, patients)))
    assert many.n == once.n == 60
    assert many.pooled == pytest.approx(once.pooled)
    assert many.p == pytest.approx(once.p, abs=0.02)


def test_unknown_values_count_nowhere_and_nested_columns_tell_nothing():
    evidence, own, source = drawn(2)
    some = np.arange(240) % 3 > 0
    found = told(evidence, own, np.where(some, source, ""))
    assert found.pooled == pytest.approx(roc_auc_score(own[some], evidence[some]))
    assert told(evidence, own, np.where(own, "a", "b")) is None
    assert told(evidence, own, np.full(240, "a")) is None
    with pytest.raises(InputError, match="1 of 240 values of evidence"):
        told(np.where(np.arange(240) == 3, np.nan, evidence), own, source)


def test_the_verdict_names_the_column_and_corrects_for_all_that_were_tried():
    def result(p, count=1):
        t = {"value": "north", "share": 0.5, "inside": 0.7, "outside": 0.3, "pooled": 0.7, "within": 0.55, "pairs": 0.4, "n": 240}  # fmt: skip
        rows = [Row(column=f"c{i}", **t, fall=Interval(value=0.15, low=0.1, high=0.2), p=p) for i in range(count)]  # fmt: skip
        entry = DiscoveryEntry(index=0, name="ill", n=99, accuracy=1, groupings=[], findings=[], told=rows, arrays="a")  # fmt: skip
        return conclude([entry])

    found = result(0.01)
    assert found.headline == "ill is told by where images come from: c0"
    said = verdict(found, {})
    assert (said.level, said.about.column, said.about.numbers["share"]) == ("clever-hans", "c0", 0.5)
    assert "AUROC 0.70 over all images and 0.55" in said.sentences[0]
    assert verdict(result(0.01, 6), {}).level == "sound"


def test_text_that_decides_is_the_headline_before_what_carries_more():
    """Regression: of a page of X-rays the headline was the lowest bands of grey images, and text was "1 more"."""
    i = lambda v: Interval(value=v, low=v - 0.05, high=v + 0.05)
    made = lambda number, kind, view, far: Proved(number=number, view=view, kind=kind, cluster=0, n_clusters=2, n=9, share=0.5, recognised=1, columns=[], images=[], map=[], changed=9, remove=i(1), insert=i(far), accuracy=(1, 1, 1), flips=(1, 0), retained=i(0.9), p=1e-4)  # fmt: skip
    said = lambda *some: conclude([DiscoveryEntry(index=0, name="ill", n=18, accuracy=1, groupings=[], findings=list(some), told=[], arrays="a")])  # fmt: skip
    text, grey = made(0, "text", "file: text = text", 0.24), made(1, "bands", "file: colour = grey", 1.8)
    of = "beside the object in 50% of its images"
    assert said(text, grey).headline == f"ill is decided by burnt-in text {of}"
    assert said(grey).headline == f"ill is decided by frequency bands {of} (file: colour = grey)"


def test_text_that_moves_the_answer_is_said_though_it_does_not_decide_it():
    def result(low, kind="text"):
        proof = Proved(number=0, view="file: text = text", kind=kind, cluster=0, n_clusters=2, n=9, share=0.5, recognised=1, columns=[], images=[], map=[], changed=9, remove=Interval(value=0.79, low=0.37, high=1.22), insert=Interval(value=0.16, low=low, high=0.24), accuracy=(1, 1, 1), flips=(0.2, 0.05), retained=Interval(value=1, low=0.9, high=1), p=0.009)  # fmt: skip
        return conclude([DiscoveryEntry(index=0, name="ill", n=18, accuracy=1, groupings=[], findings=[proof], told=[], arrays="a")])  # fmt: skip

    found = result(0.08)
    assert found.headline.startswith(
        "ill is moved by burnt-in text in 50% of its images, too little to be proved to decide it; 1"
    )
    assert (
        "put into other classes it turns 20% of them (controls 5%) and carries 16% (8% to 24%) of the way to the class, "
        "below 15% at the lower end; without it the evidence falls by 0.79 (0.37 to 1.22) nats"
        in found.sentences[0]
    )
    assert verdict(found, {}).level == "not-established"
    unproved = result(-0.01)
    assert unproved.headline.startswith("Nothing beside the object was proved to decide; 1")
    assert verdict(unproved, {}).level == "sound"
    content = "content that the explanations share in 50% of its images (file: text = text)"
    assert f"ill is moved by {content}, too little" in result(0.08, "content").headline
    assert result(0.08, "content").sentences[0].startswith(f"ill: {content} moves the answer")
    assert not any("moves the answer" in s for s in result(-0.01, "content").sentences)
