import json
import math
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.check import Gate, Gates, check, levels_of, list_metrics, markdown, write_junit
from pfungst.audit.result import KINDS, Metric, Result, Verdict, load, save
from pfungst.audit.summary import print_summary
from pfungst.errors import ConfigError, DataError

HIGHER = {"auroc"}


def result_with(level="sound", **values: float) -> Result:
    return Result(
        kind="anomaly",
        title="t",
        version="0",
        created="2026-01-01T00:00:00Z",
        seconds=1,
        machine="m",
        config={},
        verdict=Verdict(level=level, headline="h | *x*"),
        metrics={
            name.replace("_", "-"): Metric(
                value=v, where="ring", meaning="…", better="higher" if name in HIGHER else "lower"
            )
            for name, v in values.items()
        },
    )


def gates(*maximum, minimum=(), verdicts=(), file=None):
    return Gates.read(file, maximum, minimum, verdicts)


def test_gates_pass_and_fail_on_both_sides():
    result = result_with(f1_drop=0.05, auroc=0.93)
    outcomes = check(result, gates("f1-drop=0.03", minimum=["auroc=0.9"]))
    assert [o.passed for o in outcomes] == [False, True]
    assert "FAIL  f1-drop = 0.05 ≤ 0.03  (ring)" in str(outcomes[0])


def test_junit_has_a_root_times_and_values(tmp_path):
    result = result_with(f1_drop=0.05, auroc=0.93)
    outcomes = check(result, gates("f1-drop=0.03", minimum=["auroc=0.9"], verdicts=["sound"]))
    write_junit(outcomes, result, tmp_path / "not" / "there" / "junit.xml")  # missing folders are made
    root = ElementTree.parse(tmp_path / "not/there/junit.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root.findall("testsuite")
    for element in (root, suite):
        assert (element.get("tests"), element.get("failures"), element.get("errors")) == ("3", "1", "0")
        assert float(element.get("time")) >= 0
    assert suite.get("timestamp") == "2026-01-01T00:00:00Z"
    case = root.find(".//testcase[@name='f1-drop']")
    found = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert found == {"value": "0.05", "bound": "≤ 0.03", "where": "ring"}
    assert "0.05 ≤ 0.03" in case.find("failure").get("message")
    assert root.find(".//testcase[@name='auroc']/failure") is None


def test_junit_of_a_name_with_control_characters_is_still_xml(tmp_path):
    result = result_with(f1_drop=0.05)
    result.metrics["f1-drop"].where = "a\x00b\x1b"
    write_junit(check(result, gates("f1-drop=0.01")), result, tmp_path / "j.xml")
    assert ElementTree.parse(tmp_path / "j.xml").find(".//failure") is not None


@pytest.mark.parametrize("value", [math.nan])
def test_a_metric_that_is_not_a_number_never_passes(value):
    result = result_with(auroc=value, f1_drop=value)
    assert not any(o.passed for o in check(result, gates("f1-drop=1e9", minimum=["auroc=-1e9"])))


def test_a_bound_that_is_not_a_number_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="bounds nothing"):
        Gate.parse("auroc=nan", "min")
    (tmp_path / "gates.toml").write_text("[max]\nf1-drop = nan\n")
    with pytest.raises(ConfigError, match="bounds nothing"):
        gates(file=tmp_path / "gates.toml")


def test_a_gate_against_the_direction_is_refused():
    result = result_with(auroc=0.9, f1_drop=0.1)
    with pytest.raises(ConfigError, match="higher is better") as caught:
        check(result, gates("auroc=0.5"))
    assert "--min auroc=0.5" in caught.value.remedy
    with pytest.raises(ConfigError, match="lower is better"):
        check(result, gates(minimum=["f1-drop=0"]))


def test_the_verdict_is_a_gate():
    passing = gates(verdicts=["sound,fragile"])
    assert check(result_with("fragile"), passing)[0].passed
    assert not check(result_with("unfit"), passing)[0].passed
    with pytest.raises(ConfigError, match="no verdict is called 'sund'"):
        levels_of(["sund"])


def test_gates_in_toml(tmp_path):
    file = tmp_path / "gates.toml"
    file.write_text('verdict = ["sound"]\n[max]\nf1-drop = 0.03\n[min]\nauroc = 0.9\n')
    found = gates(file=file)
    assert {(g.metric, g.kind, g.bound) for g in found.bounds} == {
        ("f1-drop", "max", 0.03),
        ("auroc", "min", 0.9),
    }
    assert found.verdicts == ("sound",)
    given = gates("f1-drop=0.5", verdicts=["fragile"], file=file)
    assert {g.bound for g in given.bounds} == {0.5, 0.9}
    assert given.verdicts == ("fragile",)
    for text, match in {
        "[maxx]\na = 1": "did you mean 'max'", "max = 3": "is no gate", "[max]\na = true": "bounds nothing",
        "[max]\na = 'x'": "bounds nothing", "[verdict]\na = 1": "is no gate", "[": "cannot be read",
    }.items():  # fmt: skip
        file.write_text(text)
        with pytest.raises(ConfigError, match=match):
            gates(file=file)
    with pytest.raises(ConfigError, match="cannot be read"):
        gates(file=tmp_path / "none.toml")


def test_without_gates_all_that_could_be_gated_on_is_listed():
    text = list_metrics(result_with(f1_drop=0.05, auroc=0.9))
    assert "--max f1-drop=0.05" in text
    assert "--min auroc=0.9" in text
    assert "--verdict sound" in text


def test_the_summary_for_a_pull_request_is_one_table(tmp_path):
    result = result_with(f1_drop=0.05, auroc=0.93)
    text = markdown(check(result, gates("f1-drop=0.03", minimum=["auroc=0.9"])), result)
    assert "1 of 2 gates failed" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert all(row.count("|") == 6 for row in rows)
    assert r"h \| \*x\*" in text


@pytest.fixture
def plain(monkeypatch):
    """Results of no audit can be read, too."""
    monkeypatch.setitem(KINDS, "anomaly", "pfungst.audit.result:Result")


def run(*args):
    from pfungst.cli import app

    return CliRunner().invoke(app, ["check", *map(str, args)])


def test_exit_codes_of_check(tmp_path, plain):
    save(result_with(auroc=0.9, f1_drop=math.nan), tmp_path)
    assert run(tmp_path).exit_code == 0
    assert (
        run(tmp_path, "--min", "auroc=0.8", "--verdict", "sound", "--markdown", tmp_path / "a/b.md").exit_code
        == 0
    )
    assert "all 2 gates passed" in (tmp_path / "a/b.md").read_text()
    assert run(tmp_path, "--min", "auroc=0.95").exit_code == 1
    assert run(tmp_path, "--max", "f1-drop=1").exit_code == 1
    assert run(tmp_path, "--verdict", "fragile").exit_code == 1
    for wrong in (
        ["--max", "auroc=1"],
        ["--min", "auroc=nan"],
        ["--verdict", "sund"],
        ["--config", "none.toml"],
    ):
        assert isinstance(run(tmp_path, *wrong).exception, ConfigError)
    assert isinstance(run(tmp_path, "--min", "auroc=0", "--junit", "/proc/none/j.xml").exception, DataError)


_MAIN = """
from pfungst.audit.result import KINDS
from pfungst.audit.summary import print_summary
KINDS["anomaly"] = "pfungst.audit.result:Result"
from pfungst.cli import main
main()
"""


def test_a_terminal_of_another_encoding_changes_no_exit_code(tmp_path):
    save(result_with(auroc=0.9), tmp_path)
    for bound, code in (("0.8", 0), ("0.95", 1)):
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, "check", str(tmp_path), "--min", f"auroc={bound}"],
            env={"PYTHONIOENCODING": "cp1252", "PYTHONPATH": ":".join(sys.path), "PATH": ""},
            capture_output=True,
        )
        assert done.returncode == code, done.stderr


def test_audits_know_the_verdicts_to_fail_on():
    config = AnomalyConfig.build(data="synthetic", fail_on="unfit,fragile")
    assert config.fail_on == ["unfit", "fragile"]
    assert config.fingerprint() == AnomalyConfig.build(data="synthetic").fingerprint()
    with pytest.raises(ConfigError, match="no verdict is called 'bad'"):
        AnomalyConfig.build(data="synthetic", fail_on="bad")


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


@pytest.mark.parametrize("bound", ["inf", "-inf", "1e400"])
def test_an_infinite_bound_is_refused(tmp_path, bound):
    """Regression: --max f1-drop=inf passed whatever came."""
    with pytest.raises(ConfigError, match="bounds nothing"):
        gates(f"f1-drop={bound}")


@pytest.mark.parametrize(
    "text", ["verdict = 3", "verdict = ['sound', 3]", "verdict = ''", "verdict = ['sound', '']"]
)
def test_verdicts_that_name_none_are_refused(tmp_path, text):
    """Regression: `check --verdict ""`, of a variable that is not set, was no gate and passed; a number was a
    TypeError."""
    (tmp_path / "gates.toml").write_text(text)
    with pytest.raises(ConfigError, match="names no verdict"):
        gates(file=tmp_path / "gates.toml")
    with pytest.raises(ConfigError, match="names no verdict"):
        gates(verdicts=[""])
    with pytest.raises(ConfigError, match="names no verdict"):
        AnomalyConfig.build(data=tmp_path, fail_on=[""])


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    """Regression: --markdown /dev/full wrote beside the device and renamed the file onto it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a device or a pipe"):
        write_junit([], result_with(), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_brackets_and_colons_of_names_reach_the_terminal(capsys):
    """Regression: class [a] was printed as nothing, and m.py:two as an emoji."""
    result = result_with(level="sound")
    result.verdict.headline = "m.py:two reads [red] of :dog:"
    print_summary(result)
    assert "m.py:two reads [red] of :dog:" in capsys.readouterr().out


def test_of_a_damaged_result_only_the_first_faults_are_said(tmp_path):
    """Regression: a result of other code had 280 lines of faults."""
    save(result_with(auroc=0.9), tmp_path)
    file = tmp_path / "result.json"
    data = json.loads(file.read_text())
    data["entries"] = [{}] * 40
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"is damaged: \w+: Field required; .* and \d+ more") as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message
