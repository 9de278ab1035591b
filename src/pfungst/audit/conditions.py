"""The conditions of an audit by name: how a model's images are prepared, and what is added to that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfungst.conditions import RESIZERS, Condition
from pfungst.errors import ConfigError

ORIGINAL = "original"


def conditions_for(own: str, texts: Sequence[str], size: int | None) -> dict[str, Condition]:
    """The model's own preparation under "original", and with each condition added.

    A text without a resizer is added to that preparation; one with a resizer replaces it.

    Raises:
        ConfigError: a condition or a logo cannot be read, a logo does not fit into images of this size, or
            two are the same.
    """
    found = {ORIGINAL: Condition.parse(own)}
    for text in texts:
        names = [part.partition(":")[0].strip().lower() for part in text.split("+")]
        condition = Condition.parse(text if any(n in RESIZERS for n in names) else f"{own}+{text}")
        name = "+".join(_short(part) for part in text.split("+"))
        if name in found:
            raise ConfigError(f"the condition {name!r} is given twice", "name each condition once")
        condition.check(size)
        found[name] = condition
    return found


def _short(part: str) -> str:
    """The name in tables: a logo without its folder and options, a watermark without its font."""
    name, colon, value = part.strip().partition(":")
    if name == "watermark":
        value = ",".join(v for v in value.split(",") if not v.strip().startswith("font="))
    return f"{name}:{Path(value.split(',')[0]).stem}" if name == "logo" else f"{name}{colon}{value}"
