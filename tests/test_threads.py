"""Threads that wait passively and follow the quota of a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfungst import threads


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("", None)],
)
def test_quota_is_read_from_the_control_group(text: str, cpus: int | None, tmp_path: Path, monkeypatch):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    monkeypatch.setattr(threads, "_QUOTA", file)
    assert threads.quota() == cpus


@pytest.mark.parametrize(("limit", "cpus"), [("-1", None), ("300000", 3)])
def test_quota_of_the_older_control_group(limit: str, cpus: int | None, tmp_path: Path, monkeypatch):
    (tmp_path / "cpu.cfs_quota_us").write_text(limit)
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "absent")
    monkeypatch.setattr(threads, "_OLD_QUOTA", tmp_path / "cpu.cfs_quota_us")
    assert threads.quota() == cpus


def test_the_users_setting_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    threads.share_the_machine()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"]) == ("ACTIVE", "0")


def test_the_command_sets_it_before_torch_is_imported():
    code = (
        "import sys, os, pfungst.cli as cli; cli.app = lambda: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY']);"
        "cli.main()"
    )
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    ).stdout
    assert out.split() == ["False", "PASSIVE"]
