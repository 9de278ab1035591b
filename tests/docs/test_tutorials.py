"""Every block of the tutorials and of the newcomer's walks runs, in order, in an empty folder."""

import pytest
from typer.testing import CliRunner

from docs.pages import TUTORIALS, blocks
from pfungst.cli import app


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_tutorial(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, text, _, reason in blocks(page):
        if reason:
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
            continue
        assert language == "console"
        for line in text.splitlines():
            assert line.startswith("$ pfungst ")
            words = line.removeprefix("$ pfungst ").split()
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{line}\n{done.output[-3000:]}\n{done.exception!r}"
    assert list(tmp_path.rglob("report.html"))
    assert page.parent.name == "walk" or list((tmp_path / "deploy").rglob("export.json"))
