"""What a classifier says to stored images, from their features alone: as it is, or with SpuFix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pfungst.spurious.features import FeatureStore
from pfungst.spurious.heads import FeatureHead
from pfungst.spurious.spufix import SpuFix

_CHUNK = 4096


@dataclass(frozen=True)
class Answers:
    """Answers to the N images of a store; the head is linear, so the model need not run.

    Attributes:
        head: of the model that made the store.
        fixed: the model's SpuFix, or None for the model as it is.
    """

    head: FeatureHead
    store: FeatureStore
    fixed: SpuFix | None = None

    def logits(self) -> Iterator[Tensor]:
        """Logits (n, K) of chunks of the images."""
        linear = self.head.linear
        for start in range(0, len(self.store), _CHUNK):
            chunk = self.store.features[start : start + _CHUNK].astype(np.float32)
            phi = torch.from_numpy(chunk).to(linear.weight.device)
            logits = linear.logits(phi)
            if self.fixed is not None and len(self.fixed.head.class_fix):
                correction = self.fixed.head
                beta = correction.beta(phi) / linear.temperature
                if correction.clip:
                    beta = beta.clamp_min(0)
                logits = logits.index_add(1, correction.class_fix, -beta.to(logits))
            yield logits

    def probability(self, classes: np.ndarray) -> np.ndarray:
        """Softmax probability (N,) of one class for each image; `classes` (N,) are indices."""
        found, start = [], 0
        for logits in self.logits():
            rows = torch.from_numpy(classes[start : start + len(logits)].astype(np.int64)).to(logits.device)
            found.append(logits.softmax(1).gather(1, rows[:, None])[:, 0].cpu().numpy())
            start += len(logits)
        return np.concatenate(found)

    @property
    def labels(self) -> np.ndarray:
        """Class index (N,) of each image."""
        return np.asarray(self.store.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Class index (N,) that the classifier gives."""
        return np.concatenate([logits.argmax(1).cpu().numpy() for logits in self.logits()])

    @cached_property
    def own(self) -> np.ndarray:
        """Probability (N,) of the image's own label."""
        return self.probability(self.labels)

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean probability (K,) of each class over the images."""
        total = torch.stack([z.softmax(1).double().sum(0) for z in self.logits()]).sum(0)
        return total.cpu().numpy() / len(self.store)

    @property
    def right(self) -> np.ndarray:
        """Whether each image (N,) is answered with its label."""
        return self.predicted == self.labels

    def by_class(self, classes: Sequence[int]) -> dict[int, np.ndarray]:
        """{class: (n,) probabilities of it in its images}."""
        return {k: self.own[self.labels == k] for k in classes}
