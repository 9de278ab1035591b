"""What the papers show: every table and figure with its number, the data it needs, and what makes it. Imports
nothing heavy."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pfungst.errors import ConfigError
from pfungst.suggest import suggest

State = Literal["done", "stand-in only", "drawing", "missing"]

PAPERS = {
    "001": "Kauffmann et al. 2025, doi 10.1038/s42256-025-01000-2",
    "002": "Kauffmann et al., arXiv 2408.08041, with supplementary notes",
    "003": "Neuhaus et al. 2023, arXiv 2212.04871",
    "004": "Kauffmann et al. 2020, arXiv 2006.10609",
}


@dataclass(frozen=True)
class Piece:
    """One table or figure of a paper.

    Attributes:
        id: the paper and the number, such as "001-table2".
        title: what it shows.
        needs: the data and weights of the paper, and where they lie below ``--data``.
        stand_in: what is used without them.
        maker: the function that makes it, ``module:function`` in this package; "" for drawings and missing
            ones.
        state: "done": made as the paper makes it where its data are given; "stand-in only": only its form;
            "drawing": it shows no data.
        note: what differs, or why it is missing.
    """

    id: str
    title: str
    state: State
    needs: str = ""
    stand_in: str = ""
    maker: str = ""
    note: str = ""

    @property
    def paper(self) -> str:
        """How the paper is cited."""
        return PAPERS[self.id[:3]]

    @property
    def command(self) -> str:
        """What makes it."""
        return f"pfungst reproduce {self.id}" if self.maker else "–"

    def make(self) -> Callable[..., Any]:
        """The function that makes it.

        Raises:
            ConfigError: there is none.
        """
        if not self.maker:
            raise ConfigError(
                f"{self.id} cannot be made: {self.note or self.state}", "see pfungst reproduce --list"
            )
        module, _, name = self.maker.partition(":")
        made: Callable[..., Any] = getattr(importlib.import_module(f"pfungst.papers.{module}"), name)
        return made

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """What the paper prints, row → column → value; empty where it prints no numbers."""
        return _toml("numbers.toml").get(self.id, {}).get("rows", {})


@cache
def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((files("pfungst.papers") / name).read_text(encoding="utf-8"))


@cache
def catalogue() -> dict[str, Piece]:
    """All tables and figures by id."""
    return {key: Piece(id=key, **value) for key, value in _toml("catalogue.toml").items()}


def find(key: str) -> Piece:
    """One of them. Raises ConfigError with the nearest names."""
    found = catalogue()
    if key not in found:
        raise ConfigError(f"there is no table or figure {key!r}", suggest(key, found))
    return found[key]


def table() -> str:
    """All of them as a Markdown table."""
    rows = ["| what | shows | command | needs | stand-in | state |", "|---|---|---|---|---|---|"]
    for p in catalogue().values():
        state = f"{p.state}: {p.note}" if p.note else p.state
        command = f"`{p.command}`" if p.maker else p.command
        rows.append(f"| {p.id} | {p.title} | {command} | {p.needs or '–'} | {p.stand_in or '–'} | {state} |")
    return "\n".join(rows)
