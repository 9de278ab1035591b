"""Three uses from raw data to an exported model and a gate, with documented commands only: inspection of parts,
radiology, and a platform that replaces a classifier."""

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import classifier_factory
import similarity_factory
from data.test_deep import CT, dicom
from factories import picture, save
from pfungst import cli

ROOT = Path(__file__).parents[2]
DOCS = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "README.md", *ROOT.glob("docs/*.md")))


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs each line of a script to its end, in an empty folder; gives what each printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "share_the_machine", lambda: None)  # which outlives a test
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)

    def run(text):
        printed = []
        for line in filter(None, map(str.strip, text.splitlines())):
            command, *words = shlex.split(line)
            assert command == "pfungst"
            assert f"pfungst {words[0]}" in DOCS
            assert [w for w in words if w.startswith("--") and not re.search(rf"{w}\b", DOCS)] == []
            with pytest.raises(SystemExit) as ended:
                cli.main(words)
            out, err = capsys.readouterr()
            assert ended.value.code == 0, f"{line}\n{out}\n{err}"
            printed.append(out)
        return printed

    return run


def parity(text):
    """The difference that each line of ``pfungst export`` says."""
    return [float(d) for d in re.findall(r"differs by (\S+) from the audited model", text)]


def test_inspection(tmp_path, script):
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
    seen, _, exported, gate = script(
        f"""
        pfungst audit anomaly photos {options} --dry-run
        pfungst audit anomaly photos {options} --mitigate blur:3,1.0 --out audit
        pfungst export audit --onnx --state-dict --entry 'photos / d2neighbors' --out deploy
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
    assert max(parity(exported)) <= 1e-4
    assert len(parity(exported)) == 2
    assert "pass" in gate


@pytest.mark.slow
def test_radiology(tmp_path, script):
    """DICOM of two sites and a table of findings, a probe on an encoder."""
    pytest.importorskip("pydicom")
    similarity_factory.logo(tmp_path / "tag.png")
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
    seen, _, exported, gate = script(
        f"""
        pfungst audit similarity {options} --dry-run
        pfungst audit similarity {options} --window 40,600 --seeds 3 --explain 4 --pairs 1 --condition logo:tag.png,width=0.5 --sweep 1 --mitigate prune:auto:1 --out audit
        pfungst export audit --onnx --torch-export --out deploy
        pfungst check audit --min accuracy=0.01
        """,
    )
    assert "CSV, 48 images" in seen
    assert "site: South 24, North 24" in seen
    assert "48 DICOM files are shown through the window in their header" in seen
    result = json.loads((tmp_path / "audit/result.json").read_text())
    assert result["kept_together"] == "patient"
    assert max(parity(exported)) <= 1e-4
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession("deploy/model.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["embedding", "logits"]
    assert "pass" in gate


def test_platform(tmp_path, script):
    """A classifier that relies on a mark is mended and leaves; a new one is held against it by gates."""
    classifier_factory.make(tmp_path, val=14)
    options = (
        "--train train --val val --spurious spurious --size 16 --original pillow-bilinear --n-components 4 "
        "--witness none --device cpu"
    )
    gates = "[max]\nlost = 0.2\nworse = 0\n[min]\nbalanced-accuracy-change = -0.05\n"
    (tmp_path / "gates.toml").write_text(gates, encoding="utf-8")
    _, exported, _, _, _, gate, _ = script(
        f"""
        pfungst audit classifier --model toy.py:biased {options} --out old
        pfungst export old --onnx --torch-export --state-dict --out deploy
        pfungst watch old val --out watched --fail-on unfit
        pfungst audit classifier --model toy.py:clean {options} --out new
        pfungst compare old new --out comparison
        pfungst check comparison --config gates.toml --junit out/gates.xml --markdown out/gates.md
        pfungst check new --verdict sound,fragile,too-few,clever-hans
        """
    )
    assert len(parity(exported)) == 3
    assert max(parity(exported)) <= 1e-4
    old, new = (json.loads(Path(f"{n}/result.json").read_text(encoding="utf-8")) for n in ("old", "new"))
    assert old["verdict"]["level"] == "clever-hans"
    assert old["chosen_by"] == "evidence"
    assert new["verdict"]["level"] != "clever-hans"
    suite = ElementTree.parse("out/gates.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")
    assert "all 3 gates passed" in Path("out/gates.md").read_text(encoding="utf-8")
    assert gate.count("pass") == 3
