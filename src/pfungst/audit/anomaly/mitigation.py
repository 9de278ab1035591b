"""Mitigations of detectors by name: ``blur``, ``blur:11,2.0``, ``lowpass``, ``lowpass:2000``, ``none``."""

from __future__ import annotations

from pfungst.errors import ConfigError
from pfungst.suggest import suggest

_NUMBERS = {"none": (0,), "blur": (0, 2), "lowpass": (0, 1)}


def parse_mitigation(text: str) -> tuple[str, list[float]]:
    """Name and numbers of a mitigation.

    Raises:
        ConfigError: an unknown name, with the nearest right one, or the wrong numbers.
    """
    name, _, options = text.partition(":")
    if name not in _NUMBERS:
        raise ConfigError(f"unknown mitigation {name!r}", suggest(name, _NUMBERS))
    try:
        numbers = [float(part) for part in options.split(",") if part]
    except ValueError:
        raise ConfigError(
            f"mitigation {text!r} has something else than numbers", "write blur:11,2.0"
        ) from None
    if len(numbers) not in _NUMBERS[name]:
        raise ConfigError(
            f"mitigation {text!r} has {len(numbers)} numbers", f"{name} takes {_NUMBERS[name][-1]}"
        )
    return name, numbers
