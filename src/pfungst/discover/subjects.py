"""What a discovery is about: the evidence for a class, or the score of an anomaly detector, in one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.spurious.evidence import Witness, relevance
from pfungst.spurious.heads import FeatureHead, logits_of
from pfungst.spurious.inpaint import gaussian

if TYPE_CHECKING:
    from pfungst.anomaly import Detector

What = Literal["class", "series", "texts", "normal", "defect"]  # series, texts: a class of these
Heat = Callable[[Tensor], Tensor]  # images (n, C, H, W) → (n, H, W) ≥ 0
Answer = tuple[Tensor, Tensor]  # evidence (n,) in float64, and whether the model says so (n,) boolean


class Words(NamedTuple):
    """How proofs speak of a subject."""

    unit: str  # of evidence
    targets: str  # what things are put into
    carried: str  # what they carry a share of
    kept: str  # what is left without them
    noun: str = "images"  # what is explained, in the plural


WORDS: dict[What, Words] = {
    "class": Words("nats", "other classes", "the way to the class", "still recognised"),
    "series": Words("nats", "other classes", "the way to the class", "still recognised", "series"),
    "texts": Words("nats", "other classes", "the way to the class", "still recognised", "texts"),
    "normal": Words("of the way to the threshold", "training images", "the way to the threshold", "normal"),
    "defect": Words(
        "of the way to the threshold", "normal images", "the way to the threshold", "still flagged"
    ),
}


class Subject(Protocol):
    """What is explained, clustered and proved.

    Attributes:
        index: tells subjects of one discovery apart.
        what: a class, or the score of normal or of defective images.
        device: where images go.
    """

    @property
    def index(self) -> int:
        """See above."""

    @property
    def what(self) -> What:
        """See above."""

    @property
    def device(self) -> torch.device:
        """See above."""

    @property
    def n_models(self) -> int:
        """The audited model, then its witnesses."""

    def answer(self, number: int, x: Tensor) -> Answer:
        """What one of the models says of images (n, C, H, W)."""

    def way(self, own: np.ndarray, others: np.ndarray) -> float:
        """How much evidence is the whole, given that in images of the subject and in others."""

    def content(self, contrast: np.ndarray | None, batch_size: int) -> Heat:
        """Where in images lies what raises the evidence: all of it, or along a contrast (D,) of ψ."""

    def seen_by(self, number: int, batch_size: int) -> Heat:
        """Where a witness sees evidence."""


@dataclass(frozen=True)
class ClassSubject:
    """The log odds of a class, in nats, of a classifier or of an encoder with a probe.

    Args:
        head: the model. class_: index of the class. witnesses: other models that know it.
    """

    head: FeatureHead
    index: int
    witnesses: Sequence[Witness] = ()
    what: What = "class"

    @property
    def device(self) -> torch.device:
        """See :class:`Subject`."""
        return self.head.device

    @property
    def n_models(self) -> int:
        """See :class:`Subject`."""
        return 1 + len(self.witnesses)

    def answer(self, number: int, x: Tensor) -> Answer:
        """Evidence (n,), and whether the model says so (n,)."""
        model, k = self._model(number)
        logits = logits_of(model(x)).double()
        rest = torch.cat([logits[:, :k], logits[:, k + 1 :]], 1)
        return logits[:, k] - rest.logsumexp(1), logits[:, k] > rest.max(1).values

    def way(self, own: np.ndarray, others: np.ndarray) -> float:
        """How much evidence is the whole."""
        return max(float(own.mean() - others.mean()), 0.1)

    def content(self, contrast: np.ndarray | None, batch_size: int) -> Heat:
        """Where what raises the evidence lies."""
        linear = self.head.linear
        along = linear.psi(torch.ones(1, linear.n_features), self.index)[0].to(self.device)
        if contrast is not None:
            direction = torch.from_numpy(contrast).to(along)
            along = along * direction / direction.norm().clamp_min(1e-12)
        score = lambda z: self.head.features(z) @ along
        return lambda x: relevance(score, x.to(self.device), batch_size=batch_size).clamp_min(0).cpu()

    def seen_by(self, number: int, batch_size: int) -> Heat:
        """Where a witness sees evidence."""
        model, k = self._model(number)

        def log_p(z: Tensor) -> Tensor:
            logits = logits_of(model(z))
            return logits[:, k] - logits.logsumexp(1)

        return lambda x: relevance(log_p, x.to(self.device), 2, batch_size).clamp_min(0).cpu()

    def _model(self, number: int) -> tuple[nn.Module, int]:
        if number == 0:
            return self.head.model, self.index
        return self.witnesses[number - 1].model, self.witnesses[number - 1].class_


@dataclass(frozen=True)
class ScoreSubject:
    """The score of an anomaly detector on images known to be normal, or defective.

    Evidence is 0 at the median score of the training images and 1 at the threshold. In normal images there is
    no object: whatever raises their score is none.

    Args:
        detector: fitted. index: as of :class:`Subject`. what: "normal" or "defect".
        threshold: score above which an image is flagged.
    """

    detector: Detector
    index: int
    what: What
    threshold: float

    @property
    def device(self) -> torch.device:
        """See :class:`Subject`."""
        return torch.device("cpu")  # detectors bring images to their own

    @property
    def n_models(self) -> int:
        """See :class:`Subject`."""
        return 1

    def answer(self, number: int, x: Tensor) -> Answer:
        """Evidence (n,), and whether the model says so (n,)."""
        zero = float(np.median(self.detector.training_scores_))
        scores: Any = self.detector.anomaly_score(x).double().cpu()
        return (scores - zero) / max(self.threshold - zero, 1e-12), scores > self.threshold

    def way(self, own: np.ndarray, others: np.ndarray) -> float:
        """How much evidence is the whole."""
        return 1.0

    def content(self, contrast: np.ndarray | None, batch_size: int) -> Heat:
        """Where what raises the evidence lies."""

        def heat(x: Tensor) -> Tensor:
            parts = [self.detector.explain(p).values.float().cpu() for p in x.split(batch_size)]
            found = torch.cat(parts)
            found = found if found.ndim == 3 else found.sum(1)
            return gaussian(found[:, None], x.shape[-1] / 32)[:, 0].clamp_min(0)

        return heat

    def seen_by(self, number: int, batch_size: int) -> Heat:
        """Where a witness sees evidence."""
        raise AssertionError("a detector has no witnesses")
