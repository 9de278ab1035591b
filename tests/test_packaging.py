"""What users install: the wheel carries what it needs and is the same each time; other recipes agree with it."""

import hashlib
import json
import os
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
import yaml

import pfungst
from pfungst.cli import app

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


def commands():
    """{path of words below ``pfungst``: options} of the command line."""
    import typer

    found = {}

    def walk(command, path):
        found[path] = {o for p in command.params for o in p.opts}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


RECIPES = ("action.yml", "Dockerfile", ".pre-commit-hooks.yaml", "packaging/meta.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_call_commands_and_options_that_there_are(name):
    known = commands()
    calls = re.findall(r"(?<![\w./-])pfungst ([a-z-][^\n#]*)", (ROOT / name).read_text(encoding="utf-8"))
    calls = [
        c
        for c in calls
        if re.match(r"--version|[a-z]+", c) and c.split()[0] in {p[0] for p in known if p} | {"--version"}
    ]
    assert calls or name == "Dockerfile"
    for call in calls:
        words = call.split()
        path = (words[0],) if (words[0],) in known else ()
        options = {o for p, known_ in known.items() if p[: len(path)] == path for o in known_}
        assert set(re.findall(r"(?<!\S)(?:\$\{\w+:\+)?(--[a-z-]+)", call)) <= options, call


def test_hooks_and_image_name_what_there_is():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert tuple(hook["entry"].split()[1:]) in commands()
    assert set(re.findall(r"--[a-z-]+", hook["description"])) <= commands()["check",]
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = re.search(r"/src\[([\w,]+)\]", image)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.fixture
def action(tmp_path):
    """Runs the shell of one step of the action with its inputs, in a folder; pfungst and gh stand in files that
    write down their arguments."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]
    steps = {s["name"]: s for s in steps}
    (tmp_path / "bin").mkdir()
    for name in ("pfungst", "gh", "python"):
        tool = tmp_path / "bin" / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> "{tmp_path}/calls"\n', encoding="utf-8")
        tool.chmod(0o755)

    def run(name, inputs):
        step = steps[name]
        given = {
            k: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: inputs[m[1]], v) for k, v in step["env"].items()
        }
        assert "${{" not in step["run"]  # an input pasted into a script could be code
        environment = {
            **os.environ, **given, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "GITHUB_ACTION_PATH": "/action",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        }  # fmt: skip
        subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step["run"]], env=environment, cwd=tmp_path, check=True
        )
        calls = tmp_path / "calls"
        found = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return found

    return run


def test_the_action_passes_inputs_as_words_and_shows_the_table(action, tmp_path):
    inputs = {
        "audit": "anomaly 'my data' --size 64 $(touch owned)",
        "gates": "",
        "out": "out",
        "extras": "dicom,pool",
    }
    assert action("Install", inputs) == ["python", "-m", "pip", "install", "/action[dicom,pool]"]
    assert action("Install", inputs | {"extras": ""})[-1] == "/action"
    words = [
        "pfungst",
        "audit",
        "anomaly",
        "my data",
        "--size",
        "64",
        "$(touch",
        "owned)",
        "--out",
        "out",
        "--overwrite",
    ]
    assert action("Audit", inputs) == words
    assert not (tmp_path / "owned").exists()
    assert "--config" not in action("Gates", inputs)
    found = action("Gates", inputs | {"gates": "my gates.toml"})
    assert found[:5] == ["pfungst", "check", "out", "--config", "my gates.toml"]
    action("Summary", inputs)
    assert not (tmp_path / "summary").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/gates.md").write_text("### Pfungst\n", encoding="utf-8")
    action("Summary", inputs)
    assert (tmp_path / "summary").read_text(encoding="utf-8") == "### Pfungst\n"
    assert action("Comment", inputs)[:3] == ["gh", "pr", "comment"]


def test_inputs_of_the_action_are_documented():
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    text = (ROOT / "docs/gates.md").read_text(encoding="utf-8").partition("pfungst/pfungst@")[2]
    example = yaml.safe_load("with:" + text.partition("with:")[2].partition("```")[0])["with"]
    assert set(example) <= set(inputs)
    assert text.startswith(f"v{pfungst.__version__}")
