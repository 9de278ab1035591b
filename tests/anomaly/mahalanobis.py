"""A detector as a stranger writes it: one file, nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.anomaly.base import Detector, register
from pfungst.errors import InputError
from pfungst.relevance import Basis, Relevance


@register("mahalanobis")
class Mahalanobis(Detector):
    """Squared distance to the mean, each component in units of its standard deviation: Σ_i (x_i − μ_i)² / σ_i².

    Components are independent, so R_i = (x_i − μ_i)² / σ_i² conserves exactly in every basis.

    Args:
        ridge: added to the variances, as a share of their mean.
        quantile: of the leave-one-out scores, at which the threshold is set.

    Attributes:
        mean_, variance_: μ and σ² in the shape of a sample, float64.
    """

    def __init__(self, ridge: float = 0.0, quantile: float = 0.95) -> None:
        self.ridge = ridge
        self.quantile = quantile

    def _fit(self, x: Tensor) -> Tensor:
        n = len(x)
        if n < 3:
            raise InputError(
                f"{n} samples leave no variance to divide by", "pass at least three normal samples"
            )
        x = x.double()
        self.mean_ = x.mean(0)
        delta = x - self.mean_
        self.variance_ = self._ridged(delta.square().sum(0) / (n - 1))
        # without sample i: its distance grows to n / (n − 1), the sum of squares falls by that times its square
        left = (delta.square().sum(0) - n / (n - 1) * delta.square()).clamp_min(0) / (n - 2)
        variances = torch.where(left > 0, self._ridged(left), self.variance_)
        return ((n / (n - 1) * delta).square() / variances).flatten(1).sum(1)

    def _ridged(self, variance: Tensor) -> Tensor:
        variance = variance + self.ridge * variance.mean()
        if not bool((variance > 0).all()):
            raise InputError("some components are constant over the training samples", "pass ridge=0.01")
        return variance

    def _centred(self, x: Tensor) -> Tensor:
        return x.double() - self.mean_.to(x.device)

    def _score(self, x: Tensor) -> Tensor:
        return (self._centred(x).square() / self.variance_).flatten(1).sum(1).to(x.dtype)

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        z = self._centred(x)
        values = basis.contract(z, z / self.variance_, ndim=z.ndim - 1)
        return Relevance(
            values, (z.square() / self.variance_).flatten(1).sum(1), basis, torch.zeros(len(z)).double()
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mean": self.mean_, "variance": self.variance_}, {}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.mean_, self.variance_ = tensors["mean"], tensors["variance"]
