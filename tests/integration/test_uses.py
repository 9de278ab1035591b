"""Two uses from raw data to a gate, with documented commands only: inspection of parts, and radiology."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.test_deep import CT, dicom
from factories import picture, save

ROOT = Path(__file__).parents[2]


def script(folder, text):
    """Each line of a script that runs to its end, with what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    printed = []
    for line in filter(None, map(str.strip, text.splitlines())):
        done = subprocess.run(
            [sys.executable, "-m", *line.split()], capture_output=True, text=True, env=environment, cwd=folder
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


def test_inspection(tmp_path):
    """Photographs in folders OK and NOK, a detector of scikit-learn."""
    for k, (name, count) in enumerate({"OK": 50, "NOK": 14}.items()):
        for i in range(count):
            image, mask = picture(100 * k + i, (64, 48), defect=k == 1)
            save(tmp_path / f"photos/{name}/{i:03d}.jpg", image, quality=90)
            if k:
                save(tmp_path / f"photos/masks/NOK/{i:03d}.png", mask.astype(np.uint8) * 255)
    code = "from sklearn.ensemble import IsolationForest\ndef forest():\n    return IsolationForest(n_estimators=50)\n"
    (tmp_path / "mine.py").write_text(code)
    options = "--size 24x32 --seeds 3 --device cpu --model mine.py:forest,d2neighbors"
    seen, _, gate = script(
        tmp_path,
        f"""
        pfungst audit anomaly photos {options} --dry-run
        pfungst audit anomaly photos {options} --out audit
        pfungst check audit --min f1=0.01 --max f1-drop=1 --junit gate.xml
        """,
    )
    assert "photos: image folder, 64 images" in seen
    assert "test: NOK 14, good 15; train: good 35" in seen.replace("  ", " ")
    assert "masks    14 of 64 images" in seen
    assert "estimate: " in seen
    result = json.loads((tmp_path / "audit/result.json").read_text())
    forest, ours = result["entries"]
    assert forest["exposure"] is None
    assert ours["exposure"] is not None
    assert result["size"] == [24, 32]
    assert len(forest["scores"]) == len(ours["scores"]) == 4
    assert "not explained" in (tmp_path / "audit/report.html").read_text()
    assert "pass" in gate


def test_radiology(tmp_path):
    """DICOM of two sites and a table of findings, a probe on an encoder."""
    pytest.importorskip("pydicom")
    rows = ["file,finding"]
    for i in range(48):
        values = 1000 + np.random.default_rng(i).normal(0, 40, (48, 40))
        if i % 2:
            values[12:30, 10:24] += 300
        site = "North" if (i // 2) % 2 else "South"
        fields = {"InstitutionName": site, "PatientID": f"p{i // 4}", "StudyDate": f"20210{i % 3 + 1}01"}
        dicom(tmp_path / f"scans/{i:02d}.dcm", values.clip(0, 4095).astype(np.uint16), **CT, **fields)
        rows.append(f"scans/{i:02d}.dcm,{'opacity' if i % 2 else 'clear'}")
    (tmp_path / "findings.csv").write_text("\n".join(rows) + "\n")
    options = "--images findings.csv --labels finding --encoder small:8 --groups site --size 32 --device cpu"
    seen, _, gate = script(
        tmp_path,
        f"""
        pfungst audit similarity {options} --dry-run
        pfungst audit similarity {options} --window 40,600 --seeds 3 --explain 4 --pairs 1 --out audit
        pfungst check audit --min accuracy=0.01
        """,
    )
    assert "CSV, 48 images" in seen
    assert "site: South 24, North 24" in seen
    assert "48 DICOM files are shown through the window in their header" in seen
    result = json.loads((tmp_path / "audit/result.json").read_text())
    assert result["kept_together"] == "patient"
    assert "pass" in gate
