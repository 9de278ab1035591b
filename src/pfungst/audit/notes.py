"""How the numbers of an audit were made, in words: ``notes.toml`` beside this file, with values filled in."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from pfungst.measure import limits


@cache
def _texts() -> dict[str, dict[str, str]]:
    return tomllib.loads(files("pfungst.audit").joinpath("notes.toml").read_text(encoding="utf-8"))


def note(audit: str, name: str, /, **values: Any) -> str:
    """One note by its name, with the values that it quotes."""
    return _texts()[audit][name].format(limits=limits, **values)


def notes(audit: str, names: Iterable[str | bool], /, **values: Any) -> list[str]:
    """Those of an audit that apply, in order; names that are empty or False are left out."""
    return [note(audit, name, **values) for name in names if isinstance(name, str) and name]
