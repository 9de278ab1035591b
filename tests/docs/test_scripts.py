"""What examples and benchmarks take from Pfungst is there; they run too long to be run by tests."""

import ast
import importlib
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(p for folder in ("examples", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_of_ours_exist(path):
    """Regression: ``examples/anomaly_claims.py`` imported a name that had moved to another package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pfungst":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pfungst":
                    importlib.import_module(alias.name)


def test_the_page_on_scale_quotes_what_the_script_computes():
    script = runpy.run_path(str(ROOT / "benchmarks" / "imagenet.py"))
    assert "\n".join(script["table"]()) in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
