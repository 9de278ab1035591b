"""Kernel density estimates as anomaly detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pfungst.anomaly.bandwidth import gamma_by_likelihood
from pfungst.anomaly.base import register
from pfungst.anomaly.pooling import HarmonicMean, Pooling, SoftMin
from pfungst.anomaly.prototypes import PrototypeDetector
from pfungst.errors import InputError


@register("kde")
@dataclass(eq=False, repr=False)
class KDE(PrototypeDetector):
    """Kernel density estimate over the training points, read as distance and pooling.

    - "gaussian": o = −(1/γ) log mean_j exp(−γ d_j) with γ = 1/(2h²): the negative log density, times 2h²,
      without its normalising constant.
    - "student": o = 1 / mean_j 1/(h² + d_j), the harmonic mean of h² + d_j: the inverse of a density of
      kernels 1 / (h² + d). The part of h² belongs to no input and is reported as bias.

    d_j are squared Euclidean distances after the features (Montavon et al. 2022).

    Args:
        kernel: "gaussian" or "student".
        bandwidth: h, the standard deviation of the kernel in normalised units, or "loo": the one that
            maximises the leave-one-out likelihood of the training points. The Student kernel takes the
            Gaussian's: with exponent one it cannot be normalised in two or more dimensions.
        features: any torch module in front of the distance, for example a blur; None for none.
        mean: subtracted from images, one number or one per channel. Data that are not images of rank 4
            are used as they are.
        std: by which images are divided.
        quantile: of the leave-one-out training scores, at which ``threshold_`` is set.
        device: "auto" is the GPU where there is one.

    Attributes:
        gamma_: 1 / (2 h²).
        bandwidth_: h.
    """

    _power = 2

    kernel: str = "gaussian"
    bandwidth: str | float = "loo"
    features: nn.Module | None = None
    mean: float | Sequence[float] = 0.5
    std: float | Sequence[float] = 0.5
    quantile: float = 0.95
    device: str = "auto"

    def _check_params(self) -> None:
        super()._check_params()
        if self.kernel not in ("gaussian", "student"):
            raise InputError(f"unknown kernel {self.kernel!r}", "use gaussian or student")
        if isinstance(self.bandwidth, str):
            if self.bandwidth != "loo":
                raise InputError(f"unknown bandwidth {self.bandwidth!r}", 'use "loo" or a positive number')
        elif not 1e-100 <= self.bandwidth <= 1e100:
            raise InputError(
                f"bandwidth {self.bandwidth} is not positive, or beyond 1e±100",
                'use "loo" or a positive number',
            )

    def _fit_gamma(self, distances: Tensor, dim: int) -> float:
        if isinstance(self.bandwidth, str):
            return gamma_by_likelihood(distances, dim)
        return 0.5 / self.bandwidth**2

    def _pooling(self) -> Pooling:
        return SoftMin(self.gamma_) if self.kernel == "gaussian" else HarmonicMean(self.bandwidth_**2)

    @property
    def bandwidth_(self) -> float:
        return math.sqrt(0.5 / self.gamma_)
