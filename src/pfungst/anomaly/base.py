"""What every detector offers: scikit-learn's contract for outlier detection, and explanations."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pfungst.anomaly import store
from pfungst.anomaly.inputs import as_samples, check_finite, unwrap
from pfungst.conditions import Size
from pfungst.errors import ConditionMismatch, ConfigError, InputError, PfungstWarning
from pfungst.registry import DETECTORS
from pfungst.relevance import Basis, Pixels, Relevance


class Detector(OutlierMixin, BaseEstimator):
    """An anomaly detector: features · distance · pooling.

    Data are images (N, C, H, W) in [0, 1], arrays of any other rank, scikit-learn's tables (N, D), or
    a `Prepared` set of images, whose condition is then remembered and compared. Scores come back as what
    went in: tensors for tensors and `Prepared`, NumPy arrays otherwise.

    Subclasses implement :meth:`_fit`, :meth:`_score`, :meth:`_explain`, :meth:`_state` and :meth:`_restore`
    on validated tensors, have a parameter `quantile`, and are made known by :func:`register`.

    Attributes:
        nested: the parameter that takes other detectors: one where its default is None, else (name, detector)
            pairs. `_restore` sets it.
        threshold_: score above which an input is abnormal; may be set to another value after fitting.
        training_scores_: (N,) score of each training point, left out of the data it is compared with.
        sample_shape_: shape of one sample; None where any is taken.
        condition_: how the training data were prepared, None where they were bare arrays.
    """

    nested: ClassVar[str | None] = None

    quantile: float
    validation: float
    seed: int
    threshold_: float
    training_scores_: np.ndarray
    sample_shape_: Any
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

    @abstractmethod
    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learnt: tensors by name (no "/" in it), and facts that JSON can hold, or fitted
        detectors."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Become fitted from what :meth:`_state` gave. Parameters, `sample_shape_`, the threshold and the
        training scores are set already; tensors are on the detector's device."""

    @property
    def explains(self) -> bool:
        """Whether scores can be explained; what others made may have no explanation."""
        return True

    def check_basis(self, basis: Basis) -> None:
        """Whether explanations can be read in `basis`, before anything is fitted.

        Raises:
            InputError: they cannot.
        """

    def check_size(self, size: Size) -> None:
        """Whether images of this size can be read, before anything is fitted.

        Raises:
            InputError: they are too small for the network.
        """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what is normal.

        Args:
            X: normal samples, N of them.
            y: ignored.

        Raises:
            InputError: the samples or `quantile` cannot be used, or the scores are NaN or infinite.
        """
        if not 0 <= self.quantile <= 1:
            raise InputError(f"quantile {self.quantile} is not in [0, 1]", "for example 0.95")
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
            InputError: the samples cannot be used, or a score is NaN, infinite or beyond what their dtype
                holds.
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
            InputError: the samples cannot be used, or a score or relevance is NaN, infinite or beyond their
                dtype.
        """
        basis = Pixels() if basis is None else basis
        self.check_basis(basis)
        found = self._explain(self._ready(X), basis)
        check_finite(found.score)
        if not bool(torch.isfinite(found.values).all()):
            raise InputError(
                "the relevance of some samples is NaN or infinite", "pass float64, or scale the data"
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write the fitted detector to the folder `path`: detector.json and weights.safetensors."""
        check_is_fitted(self)
        store.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, **modules: torch.nn.Module) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: the folder.
            modules: modules that were given to the constructor, by parameter, such as `features` or
                `backbone`; `pfungst.mitigate`'s layers need not be given. Their weights come from the folder.
                Those of nested detectors follow the names of these: ``detectors__kde__features``.

        Raises:
            CheckpointError: the folder cannot be read, holds another detector, or the modules do not fit it.
        """
        return store.load(cls, Path(path), modules)

    def _split(self, count: int, least: int = 1, spare: int = 1) -> tuple[Tensor, Tensor]:
        """Indices of `count` samples to learn from, at least `spare`, and of a random share `validation`, at
        least `least`, that is held out."""
        if not 0 < self.validation < 1:
            raise InputError(f"validation {self.validation} is not in (0, 1)", "for example 0.2")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        held_out = min(max(least, round(self.validation * count)), max(0, count - spare))
        return order[held_out:], order[:held_out]

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


Kind = TypeVar("Kind", bound=type[Detector])
_CONTRACT = ("_fit", "_score", "_explain", "_state", "_restore")


def register(name: str) -> Callable[[Kind], Kind]:
    """Decorator: make a detector known to specifications, the command line and saved files.

    Raises:
        ConfigError: the name is taken, or the class lacks a part of the contract.
    """

    def keep(cls: Kind) -> Kind:
        lacking = [part for part in _CONTRACT if getattr(cls, part) is getattr(Detector, part)]
        if lacking:
            raise ConfigError(f"{cls.__name__} lacks {', '.join(lacking)}", "see pfungst.anomaly.Detector")
        DETECTORS.add(name, cls)
        return cls

    return keep


def _like(scores: Tensor, X: Any) -> Any:
    if isinstance(X, Tensor) or hasattr(X, "condition"):
        return scores
    return scores.cpu().numpy()
