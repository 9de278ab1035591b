"""A bag of detectors: the mean of their standardised scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from pfungst.anomaly.base import Detector, register
from pfungst.conditions import Size
from pfungst.errors import InputError
from pfungst.relevance import Basis, Relevance

Members = Sequence[Detector] | Sequence[tuple[str, Detector]]


@register("bag")
@dataclass(eq=False, repr=False)
class Bag(Detector):
    """Mean of the scores of M detectors, standardised on normal data that none of them saw:
    o = mean_m (o_m − μ_m) / σ_m.

    Relevance is the members', times (1/M)/σ_m; the constant −(1/M) Σ_m μ_m/σ_m belongs to no input and is
    part of the bias (Kauffmann et al. 2020, section 5).

    Args:
        detectors: the members, or (name, member) pairs. They are cloned.
        validation: share of the training samples that standardises the members and sets `threshold_`.
        quantile: of the held-out scores, at which the threshold is set.
        seed: of the split.

    Attributes:
        members_: fitted detectors by name. means_, stds_: μ_m and σ_m by name.
        constant_: −(1/M) Σ_m μ_m/σ_m.
    """

    nested: ClassVar[str | None] = "detectors"

    detectors: Members = ()
    validation: float = 0.2
    quantile: float = 0.95
    seed: int = 0

    @property
    def explains(self) -> bool:
        """Whether all members can be explained."""
        return all(member.explains for member in getattr(self, "members_", {}).values())

    def check_basis(self, basis: Basis) -> None:
        for member in self._named().values():
            member.check_basis(basis)

    def check_size(self, size: Size) -> None:
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
        if len(x) < 4:
            raise InputError(f"{len(x)} samples are too few for a bag", "pass at least four normal samples")
        training, held_out = (x[rows] for rows in self._split(len(x), least=2, spare=2))
        count = len(held_out)
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
        total: list[Tensor] = []
        for name, member in self.members_.items():
            found = member.explain(x, basis)
            factor = 1 / (len(self.members_) * self.stds_[name])
            own = [t.detach().double().cpu() * factor for t in (found.values, found.score, found.bias)]
            total = [a + b for a, b in zip(total, own, strict=True)] if total else own
        values, score, bias = total
        return Relevance(values, score + self.constant_, basis, bias + self.constant_)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"detectors": self.members_, "means": self.means_, "stds": self.stds_}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.members_, self.means_, self.stds_ = facts["detectors"], facts["means"], facts["stds"]
        self.detectors = list(self.members_.items())
