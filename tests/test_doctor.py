"""``pfungst doctor`` says what is there, what is missing and what is wrong."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from pfungst import doctor
from pfungst.cli import app
from pfungst.doctor import Finding, examine


@pytest.fixture(scope="module")
def findings():
    return {finding.about: finding for finding in examine()}


def test_nothing_is_wrong_where_the_tests_run(findings):
    assert [f for f in findings.values() if f.state == "wrong"] == []
    assert findings["torch"].found == metadata.version("torch")
    assert findings["extra label"].state == "ok"
    assert {"PNG,", "JPEG,"} <= set(findings["self-test: images"].found.split())
    assert all(f.remedy for f in findings.values() if f.state != "ok")


def test_every_extra_for_users_is_looked_at(findings):
    extras = set(metadata.metadata("pfungst").get_all("Provides-Extra")) - {"all", "test", "lint", "docs"}
    assert extras == {about.removeprefix("extra ") for about in findings if about.startswith("extra ")}
    assert extras <= set(doctor.EXTRAS)


def test_an_old_and_an_absent_package_are_wrong(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: {"torch": "2.4.9", "timm": None}.get(name, "99"))
    told = {f.about: f for f in doctor._packages()}
    assert told["torch"].state == told["timm"].state == "wrong"
    assert told["torch"].found.startswith("2.4.9, older than ")
    assert "--upgrade" in told["torch"].remedy
    assert told["numpy"] == Finding("numpy", "99")


@pytest.mark.parametrize(
    ("version", "lowest", "old"),
    [("2.10.1", "2.5", False), ("2.4.9+cpu", "2.5", True), ("1.11.0rc1", "1.11", False)],
)
def test_versions_are_ordered_as_numbers(version, lowest, old):
    assert (doctor._order(version) < doctor._order(lowest)) is old


def test_a_failing_self_test_is_an_exit_of_2(monkeypatch):
    monkeypatch.setattr(doctor, "TESTS", {"explanation": lambda: 1 / 0})
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 2
    last = json.loads(result.stdout)[-1]
    assert last["state"] == "wrong"
    assert "ZeroDivisionError" in last["found"]


def test_spinning_threads_are_said():
    env = {**os.environ, "OMP_WAIT_POLICY": "ACTIVE"}
    code = "from pfungst.doctor import _machine; print([f.found for f in _machine() if 'waiting' in f.about])"
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "OMP_WAIT_POLICY=ACTIVE" in out.stdout
