"""Mitigations of detectors by name: ``blur``, ``blur:11,2.0``, ``lowpass``, ``lowpass:2000``, ``none``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.audit.mended import COMPARED, About, preparation, resolved, write_mended
from pfungst.errors import ConfigError
from pfungst.mitigate import GaussianBlur, Layer, LowPass, propose_cutoff
from pfungst.relevance import DCTBands
from pfungst.suggest import suggest

if TYPE_CHECKING:
    from pfungst.anomaly import Detector
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.measure import Run
    from pfungst.audit.anomaly.prepare import Study

_NUMBERS = {"none": (0,), "blur": (0, 2), "lowpass": (0, 1)}


def fixed_filter(text: str, size: int) -> Layer | None:
    """The filter of a mitigation, for images of `size` × `size` pixels.

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
    made(torch.zeros(1, 1, size, size))
    return made


def mitigation(config: AnomalyConfig, plain: Detector, train: Tensor) -> nn.Module | None:
    """The filter to put in front of a detector; a low-pass without a number is proposed from normal images
    only.

    Args:
        plain: the detector without it.
        train: (N, C, S, S) normal images.
    """
    fixed = fixed_filter(config.mitigate, config.size)
    if fixed is not None or config.mitigate == "none":
        return fixed
    bands = DCTBands.paper()
    spectrum = plain.explain(train, bands).values.cpu().numpy()
    return LowPass(propose_cutoff(spectrum, list(bands.resolve(config.size, config.size))).cutoff)


def filtered(mitigation: nn.Module, images: Tensor) -> Tensor:
    """Images (N, C, S, S) as the detector behind the filter sees them."""
    with torch.inference_mode():
        return torch.cat([mitigation(part) for part in images.split(32)]).clone()


def write_detector(study: Study, model: str, run: Run, filter_: nn.Module, folder: Path) -> str:
    """Write the mended detector of the first seed, with the threshold of the audit; returns a note.

    Args:
        model: its specification. run: what it said of the deployed images. filter_: what is in front of it.
        folder: of this detector.
    """
    from pfungst.anomaly.module import as_module  # with scikit-learn
    from pfungst.errors import InputError

    detector = copy.copy(run.detector)
    detector.threshold_ = run.threshold
    try:
        outputs = as_module(detector).outputs
    except InputError:
        outputs = ("score",)
    rows = np.unique(np.linspace(0, len(study.labels) - 1, COMPARED).round().astype(int))
    about = About(
        kind="detector",
        name=f"{study.test.name} / {model}",
        spec=resolved(model),
        condition=preparation(study.deployed.condition),
        audited=str(study.deployed.condition),
        size=study.config.size,
        outputs=list(outputs),
        threshold=run.threshold,
        mended=f"{filter_} in front",
    )
    items = [study.deployed.items[i] for i in rows]
    expected = torch.from_numpy(run.scores[rows])
    return write_mended(folder, about, detector.save, study.deployed.images[rows], expected, items)
