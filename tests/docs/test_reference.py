"""Every public name has an example in the reference, and every example runs and gives what it says."""

import ast
import importlib
import warnings

import pytest

from docs.pages import REFERENCE, blocks, run_python
from pfungst.errors import PfungstWarning

MODULES = {"audits": ["pfungst"], "datasets": ["pfungst.datasets", "pfungst.datasets.synthetic"]}
EXAMPLES = [p for p in REFERENCE if p.stem != "index"]


def public(page):
    """The names that a page has to show."""
    found = set()
    for name in MODULES.get(page.stem, [f"pfungst.{page.stem}"]):
        module = importlib.import_module(name)
        own = [
            n
            for n, v in vars(module).items()
            if getattr(v, "__module__", "") == name and not n.startswith("_")
        ]
        found |= set(getattr(module, "__all__", None) or getattr(module, "_LAZY", None) or own)
    return found


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda p: p.stem)
def test_every_public_name_is_used_by_an_example(page):
    used = set()
    for block in blocks(page):
        assert not block.reason
        for node in ast.walk(ast.parse(block.text)):
            used |= (
                {node.id}
                if isinstance(node, ast.Name)
                else {node.attr}
                if isinstance(node, ast.Attribute)
                else set()
            )
    assert public(page) <= used, f"no example uses {', '.join(sorted(public(page) - used))}"


def test_every_package_has_a_page():
    """Regression: `pfungst.papers` and `pfungst.datasets.synthetic` were public and in no page of the reference."""
    from docs.pages import ROOT

    package = ROOT / "src" / "pfungst"
    public = {
        p.parent.relative_to(package).as_posix()
        for p in package.rglob("__init__.py")
        if "\n__all__" in p.read_text("utf-8")
    }
    assert public == ({p.stem for p in EXAMPLES} - {"audits", "errors"}) | {"datasets/synthetic"}


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda p: p.stem)
def test_example(page, tmp_path, monkeypatch):
    from pfungst.registry import COMPOSITES, CONDITIONS, DETECTORS

    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    before = [(r, set(r)) for r in (COMPOSITES, CONDITIONS, DETECTORS)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PfungstWarning)
            for block in blocks(page):
                run_python(block.text, names, f"{page.stem}:{block.line}")
    finally:
        for registry, known in before:
            for name in set(registry) - known:
                registry.remove(name)


def test_a_wrong_comment_is_found():
    with pytest.raises(AssertionError, match=r"2$"):
        run_python("1 + 1  # 3", {}, "here")
