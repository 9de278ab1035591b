"""Accuracy and spurious score from stored features, before and after SpuFix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pfungst.audit.classifier.result import SpuriousScores
from pfungst.audit.result import Interval
from pfungst.spurious import FeatureHead, FeatureStore, SpuFix, SpuriousScore, score_probabilities

_DRAWS = 2000


@dataclass
class Answers:
    """What a classifier says to stored images.

    Attributes:
        labels: (N,) class index.
        predicted: (N,) class index.
        own: (N,) softmax probability of the image's own label.
    """

    labels: np.ndarray
    predicted: np.ndarray
    own: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    def probabilities(self, classes: Sequence[int]) -> dict[int, np.ndarray]:
        return {k: self.own[self.labels == k] for k in classes}


def answer(head: FeatureHead, store: FeatureStore, fixed: SpuFix | None = None, chunk: int = 4096) -> Answers:
    """Answers from features alone: the head is linear, with or without SpuFix."""
    linear = head.linear
    predicted, own = [], []
    labels = np.asarray(store.labels)
    for start in range(0, len(store), chunk):
        phi = torch.from_numpy(store.features[start : start + chunk].astype(np.float32)).to(
            linear.weight.device
        )
        logits = linear.logits(phi)
        if fixed is not None and len(fixed.head.class_fix):
            correction = fixed.head
            beta = correction.beta(phi) / linear.temperature
            if correction.clip:
                beta = beta.clamp_min(0)
            logits = logits.index_add(1, correction.class_fix, -beta.to(logits))
        predicted.append(logits.argmax(1).cpu().numpy())
        rows = torch.from_numpy(labels[start : start + chunk].astype(np.int64)).to(logits.device)
        own.append(logits.softmax(1).gather(1, rows[:, None])[:, 0].cpu().numpy())
    return Answers(labels, np.concatenate(predicted), np.concatenate(own))


def rate(hits: np.ndarray) -> Interval:
    """Share of True with its 95 % Wilson interval."""
    n, p, z = len(hits), float(np.mean(hits)), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(value=p, low=max(0.0, middle - half), high=min(1.0, middle + half))


def loss(before: np.ndarray, after: np.ndarray, seed: int = 0) -> Interval:
    """Accuracy before minus after on the same images, with a paired 95 % bootstrap interval.

    An image's difference is −1, 0 or 1, so the images are drawn by drawing how often each value occurs.
    """
    change = before.astype(int) - after.astype(int)
    n = len(change)
    shares = np.array([(change == v).mean() for v in (-1, 0, 1)])
    draws = np.random.default_rng(seed).multinomial(n, shares / shares.sum(), size=_DRAWS) @ [-1, 0, 1] / n
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value=float(change.mean()), low=float(low), high=float(high))


def spurious(
    validation: Answers, features: Answers, seed: int
) -> tuple[SpuriousScore, dict[int, SpuriousScores]]:
    """Spurious score of all classes that have spurious images, and of each."""
    classes = sorted(set(features.labels.tolist()))
    total = score_probabilities(validation.probabilities(classes), features.probabilities(classes), seed=seed)
    per = {
        k: SpuriousScores(
            auc=Interval(value=c.auc, low=c.low, high=c.high),
            average_precision=c.average_precision,
            triggered=rate(features.right[features.labels == k]),
            n_spurious=c.n_negative,
            n_validation=c.n_positive,
        )
        for k, c in total.classes.items()
    }
    return total, per


def interval(value: float, ends: Sequence[float]) -> Interval:
    return Interval(value=value, low=ends[0], high=ends[1])
