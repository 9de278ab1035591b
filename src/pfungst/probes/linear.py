"""The two downstream classifiers of the main paper, as linear readouts f(x) = W φ(x) + b.

Kauffmann et al. 2025, methods, "Downstream classifiers", and supplementary note A.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as _SkLogisticRegression
from sklearn.svm import SVC
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from pfungst.errors import InputError, PfungstWarning


class Readout(nn.Module):
    """An encoder followed by a linear readout: images → logits (N, classes).

    Attributes:
        encoder: the representation model.
        head: the linear layer; its bias is zero where the probe has none.
        classes: what each logit stands for.
    """

    def __init__(self, encoder: nn.Module, weight: Tensor, bias: Tensor, classes: list[Any]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.load_state_dict({"weight": weight, "bias": bias})
        reference = next(encoder.parameters(), torch.empty(0))
        self.head.to(reference.device, reference.dtype)
        self.classes = classes
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).flatten(1))

    def only(self, classes: list[Any]) -> Readout:
        """The same for some of the classes, in this order."""
        rows = torch.tensor([self.index(c) for c in classes])
        return Readout(
            self.encoder, self.head.weight.detach()[rows], self.head.bias.detach()[rows], list(classes)
        )

    def index(self, label: Any) -> int:
        """The logit that stands for a class."""
        for i, known in enumerate(self.classes):
            if known == label or str(known) == str(label):
                return i
        raise InputError(f"the probe knows no class {label!r}", f"its classes are {self.classes}")


class Probe(ClassifierMixin, BaseEstimator):
    """Shared by the probes: input checks, decision values, and the way back into the encoder.

    Attributes:
        classes_: the labels.
        coef_: (1, K) for two classes, else (classes, K).
        intercept_: (1,) or (classes,).
    """

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to representations.

        Args:
            X: (N, K), array or tensor.
            y: (N,) labels of any type.
            sample_weight: (N,) or None.

        Raises:
            InputError: representations that are not finite (with their numbers), or fewer than two classes.
        """
        X = _finite(X)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, counts = np.unique(y, return_counts=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"all {len(y)} training images have one class, {self.classes_.tolist()[0]!r}",
                "the number of classes has to be greater than one: pass images of a second class",
            )
        single = self.classes_[counts == 1]
        if len(single):
            named = ", ".join(map(str, single[:5]))
            warnings.warn(
                f"{len(single)} classes have one training image ({named}); accuracies for them mean little",
                PfungstWarning,
                stacklevel=2,
            )
        self._fit(X, y, sample_weight)
        return self

    def _fit(self, X: np.ndarray, y: np.ndarray, sample_weight: Any) -> None:
        raise NotImplementedError

    def decision_function(self, X: Any) -> np.ndarray:
        """(N,) in favour of `classes_[1]` for two classes, else (N, classes)."""
        check_is_fitted(self)
        X = validate_data(self, _finite(X), reset=False, dtype=(np.float64, np.float32))
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The label of each representation."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def attach(self, encoder: nn.Module) -> Readout:
        """The encoder with this probe as its last layer, ready to be explained.

        With two classes the logits are (−f, f), f the decision value: each is the evidence for its class."""
        check_is_fitted(self)
        weight = torch.as_tensor(self.coef_, dtype=torch.float32)
        bias = torch.as_tensor(np.broadcast_to(self.intercept_, len(weight)).copy(), dtype=torch.float32)
        if len(self.classes_) == 2:
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        return Readout(encoder, weight, bias, self.classes_.tolist())


class LinearSVM(Probe):
    """Linear support vector machine with hinge loss and a free offset; one against the rest for many classes.

    Args:
        C: slack; the paper's hold-out choice is 0.01.
        class_weight: "balanced", a dictionary from label to weight, or None.
        max_iter: of the solver, −1 without limit.
    """

    def __init__(
        self, C: float = 0.01, class_weight: str | dict[Any, float] | None = "balanced", max_iter: int = -1
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.max_iter = max_iter

    def _fit(self, X: np.ndarray, y: np.ndarray, sample_weight: Any) -> None:
        balanced = "balanced" if self.class_weight == "balanced" else None
        if self.class_weight is not None and not balanced:
            weight = compute_sample_weight(self.class_weight, y)
            sample_weight = weight if sample_weight is None else weight * np.asarray(sample_weight)
        members = []
        for label in self.classes_[1:] if len(self.classes_) == 2 else self.classes_:
            svm = SVC(kernel="linear", C=self.C, class_weight=balanced, max_iter=self.max_iter)
            members.append(svm.fit(X, y == label, sample_weight))
        self.coef_ = np.concatenate([m.coef_ for m in members])
        self.intercept_ = np.concatenate([m.intercept_ for m in members])
        self.n_iter_ = np.concatenate([m.n_iter_ for m in members])


class LogisticRegression(Probe):
    """Multinomial logistic regression: lbfgs, ℓ2 penalty, no offset.

    Args:
        C: inverse strength of the penalty.
        class_weight: "balanced", a dictionary from label to weight, or None.
        fit_intercept: the paper fits none.
        max_iter: of lbfgs.
    """

    def __init__(
        self,
        C: float = 1.0,
        class_weight: str | dict[Any, float] | None = "balanced",
        fit_intercept: bool = False,
        max_iter: int = 1000,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter

    def _fit(self, X: np.ndarray, y: np.ndarray, sample_weight: Any) -> None:
        model = _SkLogisticRegression(**self.get_params())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(X, y, sample_weight)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            warnings.warn(
                f"the logistic regression stopped after {self.max_iter} iterations before it converged",
                PfungstWarning,
                stacklevel=3,
            )
        self.coef_, self.intercept_ = model.coef_, np.atleast_1d(model.intercept_)
        self.n_iter_ = model.n_iter_

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, classes) softmax probabilities."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], 1)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)


def _finite(X: Any) -> Any:
    """Arrays from tensors; representations that are not finite are named."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if isinstance(X, np.ndarray) and X.ndim == 2 and np.issubdtype(X.dtype, np.floating):
        bad = np.flatnonzero(~np.isfinite(X).all(1))
        if len(bad):
            raise InputError(
                f"{len(bad)} of {len(X)} representations contain NaN or infinity (numbers "
                f"{bad[:10].tolist()})",
                "check the images and the encoder's weights",
            )
    return X
