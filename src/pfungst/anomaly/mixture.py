"""Gaussian mixtures as anomaly detectors: scikit-learn's, read as distance and pooling."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.anomaly.base import Detector, register
from pfungst.anomaly.features import embed, gradient, load_named_weights, named_weights
from pfungst.anomaly.pooling import SoftMin
from pfungst.encoders.preprocessing import Normalise
from pfungst.errors import InputError, PfungstWarning
from pfungst.relevance import Basis, Relevance

_FULL = 512  # features up to which a full covariance is taken
_BATCH = 64


@register("mixture")
@dataclass(eq=False, repr=False)
class GaussianMixture(Detector):
    """Gaussian mixture by scikit-learn · Mahalanobis distance to each component · soft minimum.

    o(x) = −log mean_k exp(−h_k), h_k = ½ (x − μ_k)ᵀ Σ_k⁻¹ (x − μ_k) + c_k with c_k = ½ log det Σ_k − log
    π_k, the
    least of which is set to 0: the negative log density but for the constant `constant_` (Kauffmann et al.
    2020, section 2). Component k gets R_k = softmax_k(−h) · o, of which ½ (x − μ_k) ⊙ Σ_k⁻¹ (x − μ_k) / h_k
    goes to the input; the part of c_k belongs to none and is reported as bias. With features in front
    relevance goes through them by gradient × input.

    Args:
        components: Gaussians.
        covariance: "full" or "diag"; "auto" is full for up to 512 features.
        regularisation: added to the variances, as a share of the mean variance of the features.
        features: a layer in front, for example a blur.
        mean, std: by which images are normalised; other data are used as they are.
        validation: share of the samples held out, which set `threshold_`.
        quantile: of the held-out scores, at which the threshold is set.
        seed: of the split and of the start of the fit.

    Attributes:
        weights_: (K,). means_: (K, D). cholesky_: of the precisions, (K, D, D), or (K, D) for "diag".
        constant_: score + constant_ is the negative log density.
    """

    components: int = 4
    covariance: str = "auto"
    regularisation: float = 1e-3
    features: nn.Module | None = None
    mean: float | Sequence[float] = 0.5
    std: float | Sequence[float] = 0.5
    validation: float = 0.2
    quantile: float = 0.95
    seed: int = 0

    def _fit(self, x: Tensor) -> Tensor:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as _GaussianMixture

        if self.covariance not in ("auto", "full", "diag"):
            raise InputError(f"unknown covariance {self.covariance!r}", "use auto, full or diag")
        if not (isinstance(self.components, int) and self.components >= 1 and self.regularisation > 0):
            raise InputError(
                f"components {self.components}, regularisation {self.regularisation}", "both must be positive"
            )
        fitted, held_out = self._split(len(x), spare=self.components)
        self._set_features()
        phi = embed(self.features_, self._normalise(x)).double().cpu()
        if len(fitted) < self.components:
            raise InputError(
                f"{len(fitted)} samples for {self.components} Gaussians",
                "lower components, or give more samples",
            )
        rows = phi[fitted].numpy()
        kind = self.covariance if self.covariance != "auto" else "full" if rows.shape[1] <= _FULL else "diag"
        variance = float(rows.var(0).mean()) or 1.0
        model = _GaussianMixture(
            self.components,
            covariance_type=kind,
            reg_covar=self.regularisation * variance,
            random_state=self.seed,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(rows)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            warnings.warn("the mixture had not converged after 100 steps", PfungstWarning, stacklevel=3)
        self._set(
            *(
                torch.from_numpy(np.asarray(a))
                for a in (model.weights_, model.means_, model.precisions_cholesky_)
            )
        )
        return self._pool(phi[held_out]) if len(held_out) else x.new_zeros(0)

    def _set_features(self) -> None:
        self.features_ = None if self.features is None else copy.deepcopy(self.features).eval()

    def _set(self, weights: Tensor, means: Tensor, cholesky: Tensor) -> None:
        self.weights_, self.means_, self.cholesky_ = weights, means, cholesky
        diagonal = cholesky if cholesky.ndim == 2 else cholesky.diagonal(dim1=1, dim2=2)
        constants = -diagonal.log().sum(1) - weights.log()
        self._constants = constants - constants.min()
        d, k = means.shape[1], len(weights)
        self.constant_ = float(constants.min()) + 0.5 * d * float(np.log(2 * np.pi)) - float(np.log(k))

    def _normalise(self, x: Tensor) -> Tensor:
        return Normalise(self.mean, self.std)(x) if x.ndim == 4 else x

    def _pulled(self, delta: Tensor, k: int) -> Tensor:
        """Σ_k⁻¹ δ of rows (N, D)."""
        c = self.cholesky_[k]
        return delta * c.square() if c.ndim == 1 else (delta @ c) @ c.T

    def _energies(self, phi: Tensor) -> Tensor:
        """h (N, K) of features (N, D) in float64."""
        found = []
        for k, mean in enumerate(self.means_):
            delta = phi - mean
            found.append(0.5 * (delta * self._pulled(delta, k)).sum(1) + self._constants[k])
        return torch.stack(found, 1)

    def _pool(self, phi: Tensor) -> Tensor:
        return SoftMin(1.0).pool(self._energies(phi))

    def _embedded(self, x: Tensor) -> Tensor:
        return embed(self.features_, self._normalise(x)).double().cpu()

    def _score(self, x: Tensor) -> Tensor:
        return torch.cat([self._pool(self._embedded(part)) for part in x.split(_BATCH)]).to(x.device)

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        parts = [self._explain_batch(part, basis) for part in x.split(_BATCH)]
        values, score = (torch.cat([p[i] for p in parts]) for i in (0, 1))
        return Relevance(values, score, basis, score - values.flatten(1).sum(1))

    def _explain_batch(self, x: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
        z = self._normalise(x)
        phi = embed(self.features_, z).double().cpu()
        h = self._energies(phi)
        score = SoftMin(1.0).pool(h)
        share = SoftMin(1.0).shares(h) * score[:, None] / h.clamp_min(torch.finfo(h.dtype).tiny)
        if self.features_ is not None:
            local = torch.zeros_like(phi)
            for k, mean in enumerate(self.means_):
                delta = phi - mean
                local += 0.5 * share[:, k, None] * delta * self._pulled(delta, k)
            g = gradient(self.features_, z, local.to(z))
            return basis.contract(z, g, ndim=z.ndim - 1).double().cpu(), score
        total: Tensor | None = None
        for k, mean in enumerate(self.means_):
            delta = phi - mean
            g = 0.5 * share[:, k, None] * self._pulled(delta, k)
            own = basis.contract(delta.view(z.shape), g.view(z.shape), ndim=z.ndim - 1)
            total = own if total is None else total + own
        assert total is not None
        return total, score

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"weights": self.weights_, "means": self.means_, "cholesky": self.cholesky_}
        return tensors | named_weights("features", self.features_), {}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        load_named_weights("features", self.features, tensors)
        self._set_features()
        self._set(*(tensors[name].double().cpu() for name in ("weights", "means", "cholesky")))
