"""What every detector offers: scikit-learn's contract for outlier detection, and explanations."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pfungst.anomaly.inputs import as_samples, check_finite, unwrap
from pfungst.errors import ConditionMismatch, InputError, PfungstWarning
from pfungst.relevance import Basis, Pixels, Relevance


class Detector(OutlierMixin, BaseEstimator):
    """An anomaly detector: features · distance · pooling.

    Data are images (N, C, H, W) in [0, 1], arrays of any other rank, scikit-learn's tables (N, D), or
    a `Prepared` set of images, whose condition is then remembered and compared. Scores come back as what
    went in: tensors for tensors and `Prepared`, NumPy arrays otherwise.

    Subclasses implement :meth:`_fit`, :meth:`_score` and :meth:`_explain` on validated tensors.

    Attributes:
        threshold_: score above which an input is abnormal; may be set to another value after fitting.
        training_scores_: (N,) score of each training point, left out of the data it is compared with.
        sample_shape_: shape of one sample.
        condition_: how the training data were prepared, None where they were bare arrays.
    """

    quantile: float
    threshold_: float
    training_scores_: np.ndarray
    sample_shape_: tuple[int, ...]
    condition_: Any

    @abstractmethod
    def _fit(self, x: Tensor) -> Tensor:
        """Fit to validated samples; returns their leave-one-out scores (N,), or none where N is 1."""

    @abstractmethod
    def _score(self, x: Tensor) -> Tensor:
        """Scores (N,) of validated samples."""

    @abstractmethod
    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        """Relevance of the scores of validated samples."""

    def check_size(self, size: int) -> None:
        """Whether images of `size` × `size` pixels can be read, before anything is fitted.

        Raises:
            InputError: they are too small for the network.
        """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what is normal.

        Args:
            X: normal samples, N of them.
            y: ignored.

        Raises:
            InputError: the samples cannot be used, or their scores are NaN or infinite.
        """
        data, self.condition_ = unwrap(X)
        x = as_samples(self, data, reset=True)
        self.training_scores_ = check_finite(self._fit(x).double()).cpu().numpy()
        if len(self.training_scores_):
            self.threshold_ = float(np.quantile(self.training_scores_, self.quantile))
        else:
            warnings.warn(
                "one training sample leaves nothing to set the threshold by; set threshold_ by hand",
                PfungstWarning,
                stacklevel=2,
            )
            self.threshold_ = float("inf")
        return self

    def anomaly_score(self, X: Any) -> Any:
        """Score of each sample (N,), high = abnormal.

        Raises:
            InputError: the samples cannot be used, or a score is NaN, infinite or beyond what their dtype holds.
        """
        return _like(check_finite(self._score(self._ready(X))), X)

    def score_samples(self, X: Any) -> Any:
        """scikit-learn's sign: −anomaly_score."""
        return -self.anomaly_score(X)

    def decision_function(self, X: Any) -> Any:
        """threshold_ − anomaly_score: negative for abnormal samples."""
        scores = self.anomaly_score(X)
        return self.threshold_ - scores

    def predict(self, X: Any) -> Any:
        """+1 for normal, −1 for abnormal samples (score strictly above the threshold)."""
        decision = self.decision_function(X)
        where = torch.where if isinstance(decision, Tensor) else np.where
        return where(decision >= 0, 1, -1)

    @property
    def offset_(self) -> float:
        """scikit-learn's offset: decision_function = score_samples − offset_."""
        return -self.threshold_

    def explain(self, X: Any, basis: Basis | None = None) -> Relevance:
        """Which components of the input make the score.

        Args:
            X: samples (N, *sample).
            basis: how to read the input; pixels by default.

        Returns:
            Relevance whose values sum to the anomaly score, less what its `bias` says.

        Raises:
            InputError: the samples cannot be used, or a score or relevance is NaN, infinite or beyond their dtype.
        """
        found = self._explain(self._ready(X), Pixels() if basis is None else basis)
        check_finite(found.score)
        if not bool(torch.isfinite(found.values).all()):
            raise InputError(
                "the relevance of some samples is NaN or infinite", "pass float64, or scale the data"
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write the fitted detector to the folder `path`: detector.json and weights.safetensors."""
        from pfungst.anomaly.store import save

        check_is_fitted(self)
        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, features: torch.nn.Module | None = None) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: the folder.
            features: the module in front, needed only where it is not one of `pfungst.mitigate`'s layers.
        """
        from pfungst.anomaly.store import load

        return load(cls, Path(path), features)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "threshold_")

    def _ready(self, X: Any) -> Tensor:
        check_is_fitted(self)
        data, condition = unwrap(X)
        if condition is not None and self.condition_ is not None and str(condition) != str(self.condition_):
            warnings.warn(
                f"fitted on images prepared as {self.condition_}, given images prepared as {condition}; "
                "the scores compare different things unless that is the question",
                ConditionMismatch,
                stacklevel=3,
            )
        return as_samples(self, data, reset=False)


def _like(scores: Tensor, X: Any) -> Any:
    if isinstance(X, Tensor) or hasattr(X, "condition"):
        return scores
    return scores.cpu().numpy()
