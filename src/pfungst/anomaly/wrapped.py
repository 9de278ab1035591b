"""Fitted detectors of other libraries, explained: same scores, one readout of squared distances each.

| estimator | score | what is shared among the prototypes |
|---|---|---|
| sklearn KernelDensity (Gaussian), PyOD KDE | −log p(x) | γ·softmin_γ(d): the score less the density's
constant | | sklearn OneClassSVM (RBF) | ρ − Σ_j α_j exp(−γ d_j) | Σ_j α_j − Σ_j α_j exp(−γ d_j), which is ≥ 0
and zero only at distance zero | | sklearn NearestNeighbors, PyOD KNN | k-th, mean or median distance | the
score |

A density shares by softmax_j(−γ d_j + log w_j), its derivatives; neighbours share by their distances. The
relevance goes to the input by R_i = (x_i − u_ji)² / d_j · R_j. What belongs to no input is the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from pfungst.anomaly.base import Detector
from pfungst.anomaly.distance import centre, power_distances
from pfungst.anomaly.explain import Terms, distance_relevance
from pfungst.anomaly.inputs import as_samples, unwrap
from pfungst.errors import InputError
from pfungst.relevance import Basis, Relevance

#: squared distances (N, M) → scores (N,), shares (N, M) with rows that sum to one, constant part of the
#: score.
Readout = Callable[[Tensor], tuple[Tensor, Tensor, float]]
_BATCH = 256


class NoReadout(InputError):
    """An estimator whose score is no readout of distances: it can be used, and is not explained this way."""


@dataclass(eq=False, repr=False)
class Wrapped(Detector):
    """What :func:`wrap` makes of estimators on distances. `fit` fits a clone of the estimator anew.

    Args:
        estimator, shape, method: see :func:`wrap`.
        quantile: of the training scores, at which the threshold is set where the estimator has none.
    """

    estimator: Any = None
    shape: tuple[int, ...] | None = None
    method: str = "mean"
    quantile: float = 0.95

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit a clone of the estimator to samples, flattened."""
        data, condition = unwrap(X)
        x = as_samples(self, data, reset=True)
        fresh = clone(self.estimator).fit(x.flatten(1).double().cpu().numpy())
        self.shape = tuple(x.shape[1:]) if x.ndim > 2 else None
        self._read(fresh)
        self.condition_ = condition
        return self

    def _read(self, fitted: Any = None) -> Self:
        self.estimator_ = self.estimator if fitted is None else fitted
        rows, self._readout, training, threshold = _describe(self.estimator_, self.method)
        prototypes = torch.as_tensor(np.ascontiguousarray(rows, dtype=np.float64))
        sample = self.shape or (prototypes.shape[1],)
        if math.prod(sample) != prototypes.shape[1]:
            raise InputError(
                f"shape {tuple(sample)} does not fit the {prototypes.shape[1]} features of the estimator",
                "give the shape whose flattened samples it was fitted on",
            )
        self.sample_shape_ = tuple(sample)
        self.n_features_in_ = prototypes.shape[1]
        self._centre = centre(prototypes)
        self.prototypes_ = prototypes
        self.condition_ = None
        self.training_scores_ = training
        if threshold is None:
            threshold = float(np.quantile(training, self.quantile)) if len(training) else float("inf")
        self.threshold_ = threshold
        return self

    def _distances(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).double().cpu()
        return power_distances(flat - self._centre, self.prototypes_ - self._centre, 2)

    def _score(self, x: Tensor) -> Tensor:
        scores = torch.cat([self._readout(self._distances(part))[0] for part in x.split(_BATCH)])
        return scores.to(x.device)

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        flat = x.flatten(1).double().cpu()
        distances = self._distances(x)
        score, shares, constant = self._readout(distances)
        relevance = shares * (score - constant)[:, None]
        weights = torch.where(distances > 0, relevance / distances.clamp_min(1e-300), 0.0)
        terms = Terms(
            flat.unflatten(1, self.sample_shape_),
            self.prototypes_.unflatten(1, self.sample_shape_),
            flat - self._centre,
            self.prototypes_ - self._centre,
            weights,
            distances,
            2,
            None,
        )
        values = distance_relevance(terms, basis)
        return Relevance(values, score, basis, score - values.flatten(1).sum(1))


def _describe(estimator: Any, method: str) -> tuple[np.ndarray, Readout, np.ndarray, float | None]:
    """Prototypes, readout, scores of the training data, and the estimator's own threshold."""
    names = [c.__name__ for c in type(estimator).__mro__]
    foreign = type(estimator).__module__.split(".")[0]
    if foreign == "pyod" and names[0] in ("KNN", "KDE"):
        _fitted(estimator, "threshold_")
        inner = estimator.neigh_ if names[0] == "KNN" else estimator.kde_
        method = estimator.method if names[0] == "KNN" else method
        rows, readout, _, _ = _describe(inner, method)
        return rows, readout, np.asarray(estimator.decision_scores_), float(estimator.threshold_)
    if "KernelDensity" in names:
        return _density(estimator)
    if "OneClassSVM" in names:
        return _one_class_svm(estimator)
    if "NearestNeighbors" in names:
        return _neighbours(estimator, method)
    raise NoReadout(
        f"{foreign}'s {names[0]} has no readout of distances",
        "explained are KernelDensity, OneClassSVM (RBF), NearestNeighbors, PyOD's KNN or KDE, anomalib's "
        "Patchcore or Padim",
    )


def _fitted(estimator: Any, attribute: str) -> None:
    if getattr(estimator, attribute, None) is None:
        raise InputError(f"this {type(estimator).__name__} is not fitted", "fit it, then wrap it")


def _euclidean(estimator: Any) -> None:
    metric, p = estimator.metric, getattr(estimator, "p", 2)
    if metric not in ("euclidean", "l2") and not (metric == "minkowski" and p in (2, None)):
        raise InputError(f"metric {metric!r} (p = {p}) is not Euclidean", "fit it with metric='euclidean'")


def _density(estimator: Any) -> tuple[np.ndarray, Readout, np.ndarray, None]:
    _fitted(estimator, "tree_")
    _euclidean(estimator)
    if estimator.kernel != "gaussian":
        raise InputError(
            f"kernel {estimator.kernel!r} of KernelDensity is not covered", "use kernel='gaussian'"
        )
    rows = np.asarray(estimator.tree_.data)
    weights = getattr(estimator.tree_, "sample_weight", None)
    log_w = torch.zeros(len(rows), dtype=torch.float64)
    if weights is not None:
        log_w = torch.as_tensor(np.asarray(weights, dtype=np.float64)).log()
    log_w = log_w - log_w.logsumexp(0)
    gamma = 0.5 / float(estimator.bandwidth_) ** 2
    constant = 0.5 * rows.shape[1] * math.log(math.pi / gamma)

    def readout(distances: Tensor) -> tuple[Tensor, Tensor, float]:
        logits = log_w - gamma * distances
        return constant - logits.logsumexp(1), logits.softmax(1), constant

    prototypes = torch.as_tensor(rows)
    centred = prototypes - centre(prototypes)
    own = power_distances(centred, centred, 2).fill_diagonal_(math.inf)
    rest = torch.log1p(-log_w.exp())  # what is left of the weights without the point itself
    training = (readout(own)[0] + rest).numpy() if len(rows) > 1 else np.zeros(0)
    return rows, readout, training, None


def _one_class_svm(estimator: Any) -> tuple[np.ndarray, Readout, np.ndarray, float]:
    _fitted(estimator, "support_vectors_")
    if estimator.kernel != "rbf":
        raise InputError(f"kernel {estimator.kernel!r} of OneClassSVM is not covered", "use kernel='rbf'")
    rows = np.asarray(estimator.support_vectors_)
    alpha = torch.as_tensor(np.asarray(estimator.dual_coef_, dtype=np.float64).ravel())
    gamma, rho = float(estimator._gamma), -float(np.ravel(estimator.intercept_)[0])
    constant = rho - float(alpha.sum())

    def readout(distances: Tensor) -> tuple[Tensor, Tensor, float]:
        similar = alpha.log() - gamma * distances
        return rho - similar.exp().sum(1), similar.softmax(1), constant

    return rows, readout, np.zeros(0), 0.0


def _neighbours(estimator: Any, method: str) -> tuple[np.ndarray, Readout, np.ndarray, None]:
    _fitted(estimator, "_fit_X")
    _euclidean(estimator)
    if method not in ("mean", "largest", "median"):
        raise InputError(f"unknown method {method!r}", "use mean, largest or median")
    rows = np.asarray(estimator._fit_X)
    k = int(estimator.n_neighbors)
    if k > len(rows):
        raise InputError(f"{k} neighbours among {len(rows)} training points", "lower n_neighbors")
    order = {"mean": list(range(k)), "largest": [k - 1], "median": sorted({(k - 1) // 2, k // 2})}[method]

    def readout(distances: Tensor) -> tuple[Tensor, Tensor, float]:
        near, index = distances.topk(k, dim=1, largest=False, sorted=True)
        near, index = near[:, order].sqrt(), index[:, order]
        total = near.sum(1, keepdim=True)
        part = torch.where(total > 0, near / torch.where(total > 0, total, 1.0), 1 / len(order))
        return near.mean(1), torch.zeros_like(distances).scatter_(1, index, part), 0.0

    if k >= len(rows):
        return rows, readout, np.zeros(0), None
    near = estimator.kneighbors(return_distance=True)[0][:, order]
    return rows, readout, near.mean(1), None
