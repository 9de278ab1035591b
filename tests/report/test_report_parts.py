"""What the pages of all audits share quotes the limits and says what it cannot say."""

from pfungst.audit.result import Interval, Variant
from pfungst.measure import limits
from pfungst.measure.degradation import mark
from pfungst.report import parts


def test_marks_are_those_of_the_measure_and_quote_its_limits():
    meanings = parts.marks("F1")
    assert meanings["↓"] == f"↓ F1 fell by {limits.FALL:.2f} or more"
    assert set(meanings) == {mark(change, 0.0) for change in (-0.04, -0.2, 0.2)}
    assert f"P < {limits.P_MARK:g}" in parts.legend(meanings)


def test_a_cell_without_a_value_says_why():
    assert parts.cell(None, missing="no masks").title == "no masks"
    cell = parts.cell(Interval(value=0.5, low=0.4, high=0.6), mark="↑", meanings=parts.marks("F1"))
    assert (cell.text, cell.note, cell.tone) == ("0.50", "0.40–0.60", "mitigated")
    assert "raised" in cell.meaning


def test_variants_have_names_and_colours():
    named = [
        (parts.label(v), parts.tone(v))
        for v in (Variant(condition="deployed", mitigated=m) for m in (False, True))
    ]
    assert named == [("Deployed", "deployed"), ("Deployed, mended", "mitigated")]
    assert parts.tone(Variant(condition="original")) == "original"
    assert parts.tone(Variant(condition="logo:tag.png")) == "deployed"
