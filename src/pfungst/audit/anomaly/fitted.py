"""Detectors that categories with the same training images share."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from pfungst.anomaly import Detector, detector_from_spec


class FittedDetectors:
    """Fits every detector once, as long as the training images stay the same.

    Categories of digits-C, or sets that differ in their test images only, would otherwise train the same networks again.

    Args:
        device: where detectors are fitted.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._images = b""
        self._known: dict[tuple[str, bool, bool, int], Detector] = {}

    def use(self, train: Tensor) -> None:
        """From now on detectors are fitted on parts of these images (N, C, H, W); those of others are forgotten."""
        images = hashlib.blake2b(train.cpu().numpy().tobytes()).digest()
        if images != self._images:
            self._known.clear()
        self._images = images

    def fitted(
        self, model: str, part: Tensor, mitigation: nn.Module | None, *, inside: bool, seed: int
    ) -> Detector:
        """The detector fitted on `part`, the part of the training images that belongs to the seed.

        Args:
            model: see :func:`pfungst.anomaly.detector_from_spec`.
            part: (n, C, H, W).
            mitigation: the filter of the audit, if the detector sees filtered images.
            inside: whether the filter is to be in the detector; otherwise `part` has been filtered.
            seed: of the detector.
        """
        key = (model, mitigation is not None, inside, seed)
        if key not in self._known:
            detector = detector_from_spec(
                model, features=mitigation if inside else None, seed=seed, device=self.device
            )
            self._known[key] = detector.fit(part)
        return self._known[key]
