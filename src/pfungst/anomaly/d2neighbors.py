"""D2Neighbors: a soft minimum of distances to all training points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pfungst.anomaly.bandwidth import gamma_by_perplexity
from pfungst.anomaly.base import register
from pfungst.anomaly.pooling import Pooling, SoftMin
from pfungst.anomaly.prototypes import PrototypeDetector
from pfungst.errors import InputError


@register("d2neighbors")
@dataclass(eq=False, repr=False)
class D2Neighbors(PrototypeDetector):
    """Soft minimum of the distances to all training points (Kauffmann et al. 2025, methods):
    o(x) = −(1/γ) log mean_j exp(−γ ‖φ(x) − φ(u_j)‖_p^p).

    Args:
        p: power of the distance: 1, 2 or 4.
        perplexity: γ is such that the mean perplexity of the training points' neighbourhoods is this
            share of their number; distances are taken after the features.
        features: any torch module in front of the distance, for example a blur; None for none.
        mean: subtracted from images, one number or one per channel. Data that are not images of rank 4
            are used as they are.
        std: by which images are divided.
        quantile: of the leave-one-out training scores, at which ``threshold_`` is set.
        device: "auto" is the GPU where there is one.

    Attributes:
        gamma_: γ.

    Example:
        >>> detector = D2Neighbors().fit(normal_images)  # doctest: +SKIP
        >>> detector.explain(images).plot()  # doctest: +SKIP
    """

    p: int = 2
    perplexity: float = 0.25
    features: nn.Module | None = None
    mean: float | Sequence[float] = 0.5
    std: float | Sequence[float] = 0.5
    quantile: float = 0.95
    device: str = "auto"

    @property
    def _power(self) -> int:  # type: ignore[override]
        return self.p

    def _check_params(self) -> None:
        super()._check_params()
        if self.p not in (1, 2, 4):
            raise InputError(f"p = {self.p} is not offered", "use p=1, 2 or 4")
        if not 0 < self.perplexity < 1:
            raise InputError(
                f"perplexity {self.perplexity} is not in (0, 1)", "it is a share, for example 0.25"
            )

    def _fit_gamma(self, distances: Tensor, dim: int) -> float:
        return gamma_by_perplexity(distances, self.perplexity)

    def _pooling(self) -> Pooling:
        return SoftMin(self.gamma_)
