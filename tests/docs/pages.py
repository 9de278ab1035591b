"""The pages of the documentation, and what stands in their blocks."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[list[str]]:
    """The words after `pfungst` of every command in a block: after `$ ` in consoles, in indented lines, and in workflows."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?: {4}|\$ | {4}\$ |- run: )pfungst (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]
