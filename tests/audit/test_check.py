import math
from xml.etree import ElementTree

import pytest

from pfungst.audit.check import Gate, check, write_junit
from pfungst.audit.result import Metric, Result, Verdict, load, save
from pfungst.errors import ConfigError, DataError


def result_with(**values: float) -> Result:
    return Result(
        kind="anomaly",
        title="t",
        version="0",
        created="2026-01-01T00:00:00Z",
        seconds=1,
        machine="m",
        config={},
        verdict=Verdict(level="sound", headline="h"),
        metrics={
            name.replace("_", "-"): Metric(value=v, where="ring", meaning="…") for name, v in values.items()
        },
    )


def test_gates_pass_and_fail_on_both_sides(tmp_path):
    result = result_with(f1_drop=0.05, auroc=0.93)
    outcomes = check(result, [Gate.parse("f1-drop=0.03", "max"), Gate.parse("auroc=0.9", "min")])
    assert [o.passed for o in outcomes] == [False, True]
    assert "FAIL  f1-drop = 0.05 ≤ 0.03  (ring)" in str(outcomes[0])
    write_junit(outcomes, tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert len(suite.findall("testcase/failure")) == 1


def test_a_metric_that_is_not_a_number_never_passes():
    result = result_with(auroc=math.nan)
    for kind in ("max", "min"):
        assert not check(result, [Gate.parse("auroc=0.5", kind)])[0].passed


def test_wrong_gates_name_the_right_ones():
    with pytest.raises(ConfigError, match="did you mean 'f1-drop'"):
        check(result_with(f1_drop=0.1), [Gate.parse("f1drop=1", "max")])
    with pytest.raises(ConfigError, match="this result has"):
        check(result_with(f1_drop=0.1), [])
    for text in ("f1-drop", "=3", "f1-drop=x"):
        with pytest.raises(ConfigError, match="not a gate"):
            Gate.parse(text, "max")


def test_a_result_of_an_earlier_version_is_told_from_a_damaged_one(tmp_path):
    result = result_with(auroc=0.9)
    save(result, tmp_path)
    file = tmp_path / "result.json"
    file.write_text(file.read_text().replace("pfungst.result/2", "pfungst.result/1"))
    with pytest.raises(DataError, match="another version of Pfungst") as caught:
        load(tmp_path)
    assert "run the audit again" in caught.value.remedy
    file.write_text("{}")
    with pytest.raises(DataError, match="has schema None"):
        load(tmp_path)
