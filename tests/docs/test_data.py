"""Every command of docs/data.md runs on data as the page describes them, and every layout is on the page."""

import csv
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data.test_deep import CT, dicom
from factories import picture, save
from pfungst.cli import app
from pfungst.data.layouts import LAYOUTS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    pfungst (.+)$", PAGE, re.MULTILINE)
FAST = ["--seeds", "1", "--device", "cpu", "--mitigate", "none"]


def pictures(folder, classes, suffix="png"):
    for k, (name, count) in enumerate(classes.items()):
        for i in range(count):
            yield save(folder / name / f"{i:02d}.{suffix}", picture(100 * k + i, 40, defect=k > 0)[0]), name


def row_of(path, root, *more):
    return [path.relative_to(root).as_posix(), *more]


def scans(folder):
    for i in range(36):
        values = 1000 + 40 * (i % 3) + np.random.default_rng(i).normal(0, 30, (40, 40))
        if i >= 24:
            values[10:20, 12:24] += 400
        fields = {
            "Manufacturer": f"Acme {i % 2}",
            "InstitutionName": "NS"[i % 2] + "orth",
            "PatientID": f"p{i}",
        }
        kind = "good" if i < 24 else "nodule"
        dicom(folder / kind / f"{i:02d}.dcm", values.clip(0, 4095).astype(np.uint16), **CT, **fields)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    list(pictures(folder / "parts", {"good": 30, "bad": 8}, "jpg"))
    for number in range(2):
        with tarfile.open(folder / f"tiles-{number:04d}.tar", "w") as tar:
            for file in sorted((folder / "parts").rglob("*.jpg"))[number::2]:
                tar.add(file, file.relative_to(folder / "parts").as_posix())
    list(pictures(folder / "shelf", {"full": 30, "gap": 8}))
    shots = list(pictures(folder / "photos", {"a": 30, "b": 8}))
    (folder / "lists").mkdir()
    with (folder / "lists/parts.csv").open("w", newline="") as file:
        write = csv.writer(file, delimiter=";").writerow
        write(["shot", "verdict", "phase_of", "remark"])
        for i, (path, name) in enumerate(shots):
            verdict, phase = ("fine", "Train" if i < 20 else "Test") if name == "a" else ("broken", "Test")
            write([*row_of(path, folder / "photos"), verdict, phase, f'says "{i};\n{i}"'])
    data = [p.read_bytes() for p, _ in shots]
    faulty = [name == "b" for _, name in shots]
    pq.write_table(pa.table({"image": data, "faulty": faulty}), folder / "parts.parquet")
    scans(folder / "scans")
    rows = [row_of(p, folder, p.parent.name) for p in sorted((folder / "scans").rglob("*.dcm"))]
    (folder / "scans.csv").write_text("path,finding\n" + "".join(f"{','.join(r)}\n" for r in rows))
    (code,) = re.findall(r"```python\n(# mine\.py.*?)```", PAGE, re.DOTALL)
    (folder / "mine.py").write_text(code)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_command(here, tmp_path, monkeypatch, command):
    if "scans" in command:
        pytest.importorskip("pydicom")
    monkeypatch.chdir(here)
    words = shlex.split(command)
    words += ["--out", str(tmp_path / "out"), *(FAST if words[1] == "anomaly" else [])]
    done = CliRunner().invoke(app, words)
    assert done.exception is None, done.exception
    if "--dry-run" in words:
        assert not (tmp_path / "out").exists()
        assert "classes" in done.output
        assert "estimate: " in done.output
    else:
        page = (tmp_path / "out/report.html").read_text()
        assert ("not explained" in page) == ("forest" in command)


def test_every_layout_is_on_the_page():
    missing = [
        layout.name for layout in LAYOUTS if not re.search(rf"^\|.*{layout.name}.*\|$", PAGE, re.MULTILINE)
    ]
    assert not missing
