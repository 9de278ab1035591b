"""Every block of the README and the documentation runs, or says above it why not: `<!-- not run: REASON -->`.

Tutorials and walks, the reference, data.md and extending.md have tests of their own."""

import contextlib
import glob
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from docs.pages import PAGES, REFERENCE, ROOT, TUTORIALS, blocks, blocks_of, run_python
from pfungst.cli import app

ELSEWHERE = {*TUTORIALS, *REFERENCE, ROOT / "docs/data.md", ROOT / "docs/extending.md"}
HERE = [p for p in PAGES if p not in ELSEWHERE and any(not b.reason for b in blocks(p))]
LANGUAGES = {"", "console", "python", "toml", "yaml"}


def pfungst_runs(words):
    """Run a command; a gate may fail, the audit is of a few small images."""
    if words[:2] == ["audit", "anomaly"] and "--dry-run" not in words:
        words = [*words, "--seeds", "1", "--device", "cpu", "--workers", "0", "--overwrite"]
        words += ["--size", "64"] if Path("audit").exists() else []
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 1) if words[0] in ("check", "watch") else done.exit_code == 0, (
        f"{words}\n{done.output}"
    )
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """DATA, a folder of parts, and `audit`, of the command that the README shows."""
    from pfungst.datasets.synthetic import make_parts, write

    folder = tmp_path_factory.mktemp("docs")
    write(folder / "DATA", make_parts("stamped_plate", train=24, good=12, defective=12, size=240, seed=1))
    (folder / "new-images").mkdir()
    for i, item in enumerate(
        make_parts("stamped_plate", train=0, good=8, defective=0, size=240, seed=2)[0].items
    ):
        item.read().save(folder / "new-images" / f"{i}.png")
    with contextlib.chdir(folder):
        pfungst_runs(
            shlex.split(
                "audit anomaly DATA --original opencv-nearest --deployed pillow-bilinear --mitigate blur --out audit"
            )
        )
    return folder


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


def of_evidence():
    x, labels = torch.rand(40, 3, 32, 32), torch.arange(40) % 4
    model, another = network(), network()
    with torch.no_grad():
        features = nn.Sequential(*model[:4])(x)
    return {"model": model, "another": another, "features": features, "labels": labels, "images": x[labels == 1], "others": x[labels != 1],
                "class_": 1, "class_of_another": 1}  # fmt: skip


def of_python():
    from pfungst.anomaly import PatchCore
    from pfungst.encoders import load

    x, y = torch.rand(40, 3, 32, 32), [0, 1] * 20
    names = {
        "train_images": x,
        "train_labels": y,
        "val_images": x,
        "val_labels": y,
        "names": ["a", "b"],
        "model": network()[:-1],
    }
    names["model"].append(nn.Linear(8, 2))
    names |= {
        "MEAN": (0.5,) * 3,
        "STD": (0.5,) * 3,
        "normal_images": x,
        "test_images": x[:12],
        "test_labels": [0, 1] * 6,
    }
    masks = [np.ones((32, 32), bool) if k % 2 else None for k in range(12)]
    return names | {"masks": masks, "file": None, "PatchCore": lambda name, checkpoint: PatchCore("small:8", layers="stage3.relu2"),
                    "encoder": load("small:8", size=32), "images": x, "labels": [str(k) for k in y], "scanners": ["s", "t"] * 20}  # fmt: skip


def of_truth():
    model, x = network(), torch.rand(8, 3, 64, 64)
    return {"model": model, "images": x, "maps": torch.rand(8, 64, 64), "classes": model(x).argmax(1)}


def of_deploy():
    from pfungst.anomaly import D2Neighbors

    images = torch.rand(8, 3, 16, 16)
    Image.open("new-images/0.png").save("part.png")
    shutil.copy("part.png", "image.png")
    folder = next(Path("audit/mended").iterdir())
    return {
        "folder": folder,
        "torch": torch,
        "detector": D2Neighbors(device="cpu").fit(images),
        "images": images,
    }


NAMES = {
    "README": lambda: {"model": network(), "images": torch.rand(2, 3, 32, 32)},
    "relevance": lambda: {"model": network(), "x": torch.rand(2, 3, 32, 32)},
    "evidence": of_evidence,
    "python": of_python,
    "truth": of_truth,
    "deploy": of_deploy,
}


@pytest.mark.parametrize("page", HERE, ids=lambda p: p.stem)
def test_blocks(page, made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for old, new in (("audit", "old"), ("audit", "new"), ("audit", "DIR")):
        shutil.copytree(old, new)
    shutil.copytree("DATA/stamped_plate", "mvtec/capsule")
    (tmp_path / "gates.toml").write_text("[min]\nauroc = 0.5\n", encoding="utf-8")
    names = {"__name__": "__main__", **NAMES.get(page.stem, dict)()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(page):
            if not block.reason:
                one(block, names, f"{page.name}:{block.line}")


def one(block, names, where):
    """Run a block by its language; output below a command stays unread."""
    assert block.language in LANGUAGES, where
    if block.language == "python":
        return run_python(block.text, names, where)
    if block.language == "toml":
        return tomllib.loads(block.text)
    if block.language == "yaml":
        assert yaml.safe_load(block.text)
    text = block.text.replace("\\\n", " ")
    ran = 0
    for line in re.findall(r"^ *(?:\$ |- run: )?((?:pfungst|python) .+)$", text, re.MULTILINE):
        tool, *words = shlex.split(line, comments=True)
        if tool == "pfungst":
            pfungst_runs(words)
        else:
            words = [found for word in words for found in glob.glob(word) or [word]]
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
        ran += 1
    assert ran or block.language == "yaml", f"{where}: nothing in this block can be run"


def test_no_block_is_missed():
    """Each page's blocks are all run by some test or marked; CommonMark, which GitHub and the site follow, finds them."""
    for page in PAGES:
        for block in blocks(page):
            assert block.reason or page in ELSEWHERE or page in HERE
            assert block.language in LANGUAGES, f"{page.name}:{block.line}"
    text = "A line.\n\n<!-- not run: why -->\n\n    pfungst one\n\nMore.\n\n- item\n\n      pfungst two\n\n  ```python\n  x = 1\n  ```\n"
    read = blocks_of(text)
    assert [(b.language, b.text.strip(), b.reason) for b in read] == [
        ("", "pfungst one", "why"),
        ("", "pfungst two", ""),
        ("python", "x = 1", ""),
    ]
