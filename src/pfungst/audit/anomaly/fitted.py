"""Detectors that categories with the same training images share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.anomaly import DeepOneClass, Detector, detector_from_spec
from pfungst.audit.config import check_file
from pfungst.conditions import Size
from pfungst.data import ImageSet, Item
from pfungst.data.roles import same_training
from pfungst.relevance import DCTBands


def check_detector(text: str | Detector, size: Size) -> None:
    """Raise ConfigError or InputError where a specification cannot work, before images are read."""
    detector = detector_from_spec(text, device="cpu")
    for name, value in detector.get_params().items():
        if name.rpartition("__")[2] == "checkpoint" and value is not None:
            check_file(Path(value), f"checkpoint= of {text}")
    detector.check_basis(DCTBands.paper())
    detector.check_size(size)


class FittedDetectors:
    """Fits every detector once, as long as the training images stay the same.

    Categories of digits-C would otherwise train the same networks again. Where no two sets share their
    training items, no detector is kept: each may hold a copy of them.

    Args:
        device: where detectors are fitted.
        sets: the categories, in the order in which they are audited.
        given: unfitted detectors by name, which are cloned.
    """

    def __init__(self, device: str, sets: Sequence[ImageSet], given: Mapping[str, Detector]) -> None:
        self.device, self.given = device, given
        self._shared = len(same_training(sets)) < len(sets)
        self._items: list[Item] = []
        self._known: dict[tuple[str, bool, bool, int], Detector] = {}

    def use(self, items: Sequence[Item]) -> None:
        """From now on detectors are fitted on parts of these images; those of others are forgotten."""
        if list(map(id, items)) != list(map(id, self._items)):
            self._known.clear()
        self._items = list(items)

    def fitted(
        self,
        model: str,
        part: Tensor,
        outliers: Tensor,
        mitigation: nn.Module | None,
        *,
        inside: bool,
        seed: int,
    ) -> Detector:
        """The detector fitted on `part`, the part of the training images that belongs to the seed.

        Args:
            model: see :func:`pfungst.anomaly.detector_from_spec`.
            part: (n, C, H, W).
            outliers: (m, C, H, W) known defects, for detectors that choose a parameter by them.
            mitigation: the filter of the audit, if the detector sees filtered images.
            inside: whether the filter is to be in the detector; otherwise `part` has been filtered.
            seed: of the detector.
        """
        key = (model, mitigation is not None, inside, seed)
        if key in self._known:
            return self._known[key]
        spec, features = self.given.get(model, model), mitigation if inside else None
        detector = detector_from_spec(spec, features=features, seed=seed, device=self.device)
        learns = len(outliers) > 0 and isinstance(detector, DeepOneClass)
        if learns:
            labels = np.repeat([0, 1], [len(part), len(outliers)])
            detector.fit(torch.cat([part, outliers]), labels)
        else:
            detector.fit(part)
        if self._shared and not learns:
            self._known[key] = detector
        return detector
