"""Detectors that compare an input with every training point: the part that D2Neighbors and KDE share."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.anomaly.bandwidth import without_self
from pfungst.anomaly.base import Detector
from pfungst.anomaly.distance import centre, power_distances
from pfungst.anomaly.explain import Terms, distance_relevance, feature_relevance
from pfungst.anomaly.features import (
    embed,
    gradient,
    is_affine,
    load_named_weights,
    named_weights,
    pull_back,
)
from pfungst.anomaly.inputs import check_finite
from pfungst.anomaly.pooling import Pooling
from pfungst.device import choose_device
from pfungst.errors import InputError
from pfungst.mitigate import Layer
from pfungst.relevance import Basis, Relevance

_EPSILON = 1e-9  # stabiliser of the distance rule, as a share of the mean training distance
_BATCH = 256


class PrototypeDetector(Detector):
    """score(x) = pool_j Σ_i |φ(x)_i − φ(u_j)_i|^p, the u_j all training points.

    The explanation shares the score among prototypes by the pooling's rule, then each prototype's part among
    the input by R_i = |x_i − u_ji|^p / (ε + d_j) · R_j. What ε (or the pooling's own constant) keeps goes to
    the bias, so the values and the bias sum to the score for every p. With affine features φ(x) = Kx + b the
    difference is taken at the input, where Σ_i (x − u_j)_i (Kᵀg_j)_i = Σ_k (φ(x) − φ(u_j))_k g_jk exactly:
    prototypes are the reference, and b cancels. Other features are passed by gradient × input; what their
    biases absorb is reported as bias.

    Attributes:
        prototypes_: the training points (N, *sample), normalised.
        pooling_: the fitted pooling.
        affine_: whether the features in front are affine (measured at fit), None without features.
    """

    features: nn.Module | None
    mean: float | Sequence[float]
    std: float | Sequence[float]
    device: str
    prototypes_: Tensor
    pooling_: Pooling
    affine_: bool | None
    gamma_: float
    epsilon_: float

    _power: int  # p of the distance

    @abstractmethod
    def _fit_gamma(self, distances: Tensor, dim: int) -> float:
        """γ for distances (N, N) between training points of `dim` features."""

    @abstractmethod
    def _pooling(self) -> Pooling:
        """The pooling for `gamma_`."""

    def _check_params(self) -> None:
        if not np.all(np.asarray(self.std) > 0):
            raise InputError(f"std {self.std} is not positive", "use the standard deviation of the pixels")

    def _fit(self, x: Tensor) -> Tensor:
        self._check_params()
        self._set_prototypes(self._normalise(x.to(choose_device(self.device, float64=True))))
        distances = power_distances(self._embedded, self._embedded, self._power)
        self.gamma_ = self._fit_gamma(distances, self._embedded.shape[1])
        self.pooling_ = self._pooling()
        mean = distances.mean().item()
        self.epsilon_ = _EPSILON * mean if mean > 0 else _EPSILON
        return self.pooling_.pool(without_self(distances)) if len(x) > 1 else distances.new_zeros(0)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"prototypes": self.prototypes_} | named_weights("features", self.features_)
        return tensors, {"gamma": self.gamma_, "epsilon": self.epsilon_}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        load_named_weights("features", self.features, tensors)
        self._set_prototypes(tensors["prototypes"])
        self.gamma_, self.epsilon_ = facts["gamma"], facts["epsilon"]
        self.pooling_ = self._pooling()

    def _set_prototypes(self, prototypes: Tensor) -> None:
        """Set what follows from the prototypes alone."""
        self.prototypes_ = prototypes
        self.features_ = None
        if self.features is not None:
            self.features_ = copy.deepcopy(self.features).to(prototypes).eval()
        self.affine_ = (
            None if self.features_ is None else is_affine(self.features_, self.sample_shape_, prototypes)
        )
        self._centre = centre(prototypes)
        self._centred = prototypes - self._centre
        origin = self._centre if self.affine_ is False else torch.zeros_like(self._centre)
        self._origin = embed(self.features_, origin[None])
        self._embedded = self._embed(prototypes, self._centred)

    def _embed(self, z: Tensor, centred: Tensor) -> Tensor:
        """Features (N, D) relative to those of the centre; affine ones of the centred input, which
        loses no digits where the differences are small."""
        if self.affine_ is None:
            return centred.flatten(1)
        return embed(self.features_, z if self.affine_ is False else centred).sub_(self._origin)

    def _normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std for images; data of any other rank are used as they are."""
        if x.ndim != 4:
            return x.clone()
        mean, std = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (self.mean, self.std))
        if max(mean.numel(), std.numel()) not in (1, x.shape[1]):
            raise InputError(
                f"mean {self.mean} and std {self.std} do not fit images of {x.shape[1]} channels",
                "give one number, or one per channel",
            )
        return x.sub(mean.reshape(-1, 1, 1)).div_(std.reshape(-1, 1, 1))

    def _score(self, x: Tensor) -> Tensor:
        scores = []
        for part in x.split(_BATCH):
            z = self._normalise(part.to(self.prototypes_))
            phi = self._embed(z, z - self._centre)
            distances = power_distances(phi, self._embedded, self._power)
            scores.append(self.pooling_.pool(distances))
        return check_finite(torch.cat(scores), x.dtype)

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        z = self._normalise(x.to(self.prototypes_))
        centred = z - self._centre
        phi = self._embed(z, centred)
        distances = power_distances(phi, self._embedded, self._power)
        score = self.pooling_.pool(distances)
        given = check_finite(score, z.dtype)
        relevance = self.pooling_.shares(distances) * score[:, None]
        constant = self.pooling_.offset + self.epsilon_
        weights = relevance / (constant + distances)
        bias = constant * weights.sum(1)
        weights = torch.where(distances > 0, weights, 0.0)  # a prototype equal to the input gives it nothing
        if self.features_ is not None and not self.affine_:
            local = feature_relevance(phi, self._embedded, weights, distances, self._power)
            values = basis.contract(z, gradient(self.features_, z, local), ndim=z.ndim - 1)
            return Relevance(values, given, basis, (score - values.flatten(1).sum(1)).to(z))
        terms = Terms(
            centred, self._centred, phi, self._embedded, weights, distances, self._power, self._pull()
        )
        return Relevance(distance_relevance(terms, basis), given, basis, bias.to(z))

    def _pull(self):
        features = self.features_
        if features is None:
            return None
        like = self.prototypes_[:1]
        if isinstance(features, Layer):  # a tenth of the time of going through it and back
            return lambda g: features.adjoint(g.unflatten(1, like.shape[1:]))
        return lambda g: pull_back(features, like.expand(len(g), *like.shape[1:]), g)
