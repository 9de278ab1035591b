"""Class-wise neural PCA (paper 003, equations 1 to 6)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from pfungst.device import choose_device
from pfungst.errors import InputError, PfungstWarning
from pfungst.files import read, write_json, write_tensors
from pfungst.measure.split import best_splits
from pfungst.spurious.eigen import leading
from pfungst.spurious.features import FeatureStore
from pfungst.spurious.heads import FeatureHead, LinearHead, as_linear, same_model

FORMAT = "pfungst.npca/1"


class NeuralPCA(BaseEstimator):
    """Principal components of each class's weighted features ψ_k(x) = w_k ⊙ φ(x) / T.

    α_l(x) = ⟨1, v_l⟩ ⟨v_l, ψ_k(x) − ψ̄_k⟩ is what component l adds to the logit of class k, whatever the sign
    of v_l; with all components Σ_l α_l(x) = logit_k(x) − mean training logit (equation 6).

    Args:
        n_components: components kept per class, None for all. A class of n images has at most n − 1.
        n_images: training images kept per component for :meth:`top_images`.
        seed: of the eigensolver's random start.
        workers: classes solved at a time on the CPU, each on one thread; None for as many as torch has
            threads.
        device: where classes are solved: "auto", "cpu", "cuda", …; what is fitted lies on the CPU.

    Attributes:
        classes_: class indices that were fitted, ascending.
        head_: the linear head (W, b, T).
        mean_: {class: (D,)} mean of ψ_k over the class.
        components_: {class: (m, D)} unit eigenvectors by falling variance, Σ_j v_l[j] ≥ 0.
        explained_variance_: {class: (m,)} eigenvalues of the covariance with n − 1, float64.
        total_variance_: {class: trace of that covariance}.
        n_samples_: {class: n}.
        absent_: {class: (m, 2)} per component, mean α of the class's images that lack its feature, and the α
            up to which they reach: the lower group of the best split of α in two. Where the split explains no
            more than that of a bell curve by chance, no image lacks it: (0, ∞), the mean of all.

    Memory while fitting, beside the result (classes × n_components × D × 4 bytes): for each worker one
    class's features in float32 twice, and the Krylov space of about 3.5 n_components vectors.
    """

    def __init__(
        self,
        n_components: int | None = 128,
        n_images: int = 10,
        seed: int = 0,
        workers: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.n_images = n_images
        self.seed = seed
        self.workers = workers
        self.device = device

    def fit(
        self,
        model: nn.Module | FeatureHead | LinearHead,
        features: FeatureStore | Tensor | np.ndarray,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
        ids: Sequence[str] | None = None,
        classes: Sequence[int] | None = None,
    ) -> NeuralPCA:
        """Fit all classes that occur.

        Args:
            model: the classifier or its head.
            features: a store, or (N, D) penultimate features.
            labels: (N,) class indices; a store has its own.
            ids: N identifiers for `top_images`; row numbers by default.
            classes: only these.

        Raises:
            InputError: features of another model, labels outside its classes, not finite, a class of one
                image.
            ConfigError: the device does not exist, or has no float64.
        """
        device = choose_device(self.device, float64=True)
        if isinstance(model, nn.Module):
            model = FeatureHead(model)
        head = as_linear(model)
        self._model = model if isinstance(model, FeatureHead) else None
        self.head_ = LinearHead(
            head.weight.cpu(), None if head.bias is None else head.bias.cpu(), head.temperature
        )
        known = model.fingerprint() if isinstance(model, FeatureHead) else self.head_.fingerprint()
        source = _Source(features, labels, ids, self.head_, known)
        self.classes_ = sorted(source.classes if classes is None else set(classes))
        counts = {k: len(source.rows(k)) for k in self.classes_}
        poor = [k for k, n in counts.items() if n < 2]
        if poor:
            raise InputError(
                f"classes {poor[:10]} have fewer than 2 training images ({[counts[k] for k in poor[:10]]})",
                "leave them out with classes=, or add images",
            )
        wanted = head.n_features if self.n_components is None else self.n_components
        if wanted < 1:
            raise InputError(f"n_components is {wanted}", "keep at least one")
        if self.n_components is not None:
            few = [k for k in self.classes_ if min(counts[k] - 1, head.n_features) < wanted]
            if few:
                warnings.warn(
                    f"{len(few)} of {len(self.classes_)} classes cannot have {wanted} components: for "
                    "example class "
                    f"{few[0]} with {counts[few[0]]} images and {head.n_features} features has "
                    f"{min(counts[few[0]] - 1, head.n_features)}; they keep what there is",
                    PfungstWarning,
                    stacklevel=2,
                )
        self.mean_: dict[int, Tensor] = {}
        self.components_: dict[int, Tensor] = {}
        self.explained_variance_: dict[int, Tensor] = {}
        self.total_variance_: dict[int, float] = {}
        self.n_samples_ = counts
        self.absent_: dict[int, Tensor] = {}
        self._top: dict[int, tuple[Tensor, list[list[str]]]] = {}
        dims = self._fit_class(
            source, self.classes_[0], wanted, device, 0
        )  # its effort is the guess for the others
        workers = 1 if device.type != "cpu" else self.workers or torch.get_num_threads()
        rest = self.classes_[1:]
        if workers > 1 and len(rest) > 1:
            with _one_thread(), ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda k: self._fit_class(source, k, wanted, device, dims), rest))
        else:
            for k in rest:
                self._fit_class(source, k, wanted, device, dims)
        self.model_fingerprint_ = known if source.known is None else {**source.known, **known}
        return self

    def _fit_class(self, source: _Source, k: int, wanted: int, device: torch.device, dims: int) -> int:
        rows = source.rows(k)
        psi = self.head_.psi(source.take(rows).to(device), k)
        exact = psi.mean(0, dtype=torch.float64)
        if not bool(torch.isfinite(exact).all()):  # as soon as one value is not
            raise InputError(f"features of class {k} are not finite", "check the model and its images")
        mean = exact.to(psi.dtype)
        psi -= mean
        n, d = psi.shape
        spectrum = leading(psi, min(wanted, n - 1, d), seed=self.seed * 100_003 + k, dims=dims)
        vectors = spectrum.vectors
        sums = vectors.sum(1)
        vectors[sums < 0] *= -1
        self.mean_[k], self.components_[k] = mean.cpu(), vectors.cpu()
        self.explained_variance_[k] = spectrum.values.cpu() / (n - 1)
        self.total_variance_[k] = float(torch.linalg.vector_norm(psi, dtype=torch.float64) ** 2) / (n - 1)
        alpha = ((psi @ vectors.T) * sums.abs()).cpu()
        self.absent_[k] = _absent(alpha)
        best = alpha.topk(min(self.n_images, n), dim=0)
        ids = [[source.ids(int(rows[i])) for i in column] for column in best.indices.T]
        self._top[k] = (best.values.T.contiguous(), ids)
        return spectrum.dims

    # --- reading
    # ------------------------------------------------------------------------------------------------

    def _known(self, class_: int, component: int | None = None) -> int:
        if not hasattr(self, "classes_"):
            raise InputError("this NeuralPCA is not fitted", "call fit or load first")
        if class_ not in self.components_:
            raise InputError(
                f"class {class_} was not fitted; {len(self.classes_)} classes are, from {self.classes_[0]} "
                "to "
                f"{self.classes_[-1]}",
                "fit it, or choose another class",
            )
        m = len(self.components_[class_])
        if component is not None and not 0 <= component < m:
            raise InputError(f"class {class_} has no component {component}", f"it has components 0 … {m - 1}")
        return class_

    def scale(self, class_: int) -> Tensor:
        """⟨1, v_l⟩ of each component, (m,), ≥ 0."""
        return self.components_[self._known(class_)].sum(1)

    def alpha_features(self, phi: Tensor, class_: int) -> Tensor:
        """α of penultimate features (N, D) for all components of one class, (N, m); differentiable."""
        self._known(class_)
        psi = self.head_.psi(phi, class_) - self.mean_[class_].to(phi)
        return (psi @ self.components_[class_].to(phi).T) * self.scale(class_).to(phi)

    def alpha(self, x: Tensor, class_: int) -> Tensor:
        """α of images (N, C, H, W) for all components of one class, (N, m); differentiable."""
        if self._model is None:
            raise InputError("no model is attached", "fit with a FeatureHead, or call attach(model)")
        return self.alpha_features(self._model.features(x), class_)

    def alpha_of(self, class_: int, component: int) -> Any:
        """α_l as a function of penultimate features (N, D) → (N,): the score to explain with GradCAM and the
        like."""
        self._known(class_, component)
        weight = self.head_.weight[class_] / self.head_.temperature
        v, mean = self.components_[class_][component], self.mean_[class_]
        direction, offset = weight * v * v.sum(), float(mean @ v * v.sum())
        return lambda phi: phi @ direction.to(phi) - offset

    def attach(self, model: nn.Module | FeatureHead) -> NeuralPCA:
        """Give a loaded NeuralPCA its model; refuses another one."""
        head = model if isinstance(model, FeatureHead) else FeatureHead(model)
        theirs = head.fingerprint()
        if not same_model(theirs, self.model_fingerprint_):
            raise InputError(
                f"these components belong to another model: {self.model_fingerprint_}, not {theirs}",
                "pass the model they were fitted on",
            )
        self._model = head
        return self

    @property
    def model(self) -> FeatureHead | None:
        """The attached model."""
        return self._model

    def top_images(self, class_: int, component: int, n: int = 5) -> list[tuple[str, float]]:
        """The n training images of highest α: (identifier, α), descending."""
        self._known(class_, component)
        values, ids = self._top[class_]
        if n > self.n_images:
            raise InputError(
                f"{n} images were asked for, {self.n_images} are kept", "fit with a larger n_images"
            )
        pairs = zip(ids[component], values[component].tolist(), strict=True)
        return list(pairs)[:n]

    def explained_variance(self, class_: int) -> Tensor:
        """Variance of each component, (m,), float64."""
        return self.explained_variance_[self._known(class_)]

    def explained_variance_ratio(self, class_: int) -> Tensor:
        """Share of the class's variance of ψ, (m,)."""
        total = self.total_variance_[self._known(class_)]
        return self.explained_variance_[class_] / (total if total > 0 else 1.0)

    # --- files
    # --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write `path`.safetensors and `path`.json (names from the stem of `path`)."""
        self._known(self.classes_[0])
        stem = Path(path).with_suffix("")
        tensors = {"head.weight": self.head_.weight}
        if self.head_.bias is not None:
            tensors["head.bias"] = self.head_.bias
        for k in self.classes_:
            tensors |= {
                f"mean.{k}": self.mean_[k],
                f"components.{k}": self.components_[k],
                f"variance.{k}": self.explained_variance_[k],
                f"top.{k}": self._top[k][0],
            }
            if k in self.absent_:
                tensors[f"absent.{k}"] = self.absent_[k]
        meta = {
            "format": FORMAT,
            "model": self.model_fingerprint_,
            "parameters": self.get_params(),
            "temperature": self.head_.temperature,
            "classes": self.classes_,
            "n_samples": [self.n_samples_[k] for k in self.classes_],
            "total_variance": [self.total_variance_[k] for k in self.classes_],
            "top": [self._top[k][1] for k in self.classes_],
        }
        write_tensors(stem.with_suffix(".safetensors"), tensors, format=FORMAT)
        write_json(stem.with_suffix(".json"), meta, indent=None)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | FeatureHead | None = None) -> NeuralPCA:
        """Read what :meth:`save` wrote; `model` is attached and must be the one it was fitted on."""
        stem = Path(path).with_suffix("")
        remedy = "pass what NeuralPCA.save wrote"
        meta = read(stem.with_suffix(".json"), remedy, InputError, FORMAT)
        tensors = read(stem.with_suffix(".safetensors"), remedy, InputError)
        new = cls(**meta["parameters"])
        new._model = None
        new.head_ = LinearHead(tensors["head.weight"], tensors.get("head.bias"), meta["temperature"])
        new.model_fingerprint_ = meta["model"]
        new.classes_ = meta["classes"]
        new.n_samples_ = dict(zip(new.classes_, meta["n_samples"], strict=True))
        new.total_variance_ = dict(zip(new.classes_, meta["total_variance"], strict=True))
        new.mean_ = {k: tensors[f"mean.{k}"] for k in new.classes_}
        new.components_ = {k: tensors[f"components.{k}"] for k in new.classes_}
        new.explained_variance_ = {k: tensors[f"variance.{k}"] for k in new.classes_}
        new.absent_ = {k: tensors[f"absent.{k}"] for k in new.classes_ if f"absent.{k}" in tensors}
        new._top = {k: (tensors[f"top.{k}"], ids) for k, ids in zip(new.classes_, meta["top"], strict=True)}
        return new if model is None else new.attach(model)


def _absent(alpha: Tensor) -> Tensor:
    """Of each column of α (n, m), mean and end of the lower group, (m, 2) float64; (0, ∞) where there are no
    two."""
    splits = best_splits(alpha.T.numpy())
    rows = [(s.low, s.threshold) if s.separation > 0 else (0.0, float("inf")) for s in splits]
    return torch.tensor(rows, dtype=torch.float64)


class _Source:
    """Features, labels and identifiers from a store or from arrays."""

    def __init__(
        self, features: Any, labels: Any, ids: Sequence[str] | None, head: LinearHead, model: dict[str, Any]
    ) -> None:
        self._store: FeatureStore | None = None
        self.known: dict[str, Any] | None = None
        if isinstance(features, FeatureStore):
            self.known = features.meta["model"]
            if not same_model(features.meta["model"], model):
                raise InputError(
                    f"the features in {features.path} were made with another model",
                    "extract them again with this one",
                )
            self._store, self._features, self._ids = features, None, None
            self.labels = features.labels
            width = features.features.shape[1]
        else:
            if labels is None:
                raise InputError("features come without labels", "pass labels=, or a FeatureStore")
            self._features = torch.as_tensor(features)
            if not self._features.is_floating_point() or self._features.ndim != 2:
                raise InputError(
                    f"features have shape {tuple(self._features.shape)} and type {self._features.dtype}",
                    "pass floating-point (N, D)",
                )
            self.labels, self._ids = np.asarray(labels), ids
            width = self._features.shape[1]
            if len(self.labels) != len(self._features) or (ids is not None and len(ids) != len(self.labels)):
                raise InputError(
                    f"{len(self._features)} features, {len(self.labels)} labels"
                    + (f", {len(ids)} identifiers" if ids is not None else ""),
                    "pass one of each per image",
                )
        if width != head.n_features:
            raise InputError(
                f"features have {width} dimensions, the head takes {head.n_features}",
                "pass the input of the final linear layer",
            )
        self.classes = [int(k) for k in np.unique(self.labels)]
        if not self.classes or self.classes[0] < 0 or self.classes[-1] >= head.n_classes:
            raise InputError(
                f"labels {self.classes[:1]} … {self.classes[-1:]} do not fit a model of {head.n_classes} "
                "classes",
                "map the labels to the model's classes with match_classes",
            )

    def rows(self, k: int) -> np.ndarray:
        return self._store.rows(k) if self._store is not None else np.flatnonzero(self.labels == k)

    def take(self, rows: np.ndarray) -> Tensor:
        if self._store is not None:
            return torch.from_numpy(self._store.features[rows]).float()
        assert self._features is not None
        picked = self._features[torch.from_numpy(rows)].detach().cpu()
        return picked if picked.dtype == torch.float64 else picked.float()

    def ids(self, row: int) -> str:
        ids = self._store.ids if self._store is not None else self._ids
        return str(row) if ids is None else str(ids[row])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
