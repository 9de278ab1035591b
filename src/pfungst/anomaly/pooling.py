"""Poolings: the last layer of a detector, one score from the distances to all prototypes.

Each knows the score and how relevance is shared among the prototypes; the shares sum to one, so the
relevance R_j = share_j · score conserves the score (Montavon et al. 2022, "Explaining the predictions of
unsupervised learning models"; Kauffmann et al. 2025, methods).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Pooling(ABC):
    """Score of each row of distances, and each prototype's share in it.

    Attributes:
        offset: a constant the pooling adds to every distance; its part of the relevance belongs to no input.
    """

    offset: float = 0.0

    @abstractmethod
    def pool(self, distances: Tensor) -> Tensor:
        """Distances (N, M) → scores (N,)."""

    @abstractmethod
    def shares(self, distances: Tensor) -> Tensor:
        """Share of each prototype in the score: (N, M), non-negative, rows sum to one."""


class SoftMin(Pooling):
    """Generalised mean with f(t) = exp(−γ t): −(1/γ) log mean_j exp(−γ d_j). R_j = softmax_j(−γ d_j) · o."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def pool(self, distances: Tensor) -> Tensor:
        nearest = distances.amin(-1, keepdim=True)
        # relative to the nearest, which loses no digits where γ is small: mean exp(−γ d) = exp(−γ d_min) (1 +
        # mean)
        mean = torch.expm1(-self.gamma * (distances - nearest)).mean(-1)
        return nearest.squeeze(-1) - torch.log1p(mean) / self.gamma

    def shares(self, distances: Tensor) -> Tensor:
        return torch.softmax(-self.gamma * distances, dim=-1)


class HarmonicMean(Pooling):
    """Harmonic mean of a + d_j: the score of a density of kernels 1 / (a + d). Shares ∝ 1 / (a + d_j)."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def _log(self, distances: Tensor) -> Tensor:
        return torch.log(self.offset + distances)

    def pool(self, distances: Tensor) -> Tensor:
        total = torch.logsumexp(-self._log(distances), dim=-1)
        return torch.exp(math.log(distances.shape[-1]) - total)

    def shares(self, distances: Tensor) -> Tensor:
        return torch.softmax(-self._log(distances), dim=-1)


class Min(Pooling):
    """Distance to the nearest prototype, which takes all relevance; ties share it."""

    def pool(self, distances: Tensor) -> Tensor:
        return distances.amin(-1)

    def shares(self, distances: Tensor) -> Tensor:
        won = (distances == distances.amin(-1, keepdim=True)).to(distances)
        return won / won.sum(-1, keepdim=True)


class Max(Pooling):
    """Largest distance, which takes all relevance; ties share it."""

    def pool(self, distances: Tensor) -> Tensor:
        return distances.amax(-1)

    def shares(self, distances: Tensor) -> Tensor:
        won = (distances == distances.amax(-1, keepdim=True)).to(distances)
        return won / won.sum(-1, keepdim=True)
