"""What detectors on networks share: the backbone, explanations through the engine, files."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from pfungst.anomaly.base import Detector
from pfungst.anomaly.inputs import check_finite
from pfungst.anomaly.store import _FORMAT, describe, read_folder, rebuild, write_folder
from pfungst.device import choose_device
from pfungst.errors import CheckpointError, ConfigError, InputError
from pfungst.relevance import Basis, Composite, Gradient, Relevance, attribute, composite

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class NetworkDetector(Detector):
    """A detector whose features are a network's.

    Subclasses name the parameters that hold modules in `_modules`, and give what they learnt as tensors
    (:meth:`_tensors`) and as JSON (:meth:`_facts`).
    """

    _modules: ClassVar[tuple[str, ...]] = ("features",)

    quantile: float
    device: str
    batch_size: int

    def _tensors(self) -> dict[str, Tensor]:
        """What was learnt, by name."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """What was learnt besides tensors, as JSON."""
        return {}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Become fitted from what :meth:`_tensors` and :meth:`_facts` gave."""
        raise NotImplementedError

    def _check_quantile(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise InputError(f"quantile {self.quantile} is not in [0, 1]", "for example 0.95")
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size} is not positive", "for example 16")

    def _score(self, x: Tensor) -> Tensor:
        parts = [self._score_batch(part) for part in x.split(self.batch_size)]
        return check_finite(torch.cat(parts), x.dtype)

    def _score_batch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        parts = [self._explain_batch(part, basis) for part in x.split(self.batch_size)]
        return Relevance(
            torch.cat([p.values for p in parts]),
            torch.cat([p.score for p in parts]),
            basis,
            torch.cat([p.bias for p in parts]),
        )

    def _explain_batch(self, x: Tensor, basis: Basis) -> Relevance:
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the fitted detector to the folder `path`: detector.json and weights.safetensors."""
        check_is_fitted(self)
        params = self.get_params(deep=False)
        header = {
            "format": _FORMAT,
            "class": type(self).__name__,
            "params": {k: v for k, v in params.items() if not isinstance(v, nn.Module)},
            "modules": {k: describe(params[k]) for k in self._modules if isinstance(params[k], nn.Module)},
            "sample_shape": list(self.sample_shape_),
            "condition": None if self.condition_ is None else str(self.condition_),
            "threshold": self.threshold_,
            "facts": self._facts(),
        }
        tensors = self._tensors() | {"training_scores": torch.as_tensor(self.training_scores_)}
        write_folder(Path(path), header, tensors)

    @classmethod
    def load(cls, path: str | Path, features: nn.Module | None = None, **modules: nn.Module) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: the folder.
            features: the module in front, needed only where it is not one of `pfungst.mitigate`'s layers.
            modules: other modules that were given to the constructor, by parameter; their weights come
                from the folder.
        """
        folder = Path(path)
        header, tensors = read_folder(folder)
        if features is not None:
            modules["features"] = features
        return cls._from_folder(folder, header, tensors, modules)

    @classmethod
    def _from_folder(
        cls, folder: Path, header: dict[str, Any], tensors: dict[str, Tensor], modules: dict[str, nn.Module]
    ) -> Self:
        from pfungst.anomaly.store import _find

        kind = _find(cls, header["class"])
        if kind is None:
            raise CheckpointError(
                f"{folder} holds a {header['class']}, not a {cls.__name__}", "load it as that"
            )
        known = inspect.signature(kind.__init__).parameters
        params = {k: _tuples(v) for k, v in header["params"].items() if k in known}
        for name, described in header["modules"].items():
            try:
                params[name] = rebuild(described, modules.get(name), folder)
            except CheckpointError as error:
                raise CheckpointError(error.message, f"pass the module: load(path, {name}=...)") from None
        detector = kind(**params)
        detector.sample_shape_ = tuple(header["sample_shape"])
        detector.n_features_in_ = math.prod(detector.sample_shape_)
        detector.condition_ = header["condition"]
        detector.threshold_ = header["threshold"]
        detector.training_scores_ = tensors.pop("training_scores").numpy()
        where = choose_device(detector.device)
        try:
            detector._restore({k: t.to(where) for k, t in tensors.items()}, header["facts"])
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights of {folder} do not fit: {error}", "pass the same modules"
            ) from None
        return detector


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_TOO_SMALL = ("Output size is too small", "Kernel size can't be greater", "mat1 and mat2 shapes")


class Normalise(nn.Module):
    """(x − mean) / std per channel; a grey image serves a network of three channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)
        if not bool((self.std > 0).all()):
            raise InputError(f"std {std} is not positive", "use the standard deviation of the pixels")

    def forward(self, x: Tensor) -> Tensor:
        channels = max(len(self.mean), len(self.std))
        if x.shape[1] == 1 and channels == 3:
            x = x.expand(-1, 3, -1, -1)
        if channels not in (1, x.shape[1]):
            raise InputError(
                f"images of {x.shape[1]} channels, normalised as {channels}", "give mean and std per channel"
            )
        return (x - self.mean.to(x)) / self.std.to(x)


class Chain(nn.Module):
    """normalise · front · network: what runs between an image in [0, 1] and its features."""

    def __init__(self, normalise: nn.Module, front: nn.Module | None, network: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.front = front if front is not None else nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        x = self.front(self.normalise(x))
        try:
            return self.network(x)
        except RuntimeError as error:
            if not any(hint in str(error) for hint in _TOO_SMALL):
                raise
            raise InputError(
                f"images of {x.shape[-2]} × {x.shape[-1]} pixels are too small for the backbone: {error}",
                "use larger images (size), or a backbone for small ones, such as letters for 28 pixels",
            ) from error


def chain_composite(rules: str | Composite) -> Composite:
    """The rules, with the linear layers in front of the network passed by plain gradient × input."""
    return composite(rules).assign("front*", Gradient())


def load_backbone(
    backbone: str | nn.Module, checkpoint: str | Path | None, seed: int, weights: bool = True
) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """The network, and the mean and standard deviation its input is normalised by.

    Args:
        backbone: a module that reads images normalised as ImageNet's; an `Encoder` (which knows its own
            normalisation); or a name: "resnet18" of torchvision, what `pfungst.encoders.load` understands, or
            "letters", the CNN of the digit recipe, trained here and now on rendered letters (28 px).
        checkpoint: weights; without them those of a named network are random, drawn from `seed`.
    """
    from pfungst.encoders import Encoder, load

    if backbone == "letters":
        from pfungst.anomaly.letters import letters_backbone

        return letters_backbone(checkpoint, weights), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if isinstance(backbone, str):
        backbone = load(
            backbone if ":" in backbone else f"torchvision:{backbone}", checkpoint=checkpoint, seed=seed
        )
    elif checkpoint is not None:
        raise ConfigError(
            "a checkpoint for a backbone that is a module", "load the module's weights yourself"
        )
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"{type(backbone).__name__} is no network for images", "name a convolutional network"
        )
    if isinstance(backbone, Encoder):
        settings = backbone.preprocessing
        return copy.deepcopy(backbone.features).eval(), settings.mean, settings.std
    return copy.deepcopy(backbone).eval(), *_IMAGENET


def attribute_weighted(
    chain: nn.Module,
    x: Tensor,
    pick: Callable[[Any], Tensor],
    score: Tensor,
    rules: str | Composite,
    basis: Basis,
) -> Relevance:
    """Relevance of a weighted sum of the chain's outputs, compared with the score it stands for.

    Args:
        pick: the chain's output → (N,), the sum Σ_k R_k φ_k / stab(φ_k).
        score: (N,), what is explained; where it differs from the sum, the difference is reported as bias.
    """
    found = attribute(chain, x, output=pick, composite=chain_composite(rules), basis=basis)
    return Relevance(found.values, score, basis, score - found.values.flatten(1).sum(1))


def slopes(relevance: Tensor, features: Tensor, dims: int = 1) -> Tensor:
    """R_k / stab(φ_k): constants that turn features into relevance; zero where a feature is off.

    Args:
        relevance, features: (N, ...) of one shape.
        dims: number of leading axes that number the samples.
    """
    scale = features.abs().flatten(dims).amax(-1)
    tiny = (1e-6 * scale).clamp_min(torch.finfo(features.dtype).tiny)
    tiny = tiny.reshape(*tiny.shape, *([1] * (features.ndim - dims)))
    return relevance / torch.where(features >= 0, features + tiny, features - tiny)


def as_numpy(scores: Tensor) -> np.ndarray:
    return scores.detach().double().cpu().numpy()
