"""Detectors of anybody: whatever has `fit` and a score, and torch modules that score or reconstruct images.

Explained where there is an explanation: distances in closed form (:mod:`pfungst.anomaly.wrapped`),
reconstructions by their error in each pixel, other modules by relevance propagation where it covers them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.anomaly.base import Detector
from pfungst.anomaly.features import gradient
from pfungst.conditions import Size, sides
from pfungst.device import choose_device
from pfungst.errors import InputError, PfungstError
from pfungst.registry import called
from pfungst.relevance import Basis, Pixels, Relevance, attribute

_SCORES = ("pred_score", "anomaly_score", "score", "scores")
"""What the score is called in an output of several parts; the first is anomalib's."""


@dataclass(eq=False, repr=False)
class OwnDetector(Detector):
    """A detector around anything with `fit` and a score, or a torch module.

    The score is the first of these: `anomaly_score`; PyOD's `decision_function`; `score` of what is no
    scikit-learn estimator; minus scikit-learn's `decision_function` or `score_samples`. It has one number for
    each sample, high for abnormal ones. Estimators see flattened images. A torch module returns scores (N,),
    an anomaly map whose maximum counts, a reconstruction whose squared error counts, or several things with
    one of :data:`_SCORES` among them, as anomalib's exported models do; it is fitted by its own `fit`, or
    taken as it is.

    Args:
        estimator: what is wrapped; a copy of it is fitted.
        features: a layer in front.
        validation: share of the training samples that is held out to set `threshold_`.
        quantile: of the held-out scores, at which the threshold is set.
        batch_size: of torch modules.
        seed: of the split, and the estimator's `random_state`.
        device: of torch modules.

    Attributes:
        estimator_: the fitted copy.
        why_not: why there is no explanation; "" where there is one.
    """

    estimator: Any = None
    features: nn.Module | None = None
    validation: float = 0.2
    quantile: float = 0.95
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"

    @property
    def explains(self) -> bool:
        """Whether scores can be explained, known once it is fitted."""
        return not getattr(self, "why_not", "")

    def check_size(self, size: Size) -> None:
        if isinstance(self.estimator, nn.Module) and not callable(getattr(self.estimator, "fit", None)):
            module = copy.deepcopy(self.estimator).eval()
            with torch.no_grad():
                _module_scores(module, torch.full((1, 3, *sides(size)), 0.5), name_of(self.estimator))

    def _front(self, x: Tensor) -> Tensor:
        if self.features is None:
            return x
        with torch.no_grad():
            return torch.cat([self.features(part) for part in x.split(self.batch_size)])

    def _fit(self, x: Tensor) -> Tensor:
        self.estimator_, self.why_not = copy.deepcopy(self.estimator), ""
        training, held_out = self._split(len(x))
        z = self._front(x)
        if isinstance(self.estimator_, nn.Module):
            self.estimator_.to(choose_device(self.device, float64=True))
            if callable(getattr(self.estimator_, "fit", None)):
                _call(self.estimator_, "fit", z[training])
            else:
                held_out = torch.arange(len(x))
        else:
            _seed(self.estimator_, self.seed)
            _call(self.estimator_, "fit", _table(z[training]))
        self._open(z[:1])
        return self._score(x[held_out]) if len(held_out) else x.new_zeros(0)

    def _open(self, z: Tensor) -> None:
        """Find out how the fitted estimator scores and explains, on one sample."""
        name = name_of(self.estimator_)
        self._inner: Detector | None = None
        if isinstance(self.estimator_, nn.Module):
            self.estimator_.eval()
            for parameter in self.estimator_.parameters():
                parameter.requires_grad_(False)
            try:
                reaches = bool(self._relevance(z, Pixels()).values.abs().sum() > 0)
                self.why_not = "" if reaches else "its score does not reach back to the image"
            except Exception as error:  # of anybody's code, under the rules of relevance
                self.why_not = str(getattr(error, "message", error)).split("\n")[0]
        else:
            from pfungst.anomaly.wrapped import Wrapped  # with scikit-learn

            with suppress(InputError):
                self._inner = Wrapped(self.estimator_, tuple(z.shape[1:]))._read()
            self.why_not = "" if self._inner else f"there is no explanation of {name}"

    def _score(self, x: Tensor) -> Tensor:
        z = self._front(x)
        if isinstance(self.estimator_, nn.Module):
            on, name = choose_device(self.device, float64=True), name_of(self.estimator_)
            with torch.no_grad():
                parts = [_module_scores(self.estimator_, p.to(on), name)[0] for p in z.split(self.batch_size)]
            return torch.cat(parts).to(x.device)
        if self._inner is not None:
            return self._inner._score(z)
        return estimator_scores(self.estimator_, _table(z)).to(x.device)

    def _relevance(self, z: Tensor, basis: Basis) -> Relevance:
        """Relevance of what comes behind the features."""
        if self._inner is not None:
            return self._inner._explain(z, basis)
        name, on = name_of(self.estimator_), choose_device(self.device, float64=True)
        z = z.to(on, torch.float32)
        with torch.no_grad():
            score, difference = _module_scores(self.estimator_, z, name)
        if difference is not None:
            values = basis.contract(difference, difference, ndim=z.ndim - 1)
            return Relevance(values, score, basis, score - values.flatten(1).sum(1))

        def pick(out: Any) -> Tensor:
            return _read_scores(out, z, name)[0]

        return attribute(self.estimator_, z, output=pick, composite="epsilon_plus", basis=basis)

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        if not self.explains:
            name = name_of(self.estimator_)
            raise InputError(f"{name} is not explained: {self.why_not}", "use its scores alone")
        read = basis if self.features is None else Pixels(channels=True)
        parts = [self._relevance(part, read) for part in self._front(x).split(self.batch_size)]
        values = torch.cat([p.values for p in parts]).to(x)
        score = torch.cat([p.score for p in parts]).to(x.device)
        if self.features is not None:
            values = basis.contract(x, gradient(self.features, x, values.flatten(1)), ndim=x.ndim - 1)
        return Relevance(values, score, basis, score - values.flatten(1).sum(1).to(score))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        raise InputError(f"{name_of(self.estimator)} is not ours to save", "save it as its library does")

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        raise InputError("a detector of another library is not ours to load", "load and wrap it")


def wrap_fitted(estimator: Any, shape: tuple[int, ...] | None = None) -> OwnDetector:
    """The detector of a fitted estimator or module, which is not fitted again.

    Args:
        shape: of a sample; by default any is taken.

    Raises:
        InputError: it has no score, or is not fitted.
    """
    made = OwnDetector(estimator, device="cpu")
    made.estimator_, made._inner = estimator, None
    made.why_not = (
        "" if isinstance(estimator, nn.Module) else f"there is no explanation of {name_of(estimator)}"
    )
    made.sample_shape_, made.condition_, made.training_scores_ = shape, None, np.zeros(0)
    made.threshold_ = float("inf")
    if isinstance(estimator, nn.Module):
        estimator.eval()
        return made
    _, method, _ = _scoring(estimator)
    final = _final(estimator)
    made.threshold_ = 0.0 if method == "decision_function" else float("inf")
    if _is_pyod(final):
        if getattr(final, "threshold_", None) is None:
            raise InputError(f"this {name_of(estimator)} is not fitted", "fit it, then wrap it")
        made.threshold_ = float(final.threshold_)
    elif _is_sklearn(estimator):
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        try:
            check_is_fitted(estimator)
        except NotFittedError:
            raise InputError(f"this {name_of(estimator)} is not fitted", "fit it, then wrap it") from None
    return made


def name_of(estimator: Any) -> str:
    """What to call an estimator: its class, of a pipeline the last one's too."""
    final = _final(estimator)
    name = type(estimator).__name__
    return name if final is estimator else f"{name} ending in {type(final).__name__}"


def _final(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    return steps[-1][1] if isinstance(steps, list) and steps and isinstance(steps[-1], tuple) else estimator


def _is_pyod(final: Any) -> bool:
    return any(c.__module__.startswith("pyod.") for c in type(final).__mro__)


def _is_sklearn(estimator: Any) -> bool:
    return any(c.__module__.startswith("sklearn.") for c in type(estimator).__mro__)


def _scoring(estimator: Any) -> tuple[Callable[[Any], Any], str, int]:
    """The function that scores, its name, and the sign that makes high mean abnormal.

    Raises:
        InputError: there is none.
    """
    final, name = _final(estimator), name_of(estimator)
    order = [("anomaly_score", 1), ("decision_function", 1) if _is_pyod(final) else ("", 0)]
    order += [("score", 1)] if not _is_sklearn(final) else []
    order += [("decision_function", -1), ("score_samples", -1)]
    from sklearn.base import is_classifier, is_regressor

    if _is_sklearn(final) and (is_classifier(final) or is_regressor(final)):
        order = order[:1]
    for method, sign in order:
        if method and callable(function := getattr(estimator, method, None)):
            return function, method, sign
    remedy = "give it a method score(X) with one number for each sample, high for abnormal ones"
    if getattr(final, "novelty", None) is False:
        remedy = "LocalOutlierFactor scores other samples than those it was fitted on with novelty=True"
    raise InputError(f"{name} has no score for new samples", remedy)


def check_scoring(estimator: Any) -> None:
    """Raise InputError where an estimator cannot be used as a detector, before it is fitted."""
    if isinstance(estimator, nn.Module):
        return
    if not callable(getattr(estimator, "fit", None)):
        raise InputError(f"{name_of(estimator)} has no method fit", "give it fit(X) and score(X)")
    if type(_final(estimator)).__name__ not in ("KernelDensity", "NearestNeighbors"):
        _scoring(estimator)


def estimator_scores(estimator: Any, table: np.ndarray) -> Tensor:
    """Scores (N,) float64 of rows (N, D), high = abnormal.

    Raises:
        InputError: the estimator raises, or gives something else than a number for each row.
    """
    _, method, sign = _scoring(estimator)
    found = np.asarray(_call(estimator, method, table))
    if found.size != len(table) or found.dtype.kind not in "fiub":
        raise InputError(
            f"{name_of(estimator)}.{method} gave {found.dtype} of shape {found.shape} for {len(table)} "
            "samples",
            "return one number for each sample",
        )
    return sign * torch.as_tensor(found.reshape(-1).astype(np.float64))


def _table(z: Tensor) -> np.ndarray:
    return z.flatten(1).detach().cpu().numpy()


def _call(estimator: Any, method: str, data: Any) -> Any:
    try:
        return getattr(estimator, method)(data)
    except PfungstError:
        raise
    except Exception as error:  # of anybody's code
        raise InputError(
            f"{name_of(estimator)}.{method} raised {type(error).__name__}: {error}",
            f"it was given {tuple(data.shape)} of {data.dtype}, images flattened for what is no torch module",
        ) from error


def _seed(estimator: Any, seed: int) -> None:
    if callable(getattr(estimator, "get_params", None)) and callable(getattr(estimator, "set_params", None)):
        with suppress(Exception):  # of PyOD, some parameters cannot be set
            states = [k for k in estimator.get_params() if k.rpartition("__")[2] == "random_state"]
            estimator.set_params(**dict.fromkeys(states, seed))


def _module_scores(module: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    try:
        out = module(x.float())
    except Exception as error:  # of anybody's code
        raise InputError(
            f"{name} raised {type(error).__name__} on images {tuple(x.shape)}: {error}",
            "it reads images (N, 3, H, W) in [0, 1]; see --size",
        ) from error
    return _read_scores(out, x, name)


def _read_scores(out: Any, x: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Scores (N,) of a module's output; of a reconstruction also x less it."""
    count = len(x)
    if (
        isinstance(out, dict)
        or (isinstance(out, tuple) and hasattr(out, "_fields"))
        or not hasattr(out, "shape")
    ):
        parts = out if isinstance(out, dict) else {k: getattr(out, k) for k in _SCORES if hasattr(out, k)}
        found = next((parts[k] for k in _SCORES if isinstance(parts.get(k), Tensor)), None)
        if found is None and isinstance(out, tuple | list) and out and isinstance(out[0], Tensor):
            found = out[0]
        out = found
    if isinstance(out, Tensor) and out.shape == x.shape:
        difference = x.float() - out
        return difference.flatten(1).square().sum(1), difference
    if isinstance(out, Tensor) and out.numel() == count and out.shape[:1] == (count,):
        return out.reshape(count).float(), None
    is_map = (
        isinstance(out, Tensor)
        and len(out) == count
        and (out.ndim == 3 or (out.ndim == 4 and out.shape[1] == 1))
    )
    if is_map:
        return out.flatten(1).amax(1).float(), None
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise InputError(
        f"{name} returned {shape} for images {tuple(x.shape)}",
        f"return scores (N,), a map (N, H, W), a reconstruction, or one of {', '.join(_SCORES)} by name",
    )


def made_by(thing: Any, spec: str, options: dict[str, Any]) -> Any:
    """What a function of the user's makes, or a thing itself.

    Raises:
        ConfigError: the function raises, or needs arguments.
    """
    is_made = isinstance(thing, nn.Module) or (not callable(thing) and not isinstance(thing, type))
    if is_made or (not inspect.isroutine(thing) and not isinstance(thing, type) and hasattr(thing, "fit")):
        return thing
    return called(thing, spec, options)
