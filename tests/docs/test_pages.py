"""Links lead somewhere, no page asks another host, and code and commands name what there is."""

import ast
import importlib
import re

import pytest
from typer.main import get_command

from docs.pages import PAGES, ROOT, blocks, commands
from pfungst.cli import app

LINK = re.compile(r"\]\(([^)\s]+)\)")
FOREIGN = re.compile(
    r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)\s*=\s*[\"']?https?:|!\[[^\]]*\]\(https?:|@import|url\(\s*[\"']?https?:"
)
SITE = {"start": "README.md", "results": "benchmarks/RESULTS.md", "changelog": "CHANGELOG.md"}
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]


def anchors(page):
    """What a heading is called in a link (GitHub's and MyST's way)."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lost = []
    for link in LINK.findall(text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if page.name in SITE.values() or target.exists():
            good = target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))
        else:
            good = target.suffix == ".md" and target.stem in SITE
        if not good:
            lost.append(link)
    assert not lost


@pytest.mark.parametrize(
    "path",
    [*PAGES, *(p for p in (ROOT / "docs").rglob("*") if p.suffix in (".css", ".js", ".html", ".svg", ".py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_page_asks_another_host(path):
    assert not FOREIGN.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_compile_and_import_what_there_is(page):
    for language, text, *_ in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pfungst":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def parse(words):
    """Parse a command line down to its command, without running it; a name of a check's gate is not looked up."""
    command, context = get_command(app), None
    name = "pfungst"
    while True:
        context = command.make_context(name, list(words), parent=context, resilient_parsing=False)
        if not hasattr(command, "resolve_command"):  # no group
            return
        words = [*context._protected_args, *context.args]
        name, command, words = command.resolve_command(context, words)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(p, w, id=f"{p.stem}: {' '.join(w)[:60]}")
        for p in PAGES
        if p.name != "changelog.md"
        for w in commands(p)
    ],
)
def test_commands_parse(page, words):
    if "…" in " ".join(words) or words == ["--help"]:
        return
    parse(words)


@pytest.mark.parametrize("line", ["audit anomaly x --nonsense", "audit anomali", "check x --max"])
def test_wrong_commands_do_not_parse(line):
    with pytest.raises(Exception, match=r"(?i)no such|requires"):
        parse(line.split())


def test_every_page_is_in_the_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        if not name.startswith("reference/") and name != "index":
            assert re.search(rf"^{name}$", index, re.MULTILINE), f"{name} is in no toctree of docs/index.md"
