"""The command line as a user meets it: exit codes, messages, kill and resume."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from factories import mini_mvtec
from pfungst.cli import main

ROOT = Path(__file__).parents[2]


def pfungst(*args, **kwargs):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "pfungst", *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
        **kwargs,
    )


def inside(*args, cwd="."):
    """The same in this process, which starts faster."""
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with (
            patch.dict(os.environ, {"COLUMNS": "120"}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as left,
        ):
            main(list(map(str, args)))
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(args, left.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mini_mvtec(tmp_path_factory.mktemp("data"), train=8, good=5, defective=3, size=40)


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['pfungst', '--help']\nfrom pfungst.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "audit" in done.stdout


def test_audit_report_and_gates(data, tmp_path):
    out = tmp_path / "out"
    done = pfungst("audit", "anomaly", data, "--size", 32, "--seeds", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "F1" in done.stdout
    assert (out / "report.html").stat().st_size > 10_000
    assert json.loads((out / "result.json").read_text())["schema_version"] == "pfungst.result/2"

    good = inside("check", out, "--min", "auroc=0.5", "--max", "f1-drop=1", "--junit", tmp_path / "j.xml")
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("pass") == 2
    assert (tmp_path / "j.xml").exists()
    failing = inside("audit", "anomaly", data, "--size", 32, "--seeds", 1, "--out", out, "--overwrite",
                      "--fail-on", "sound,fragile,unfit,provenance,clever-hans,too-few")  # fmt: skip
    assert failing.returncode == 1
    assert "FAIL  the verdict is" in failing.stdout
    exported = inside(
        "export", out, "--torch-export", "--entry", "bolt / d2neighbors", "--out", tmp_path / "model"
    )
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "model/model.pt2").exists()
    assert inside("export", out).returncode == 2
    bad = inside("check", out, "--min", "auroc=1.01")
    assert bad.returncode == 1
    assert bad.stdout.startswith("FAIL")
    assert "--min auroc=" in inside("check", out).stdout
    assert inside("check", tmp_path).returncode == 2

    again = inside("audit", "anomaly", data, "--size", 32, "--out", out)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere"),
        (["--config", "audit.toml"], "did you mean 'deployed'"),
        (["DATA", "--deployed", "pillow"], "pillow-bilinear"),
        (["DATA", "--out", "/proc/pfungst"], "cannot be written"),
        ([], "'data' is missing"),
    ],
)
def test_bad_input_exits_with_2_and_leaves_nothing(data, tmp_path, args, message):
    (tmp_path / "audit.toml").write_text(f'data = "{data}"\ndeploy = "pillow-bilinear"\n')
    done = inside("audit", "anomaly", *[data if a == "DATA" else a for a in args], cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["audit.toml"]


def test_kill_9_and_resume_gives_the_same_result(data, tmp_path):
    def command(out, *more):
        return ["audit", "anomaly", data, "--size", "32", "--seeds", "3", "--out", tmp_path / out, *more]

    assert inside(*command("whole")).returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pfungst", *map(str, command("broken"))],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    parts = tmp_path / "broken" / ".parts"
    deadline = time.monotonic() + 120
    while not list(parts.rglob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pfungst(*command("broken", "--resume")).returncode == 0

    def numbers(out):
        result = json.loads((tmp_path / out / "result.json").read_text())
        return {k: v for k, v in result.items() if k not in ("created", "seconds", "config", "notes")}

    assert numbers("broken") == numbers("whole")
    assert not parts.exists()
    assert sorted(p.name for p in (tmp_path / "broken").rglob("*")) == sorted(
        p.name for p in (tmp_path / "whole").rglob("*")
    )
