"""The pages of the documentation, and what stands in their blocks."""

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md")) + sorted((ROOT / "docs" / "walk").glob("*.md"))
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- not run: (.+?) -->\s*$", re.DOTALL)


class Block(NamedTuple):
    """A fenced or indented block: its language ("" if indented), text, line, and why no test runs it ("" if one does)."""

    language: str
    text: str
    line: int
    reason: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, as CommonMark reads it; those of Sphinx's directives are left out."""
    found, reason = [], ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            if not token.info.startswith("{"):
                found.append(Block(token.info.strip(), token.content, token.map[0] + 1, reason))
            reason = ""
        elif token.type == "html_block":
            mark = MARK.search(token.content)
            reason = mark[1] if mark else ""
        elif not token.type.endswith("_close"):
            reason = ""
    return found


def commands(page: Path) -> list[list[str]]:
    """The words after `pfungst` of every command in a block: after `$ `, at the start of a line, and in workflows."""
    text = "\n".join(b.text for b in blocks(page)).replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\$ |- run: )?pfungst (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def run_python(text: str, names: dict, where: str) -> None:
    """Run a block; where the comment behind an expression is what it gives, hold it against that."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        said = re.match(r"\)?  # (.+)$", lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode())
        if isinstance(node, ast.Expr) and said:
            got = repr(eval(compile(ast.Expression(node.value), where, "eval"), names))
            assert got == said[1], f"{where}, {lines[node.end_lineno - 1]}: {got}"
        else:
            exec(compile(ast.Module([node], []), where, "exec"), names)
