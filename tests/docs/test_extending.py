"""The examples of docs/extending.md run as they stand, and docs/conditions.md is current."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from pfungst.conditions import condition_page
from pfungst.registry import COMPOSITES, CONDITIONS, DETECTORS

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))  # a file, and its use


@pytest.mark.parametrize(("file", "use"), EXAMPLES, ids=lambda b: b.splitlines()[0].removeprefix("# "))
def test_example(file, use, tmp_path, monkeypatch):
    name = file.splitlines()[0].removeprefix("# ")
    (tmp_path / name).write_text(file)
    (tmp_path / "use.py").write_text(use)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        runpy.run_path("use.py")
    finally:
        sys.modules.pop(name.removesuffix(".py"), None)
        for registry in (COMPOSITES, CONDITIONS, DETECTORS):
            registry.remove(name.removesuffix(".py"))


def test_examples_are_short_and_all_there():
    assert [f.splitlines()[0] for f, _ in EXAMPLES] == [
        "# mahalanobis.py",
        "# gamma.py",
        "# falling_gamma.py",
        "# absolute.py",
        "# scans.py",
        "# average_precision.py",
    ]
    assert max(len(b.splitlines()) for b in BLOCKS) <= 40


def test_the_list_of_conditions_is_current():
    page = (DOCS / "conditions.md").read_text(encoding="utf-8")
    assert page == condition_page(), "run: pfungst conditions > docs/conditions.md"
