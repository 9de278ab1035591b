"""Mitigations of detectors by name: ``blur``, ``blur:11,2.0``, ``lowpass``, ``lowpass:2000``, ``none``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pfungst.conditions import Size, sides
from pfungst.errors import ConfigError
from pfungst.mitigate import GaussianBlur, Layer, LowPass, propose_cutoff
from pfungst.relevance import DCTBands
from pfungst.suggest import suggest

if TYPE_CHECKING:
    from pfungst.anomaly import Detector
    from pfungst.audit.anomaly.config import AnomalyConfig

_NUMBERS = {"none": (0,), "blur": (0, 2), "lowpass": (0, 1)}


def fixed_filter(text: str, size: Size) -> Layer | None:
    """The filter of a mitigation, for images of this size.

    Returns:
        None for ``none``, and for ``lowpass``, whose cut-off the audit proposes.

    Raises:
        ConfigError: an unknown name, with the nearest right one, or the wrong numbers.
        InputError: numbers that the filter cannot have, on images of this size.
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
    if numbers and not numbers[0].is_integer():
        raise ConfigError(f"{options.partition(',')[0]} in {text!r} is not whole", "give a whole number")
    if name == "none" or text.strip(":") == "lowpass":
        return None
    made = LowPass(int(numbers[0])) if name == "lowpass" else GaussianBlur()
    if name == "blur" and numbers:
        made = GaussianBlur(int(numbers[0]), numbers[1])
    made(torch.zeros(1, 1, *sides(size)))
    return made


def mitigation(config: AnomalyConfig, plain: Detector, train: Tensor) -> nn.Module | None:
    """The filter in front of a detector; a low-pass without a number is proposed from normal images.

    Args:
        plain: the detector without it.
        train: (N, C, S, S) normal images.
    """
    fixed = fixed_filter(config.mitigate, config.size)
    if fixed is not None or config.mitigate == "none":
        return fixed
    bands = DCTBands.paper()
    if not plain.explains:
        raise ConfigError(
            "lowpass proposes its cut-off from the explanation, and this detector has none",
            "give one: lowpass:2000, or use blur",
        )
    spectrum = plain.explain(train, bands).values.cpu().numpy()
    return LowPass(propose_cutoff(spectrum, list(bands.resolve(*sides(config.size)))).cutoff)


def filtered(mitigation: nn.Module, images: Tensor) -> Tensor:
    """Images (N, C, S, S) as the detector behind the filter sees them."""
    with torch.inference_mode():
        return torch.cat([mitigation(part) for part in images.split(32)]).clone()
