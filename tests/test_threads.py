"""Threads that wait passively and follow the quota of a container."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pfungst import files, memory, threads


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


@pytest.mark.parametrize(
    ("name", "value", "spins"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", True),
        ("OMP_WAIT_POLICY", "passive", False),
        ("GOMP_SPINCOUNT", "300000", True),
        ("GOMP_SPINCOUNT", "0", False),
        ("KMP_BLOCKTIME", "200", True),
        ("KMP_BLOCKTIME", "infinite", True),
    ],
)
def test_who_has_set_how_threads_wait_has_decided(name, value, spins, monkeypatch):
    for other in threads.WAITING:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    threads.share_the_machine()
    assert {n: os.environ[n] for n in threads.WAITING if n in os.environ} == {name: value}
    assert threads.spinning() == ([f"{name}={value}"] if spins else [])


def test_threads_sleep_after_a_short_spin_where_nobody_has_decided(monkeypatch):
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.os, "environ", os.environ.copy())
    threads.share_the_machine()
    assert threads.WAITING.items() <= threads.os.environ.items()
    assert threads.spinning() == []


def test_the_command_sets_it_before_torch_is_imported():
    code = (
        "import sys, os, pfungst.cli as cli; cli.app = lambda *_, **__: print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY']);"
        "cli.main()"
    )
    env = {k: v for k, v in os.environ.items() if k not in threads.WAITING}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    ).stdout
    assert out.split() == ["False", "PASSIVE"]


def test_cores_where_the_system_does_not_say_which_a_process_may_use(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert threads.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.cores() == 1


def test_memory_on_windows_is_asked_of_its_own_interface(monkeypatch):
    def status(place):
        assert place._obj.length == 64  # bytes of MEMORYSTATUSEX
        place._obj.total, place._obj.available = 16 << 30, 5 << 30
        return 1

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "sysconf")
    assert memory.physical_memory() == 16 << 30
    assert memory.available_memory() == 5 << 30
    memory.keep_freed_memory()  # does nothing: there is no glibc


def test_memory_on_macos_has_a_total_only(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory, "open", missing, raising=False)
    assert memory.available_memory() is None
    assert memory.physical_memory() > 1 << 28
    memory.keep_freed_memory()


def test_a_full_disk_is_known_where_there_are_no_quotas(monkeypatch):
    """Windows has no EDQUOT."""
    monkeypatch.delattr(errno, "EDQUOT")
    assert files.disk_is_full(OSError(errno.ENOSPC, "full"))
    assert not files.disk_is_full(OSError(errno.ENOENT, "missing"))
