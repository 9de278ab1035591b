"""What users install: the wheel carries what it needs and is the same each time; other recipes agree with it."""

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pfungst

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = {"torch": "pytorch", "opencv-python-headless": "py-opencv", "matplotlib": "matplotlib-base"}


def test_one_version_everywhere():
    assert PROJECT["version"] == pfungst.__version__
    assert f"version: {pfungst.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version = "{pfungst.__version__}"' in (ROOT / "packaging" / "meta.yaml").read_text(
        encoding="utf-8"
    )


def test_the_conda_recipe_requires_what_the_package_does():
    text = (ROOT / "packaging" / "meta.yaml").read_text(encoding="utf-8")
    run = text.partition("  run:\n")[2].partition("\n\n")[0]
    wanted = {re.sub(r"^([\w-]+)", lambda m: CONDA.get(m[1], m[1]), d) for d in PROJECT["dependencies"]}
    wanted.add(f"python{PROJECT['requires-python']}")
    assert {line.strip(" -").replace(" ", "") for line in run.splitlines()} == wanted


def test_the_bill_of_materials_is_current():
    script = runpy.run_path(str(ROOT / "packaging" / "sbom.py"))
    assert script["TARGET"].read_text(encoding="utf-8") == script["bill"](), "run: python packaging/sbom.py"
    bill = json.loads(script["bill"]())
    assert {c["name"] for c in bill["components"]} >= {"torch", "htmx", "pillow"}
    for part in bill["components"]:
        if "hashes" in part:
            name = part["properties"][0]["value"].removeprefix("pfungst/")
            data = (ROOT / "src" / "pfungst" / name).read_bytes()
            assert part["hashes"][0]["content"] == hashlib.sha256(data).hexdigest()


def test_every_carried_file_that_is_no_code_of_ours_is_in_the_bill():
    ours = {".py", ".html", ".css", ".svg", ".typed", ".toml", ".json"}
    script = runpy.run_path(str(ROOT / "packaging" / "sbom.py"))
    package = ROOT / "src" / "pfungst"
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    foreign = {str(p.relative_to(package)) for p in files if p.suffix not in ours}
    written = {"label/static/app.js", "report/templates/page.js", "report/templates/pairs.js"}
    assert foreign - written - {"label/static/htmx-LICENSE.txt"} == set(script["CARRIED"])


def built(tree, kind, out):
    code = f"from hatchling import build; print(build.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True)
    return out / done.stdout.split()[-1]


@pytest.mark.slow
def test_the_same_tree_makes_the_same_wheel_with_all_that_it_needs(tmp_path):
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tree = tmp_path / "tree"
    for name in names.splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    wheels = []
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        wheels.append(built(tree, "wheel", tmp_path / turn))
    first, second = (hashlib.sha256(p.read_bytes()).hexdigest() for p in wheels)
    assert first == second
    inside = set(zipfile.ZipFile(wheels[0]).namelist())
    tracked = {n.removeprefix("src/") for n in names.splitlines() if n.startswith("src/pfungst/")}
    assert tracked <= inside
    source = built(tree, "sdist", tmp_path)
    with tarfile.open(source) as archive:
        packed = {n.partition("/")[2] for n in archive.getnames()}
    assert {
        n for n in names.splitlines() if n.split("/")[0] in ("tests", "docs", "examples", "src")
    } <= packed
