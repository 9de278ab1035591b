"""A bag of detectors: the mean of their standardised scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pfungst.anomaly.base import Detector
from pfungst.anomaly.store import _FORMAT, read_folder, write_folder
from pfungst.errors import CheckpointError, InputError
from pfungst.files import whole
from pfungst.relevance import Basis, Relevance

Members = Sequence[Detector] | Sequence[tuple[str, Detector]]


class Bag(Detector):
    """o = mean_m (o_m − μ_m) / σ_m over M detectors, standardised on normal data that none of them saw.

    Relevance is the members', times (1/M)/σ_m; the constant −(1/M) Σ_m μ_m/σ_m belongs to no input and is part of
    the bias (Kauffmann et al. 2020, section 5).

    Args:
        detectors: the members, or (name, member) pairs. They are cloned.
        validation: share of the training samples that standardises the members and sets `threshold_`.
        quantile: of the held-out scores, at which the threshold is set.
        seed: of the split.

    Attributes:
        members_: fitted detectors by name. means_, stds_: μ_m and σ_m by name.
        constant_: −(1/M) Σ_m μ_m/σ_m.
    """

    def __init__(
        self, detectors: Members = (), validation: float = 0.2, quantile: float = 0.95, seed: int = 0
    ) -> None:
        self.detectors = detectors
        self.validation = validation
        self.quantile = quantile
        self.seed = seed

    def check_size(self, size: int) -> None:
        for member in self._named().values():
            member.check_size(size)

    def _named(self) -> dict[str, Detector]:
        named: dict[str, Detector] = {}
        for member in self.detectors:
            name, detector = member if isinstance(member, tuple) else (type(member).__name__, member)
            if not isinstance(detector, Detector):
                raise InputError(f"{detector!r} is no detector", "wrap detectors of others first: wrap(...)")
            if name in named:
                name = f"{name}-{sum(n.startswith(name) for n in named) + 1}"
            named[name] = detector
        if not named:
            raise InputError("a bag without detectors", "for example Bag([KDE(), Autoencoder()])")
        return named

    def _fit(self, x: Tensor) -> Tensor:
        named = self._named()
        if not 0 < self.validation < 1:
            raise InputError(f"validation {self.validation} is not in (0, 1)", "for example 0.2")
        count = max(2, round(self.validation * len(x)))
        if len(x) - count < 2:
            raise InputError(f"{len(x)} samples are too few for a bag", "pass at least four normal samples")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed)).to(x.device)
        held_out, training = x[order[:count]], x[order[count:]]
        self.members_: dict[str, Detector] = {}
        self.means_: dict[str, float] = {}
        self.stds_: dict[str, float] = {}
        total = torch.zeros(count, dtype=torch.float64)
        for name, detector in named.items():
            member = self.members_[name] = clone(detector).fit(training)
            scores = torch.as_tensor(member.anomaly_score(held_out)).double().cpu()
            scale = float(scores.abs().max()) or 1.0  # squares of scores may not be representable
            self.means_[name], self.stds_[name] = float(scores.mean()), scale * float((scores / scale).std())
            if not self.stds_[name] > 0:
                raise InputError(
                    f"{name} gives one score to all {count} held-out samples",
                    "leave it out or give it more data",
                )
            total += (scores - self.means_[name]) / self.stds_[name] / len(named)
        return total

    @property
    def constant_(self) -> float:
        return -float(np.mean([self.means_[n] / self.stds_[n] for n in self.members_]))

    def _score(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), dtype=torch.float64)
        for name, member in self.members_.items():
            scores = torch.as_tensor(member.anomaly_score(x)).double().cpu()
            total += (scores - self.means_[name]) / self.stds_[name] / len(self.members_)
        return total.to(x.device)

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        values, score, bias = (
            None,
            torch.zeros(len(x), dtype=torch.float64),
            torch.zeros(len(x), dtype=torch.float64),
        )
        for name, member in self.members_.items():
            part = member.explain(x, basis)
            factor = 1 / (len(self.members_) * self.stds_[name])
            own = part.values.detach().double().cpu() * factor
            values = own if values is None else values + own
            score += part.score.double().cpu() * factor
            bias += part.bias.double().cpu() * factor
        assert values is not None
        return Relevance(values, score + self.constant_, basis, bias + self.constant_)

    def save(self, path: str | Path) -> None:
        """Write the bag to the folder `path`, each member in a folder of its own."""
        check_is_fitted(self)
        folder = Path(path)
        header = {
            "format": _FORMAT,
            "class": "Bag",
            "params": {"validation": self.validation, "quantile": self.quantile, "seed": self.seed},
            "members": list(self.members_),
            "means": self.means_,
            "stds": self.stds_,
            "sample_shape": list(self.sample_shape_),
            "condition": None if self.condition_ is None else str(self.condition_),
            "threshold": self.threshold_,
        }
        if folder.exists() and any(folder.iterdir()) and not (folder / "detector.json").exists():
            raise InputError(f"{folder} exists and is not a saved detector", "choose another folder")
        with whole(folder) as made:
            write_folder(made, header, {"training_scores": torch.as_tensor(self.training_scores_)})
            for i, member in enumerate(self.members_.values()):
                member.save(made / f"member-{i}")

    @classmethod
    def load(cls, path: str | Path, features: Any = None) -> Self:
        """Read what :meth:`save` wrote."""
        header, tensors = read_folder(Path(path))
        return cls._from_folder(Path(path), header, tensors, {})

    @classmethod
    def _from_folder(
        cls, folder: Path, header: dict[str, Any], tensors: dict[str, Tensor], modules: Any
    ) -> Self:
        if header["class"] != "Bag":
            raise CheckpointError(f"{folder} holds a {header['class']}, not a Bag", "load it as that")
        members = [Detector.load(folder / f"member-{i}") for i in range(len(header["members"]))]
        bag = cls(list(zip(header["members"], members, strict=True)), **header["params"])
        bag.members_ = dict(zip(header["members"], members, strict=True))
        bag.means_, bag.stds_ = header["means"], header["stds"]
        bag.sample_shape_ = tuple(header["sample_shape"])
        bag.n_features_in_ = int(np.prod(bag.sample_shape_))
        bag.condition_ = header["condition"]
        bag.threshold_ = header["threshold"]
        bag.training_scores_ = tensors["training_scores"].numpy()
        return bag
