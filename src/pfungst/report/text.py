"""How numbers and names are written on a page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pfungst.audit.result import Interval

Writer = Callable[[float], str]
THIN = "\u202f"  # narrow no-break space


def ratio(value: float | None) -> str:
    """0.914 → 0.91, with a true minus sign; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}".replace("-", "−")


def percent(value: float | None) -> str:
    """0.314 → 31 %, with one digit between 0 and 1 % and between 99 and 100 %; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    shown = 100 * value
    if 0 < abs(shown) < 0.05:
        return f"<{THIN}0.1{THIN}%"
    if 99.95 < shown < 100:
        return f">{THIN}99.9{THIN}%"
    digits = 1 if 0 < abs(shown) < 0.95 or 99.5 <= shown < 100 else 0
    return f"{shown:.{digits}f}{THIN}%".replace("-", "−")


def number(value: float) -> str:
    """Three significant digits, thousands apart: 1234.5 → 1,230; 0.0123 → 0.0123."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 6:
        mantissa, exponent = f"{value:.2e}".split("e")
        digits = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa}{THIN}·{THIN}10{digits}".replace("-", "−")
    return f"{round(value, 2 - size):,.{max(0, 2 - size)}f}".replace("-", "−")


def interval(low: float | None, high: float | None, write: Writer = ratio) -> str:
    """The two ends, the unit once: 22–41; empty where there is no interval."""
    if low is None or high is None:
        return ""
    ends = [write(v).replace(f"{THIN}%", "") for v in (low, high)]
    return "–".join(ends) if "−" not in "".join(ends) else " to ".join(ends)


def between(value: Interval, write: Writer = ratio) -> str:
    """A value with the ends of its interval: 0.31 (0.22–0.41)."""
    return f"{write(value.value)} ({interval(value.low, value.high, write)})"


def signed(value: float, digits: int = 3) -> str:
    """0.031 → +0.031, with a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def shorten(name: str, length: int = 28) -> str:
    """The name, its middle left out where it is longer than `length`."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """1 image, 2 images."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def duration(seconds: float) -> str:
    """95 → 1 min 35 s."""
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min" if hours else f"{minutes}{THIN}min {rest}{THIN}s"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{name}.")
        elif isinstance(value, str):
            rows.append((name, value or "“”"))
        elif isinstance(value, Sequence) and all(isinstance(v, str | int | float) for v in value):
            rows.append((name, ", ".join(str(v) for v in value) or "none"))
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        else:
            rows.append((name, "none" if value is None else json.dumps(value, ensure_ascii=False)))
    return rows
