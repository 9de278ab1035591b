"""Deep one-class detectors: the squared norm of whitened features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.anomaly.base import register
from pfungst.anomaly.inputs import unwrap
from pfungst.anomaly.network import (
    BackboneDetector,
    attribute_weighted,
    slopes,
)
from pfungst.errors import InputError
from pfungst.measure import auroc
from pfungst.relevance import Basis, Composite, Gamma, On, Relevance

_CANDIDATES = np.logspace(-6, 2, 25)  # ridges, as shares of the mean variance


def gamma_rules(gamma: float = 0.25) -> Composite:
    """Gamma on every linear map."""
    return Composite(
        ((On(kind="convolution"), Gamma(gamma)), (On(kind="linear"), Gamma(gamma))), f"gamma({gamma})"
    )


class Whitening:
    """c ↦ (Σ + r I)^(−1/2) c for centred features c, Σ from its leading eigenvectors.

    Args:
        mean: μ (D,). axes: eigenvectors (D, m) of the covariance. variances: their eigenvalues (m,).
        ridge: r; all other directions have variance r.
    """

    def __init__(self, mean: Tensor, axes: Tensor, variances: Tensor, ridge: float) -> None:
        self.mean, self.axes, self.variances, self.ridge = mean, axes, variances, ridge

    @classmethod
    def fit(cls, features: Tensor) -> Whitening:
        """From features (N, D); the ridge is left to choose.

        Raises:
            InputError: all features are constant.
        """
        mean = features.mean(0)
        _, singular, axes = torch.linalg.svd(features - mean, full_matrices=False)
        variances = singular.square() / max(1, len(features) - 1)
        scale = float(features.abs().amax()) if features.numel() else 0.0
        keep = singular > torch.finfo(features.dtype).eps * max(features.shape) * max(
            scale, float(singular.amax())
        )
        if not bool(keep.any()):
            raise InputError(
                f"all {features.shape[1]} features are constant over the {len(features)} training samples",
                "use features that vary: another backbone, trained weights or more samples",
            )
        return cls(mean, axes[keep].mT.contiguous(), variances[keep], 0.0)

    @property
    def mean_variance(self) -> float:
        return float(self.variances.sum()) / len(self.mean)

    def with_ridge(self, ridge: float) -> Whitening:
        return Whitening(self.mean, self.axes, self.variances, ridge)

    def precision(self, centred: Tensor) -> Tensor:
        """(Σ + r I)^(−1) c, (N, D)."""
        inside = centred @ self.axes
        gain = 1 / (self.variances + self.ridge) - 1 / self.ridge
        return (inside * gain) @ self.axes.mT + centred / self.ridge

    def squared_norm(self, centred: Tensor) -> Tensor:
        """‖(Σ + r I)^(−1/2) c‖², (N,)."""
        inside = (centred @ self.axes).square()
        rest = (centred.square().sum(1) - inside.sum(1)).clamp_(min=0)
        return (inside / (self.variances + self.ridge)).sum(1) + rest / self.ridge

    def log_determinant(self) -> float:
        spare = len(self.mean) - len(self.variances)
        return float((self.variances + self.ridge).log().sum()) + spare * float(np.log(self.ridge))


@register("one-class")
@dataclass(eq=False, repr=False)
class DeepOneClass(BackboneDetector):
    """Features of a network, whitened with a ridge and centred · squared norm · no pooling.

    The explanation follows R_{j←k} = a_j w_jk / Σ_j′ a_j′ w_j′k · R_k through the whitening, a the centred
    features (Kauffmann et al. 2020, appendix A.4), which conserves, then the Gamma rule through the network;
    what its biases and switched-off features keep is reported as bias.

    Recipes of the paper: ``DeepOneClass("vgg16", checkpoint=…)`` for photographs (4096 features);
    ``DeepOneClass(train_letters(images, labels), mean=0, std=1)`` for digits (640 features of a CNN with ℓ2
    pooling, trained on EMNIST letters); ``DeepOneClass("letters")`` trains it on rendered letters instead.

    Args:
        backbone: what `pfungst.encoders.load` understands, an `Encoder`, or a module from normalised images
            to (N, K).
        checkpoint: weights of a named backbone. Without them they are random: a baseline.
        regularisation: the ridge as a share of the features' mean variance, or "validation": chosen on
            held-out normal samples by their likelihood, or by the AUROC where `fit` is given some outliers.
        validation: share of the normal samples held out; they set `threshold_` too.
        features: a layer in front of the network, for example a blur.
        mean, std: normalisation of images; by default the backbone's.
        composite: rules of the explanation; None is Gamma(0.25) on every linear map.
        quantile: of the held-out scores, at which the threshold is set.
        batch_size: images at a time.
        seed: of random weights and of the split.
        device: "auto" is the GPU where there is one.

    Attributes:
        ridge_: r. ridge_chosen_by_: "given", "likelihood" or "auroc". whitening_: the fitted map.
    """

    backbone: str | nn.Module = "vgg16"
    checkpoint: str | Path | None = None
    regularisation: str | float = "validation"
    validation: float = 0.2
    features: nn.Module | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    composite: str | Composite | None = None
    quantile: float = 0.95
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what is normal.

        Args:
            X: samples, N of them.
            y: optional (N,), 1 for known outliers: they only help to choose the ridge.
        """
        self._outliers: Tensor | None = None
        if y is None:
            return super().fit(X)
        labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y).astype(int)
        data, condition = unwrap(X)
        if labels.shape != (len(data),) or not set(np.unique(labels)) <= {0, 1}:
            raise InputError(f"y of shape {labels.shape}", "give 0 for normal samples and 1 for outliers")
        data = torch.as_tensor(data)
        if not (labels == 0).any():
            raise InputError("all samples are outliers", "give normal samples too")
        if labels.any():
            self._outliers = data[torch.as_tensor(labels == 1)]
        fitted = super().fit(data[torch.as_tensor(labels == 0)])
        self.condition_ = condition
        del self._outliers
        return fitted

    def _embed(self, x: Tensor) -> Tensor:
        """Features (N, K), in float32."""
        parts = []
        with torch.no_grad():
            for part in x.split(self.batch_size):
                out = self.chain_(part.to(self._on, torch.float32))
                if not isinstance(out, Tensor):
                    raise InputError(
                        f"the backbone gives {type(out).__name__}", "use a module that returns a tensor"
                    )
                parts.append(out.flatten(1))
        return torch.cat(parts)

    def _fit(self, x: Tensor) -> Tensor:
        self._check_params()
        if not isinstance(self.regularisation, str) and not self.regularisation > 0:
            raise InputError(f"regularisation {self.regularisation} is not positive", "for example 0.1")
        if isinstance(self.regularisation, str) and self.regularisation != "validation":
            raise InputError(
                f"unknown regularisation {self.regularisation!r}", 'use "validation" or a positive number'
            )
        if len(x) < 3:
            raise InputError(
                f"{len(x)} samples leave nothing to whiten by", "pass at least three normal samples"
            )
        rows, others = self._split(len(x), spare=2)
        self._build()
        phi = self._embed(x).double()
        held_out = phi[others]
        white = Whitening.fit(phi[rows])
        outliers = getattr(self, "_outliers", None)
        if outliers is not None:
            outliers = self._embed(outliers).double() - white.mean
        self.ridge_ = self._choose(white, held_out - white.mean, outliers)
        self.whitening_ = white.with_ridge(self.ridge_)
        return self.whitening_.squared_norm(held_out - white.mean)

    def _choose(self, white: Whitening, held_out: Tensor, outliers: Tensor | None) -> float:
        scale = white.mean_variance
        if not isinstance(self.regularisation, str):
            self.ridge_chosen_by_ = "given"
            return self.regularisation * scale
        best = []
        for share in _CANDIDATES:
            candidate = white.with_ridge(share * scale)
            score = candidate.squared_norm(held_out)
            if outliers is None:
                best.append(float(-score.mean()) - candidate.log_determinant())
            else:
                scores = torch.cat([score, candidate.squared_norm(outliers)]).cpu().numpy()
                best.append(auroc(np.arange(len(scores)) >= len(score), scores))
        self.ridge_chosen_by_ = "likelihood" if outliers is None else "auroc"
        ties = np.flatnonzero(np.asarray(best) >= max(best) - 1e-12)
        return float(_CANDIDATES[ties[len(ties) // 2]] * scale)

    def _score_batch(self, x: Tensor) -> Tensor:
        centred = self._embed(x).double() - self.whitening_.mean
        return self.whitening_.squared_norm(centred).to(x.device)

    def _explain_batch(self, x: Tensor, basis: Basis) -> Relevance:
        phi = self._embed(x).double()
        centred = phi - self.whitening_.mean
        score = self.whitening_.squared_norm(centred).float()
        weights = slopes((centred * self.whitening_.precision(centred)).float(), phi.float())
        rules = gamma_rules() if self.composite is None else self.composite
        return attribute_weighted(
            self.chain_,
            x.to(self._on, torch.float32),
            lambda out: (out.flatten(1) * weights).sum(1),
            score,
            rules,
            basis,
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        white = self.whitening_
        own = {"mean": white.mean, "axes": white.axes, "variances": white.variances}
        return own | super()._state()[0], {"ridge": self.ridge_, "chosen_by": self.ridge_chosen_by_}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super()._restore(tensors, facts)
        self.ridge_, self.ridge_chosen_by_ = facts["ridge"], facts["chosen_by"]
        self.whitening_ = Whitening(tensors["mean"], tensors["axes"], tensors["variances"], self.ridge_)
