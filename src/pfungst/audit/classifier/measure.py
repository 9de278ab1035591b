"""Accuracy, spurious score and what conditions change, from stored features: as the model is and with SpuFix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import ClassEntry, ClassScores, Explained, Gain, Scores, SpuriousScores
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.result import Interval, Variant
from pfungst.errors import DataError
from pfungst.measure import limits
from pfungst.spurious import FeatureHead, FeatureStore, SpuFix, SpuriousScore, score_probabilities

_DRAWS = 2000
_GAINS = 3
_CHUNK = 4096

Spurious = tuple[SpuriousScore, dict[int, SpuriousScores]]


@dataclass(frozen=True)
class Answers:
    """What a classifier says to stored images: the head is linear, with or without SpuFix.

    Attributes:
        head, store, fixed: see :mod:`pfungst.spurious`.
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
        """Softmax probability (N,) of one class index for each image."""
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
        """Mean probability (K,) of each class."""
        return sum(p.softmax(1).double().sum(0).cpu().numpy() for p in self.logits()) / len(self.store)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    def by_class(self, classes: Sequence[int]) -> dict[int, np.ndarray]:
        """{class: probabilities of it in its images}."""
        return {k: self.own[self.labels == k] for k in classes}


@dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
        scores: of the whole, by variant.
        classes: of each class with images of its own, by index and variant.
        loss: of accuracy by SpuFix; gain: of mAUC.
        n_images: validation images; n_validation: by class index.
        chance: share of the validation images that a constant answer gets right.
        false_positives: share of other classes' images that are taken for a class.
        reordered: share of images that another order of classes gets right, and that order; None where none is better.
    """

    scores: list[Scores]
    classes: dict[int, list[ClassScores]]
    loss: Interval
    gain: Interval | None
    n_images: int
    chance: float
    n_validation: dict[int, int]
    false_positives: dict[int, float]
    reordered: tuple[Interval, dict[int, int]] | None


def measure(
    study: Study, stores: Mapping[str, FeatureStore], fixed: SpuFix | None, classes: Sequence[int]
) -> Measured:
    """Measure the model, and with SpuFix where there is one.

    Args:
        study: what is audited.
        stores: features of the validation images by the name of the condition; of the images with only a feature
            under "spurious".
        fixed: the mended model.
        classes: indices of the audited classes.

    Raises:
        DataError: images were readable under one condition only.
    """
    seed, models = study.config.seed, {False: None} if fixed is None else {False: None, True: fixed}
    answers: dict[Variant, Answers] = {}
    for name in study.conditions:
        if stores[name].ids != stores[ORIGINAL].ids:
            raise DataError(
                f"other validation images could be read under {name} than under {ORIGINAL}",
                "repair the images",
            )
        for mitigated, fix in models.items():
            answers[Variant(condition=name, mitigated=mitigated)] = Answers(study.head, stores[name], fix)
    spurious: dict[bool, Spurious] = {}
    if "spurious" in stores:
        for mitigated, fix in models.items():
            first = answers[Variant(condition=ORIGINAL, mitigated=mitigated)]
            spurious[mitigated] = score_spurious(first, Answers(study.head, stores["spurious"], fix), seed)
    as_is = answers[Variant(condition=ORIGINAL)]
    mended = answers[Variant(condition=ORIGINAL, mitigated=fixed is not None)]
    gain = None
    if spurious:
        ends = spurious[fixed is not None][0].gain_over(spurious[False][0])
        gain = interval(ends[0], ends[1:])
    counts = {k: int((as_is.labels == k).sum()) for k in classes}
    wrong = np.bincount(as_is.predicted[~as_is.right], minlength=study.head.linear.n_classes)
    others = {k: len(as_is.labels) - n for k, n in counts.items()}
    return Measured(
        scores=[_scores(study, v, answers, spurious) for v in answers],
        classes={k: [_class_scores(k, v, a, spurious) for v, a in answers.items()] for k in classes},
        loss=fall(as_is.right, mended.right, seed),
        gain=gain,
        n_images=len(as_is.labels),
        chance=chance(as_is.labels, study.head.linear.n_classes),
        n_validation=counts,
        false_positives={k: float(wrong[k] / n) for k, n in others.items() if n},
        reordered=better_order(as_is.labels, as_is.predicted, study.head.linear.n_classes),
    )


def entry(
    explained: Explained, measured: Measured, judged: dict[int, list[int]] | None, fixed: dict[int, list[int]]
) -> ClassEntry:
    """A class with its scores."""
    k = explained.index
    counted = measured.n_validation[k]
    return ClassEntry(
        **dict(explained),
        n_validation=counted,
        judged=None if judged is None else judged.get(k, []),
        fixed=fixed.get(k, []),
        false_positives=measured.false_positives.get(k),
        scores=measured.classes[k],
        notes=[] if counted else ["the class has no validation images, so nothing was measured on it"],
    )


def _scores(
    study: Study, variant: Variant, answers: Mapping[Variant, Answers], spurious: Mapping[bool, Spurious]
) -> Scores:
    after = answers[variant]
    if variant.condition != ORIGINAL:
        before = answers[Variant(condition=ORIGINAL, mitigated=variant.mitigated)]
        return Scores(
            variant=variant,
            accuracy=rate(after.right),
            fall=fall(before.right, after.right, study.config.seed),
            gains=gains(study, before, after),
        )
    if variant.mitigated not in spurious:
        return Scores(variant=variant, accuracy=rate(after.right))
    whole, per = spurious[variant.mitigated]
    return Scores(
        variant=variant,
        accuracy=rate(after.right),
        mauc=interval(whole.mauc, whole.interval),
        published_map=whole.published_mAP,
        triggered=float(np.mean([s.triggered.value for s in per.values()])),
    )


def _class_scores(
    k: int, variant: Variant, answers: Answers, spurious: Mapping[bool, Spurious]
) -> ClassScores:
    own = answers.labels == k
    scored = spurious.get(variant.mitigated) if variant.condition == ORIGINAL else None
    return ClassScores(
        variant=variant,
        accuracy=rate(answers.right[own]) if own.any() else None,
        spurious=None if scored is None else scored[1].get(k),
    )


def rate(hits: np.ndarray) -> Interval:
    """Share of True with its 95 % Wilson interval."""
    n, p, z = len(hits), float(np.mean(hits)), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(value=p, low=max(0.0, middle - half), high=min(1.0, middle + half))


def fall(before: np.ndarray, after: np.ndarray, seed: int = 0) -> Interval:
    """Accuracy before minus after on the same images, with a paired 95 % bootstrap interval.

    An image's difference is −1, 0 or 1, so the images are drawn by drawing how often each value occurs.
    """
    change = before.astype(int) - after.astype(int)
    n = len(change)
    shares = np.array([(change == v).mean() for v in (-1, 0, 1)])
    draws = np.random.default_rng(seed).multinomial(n, shares / shares.sum(), size=_DRAWS) @ [-1, 0, 1] / n
    return interval(float(change.mean()), np.quantile(draws, [0.025, 0.975]).tolist())


def chance(labels: np.ndarray, n_classes: int) -> float:
    """Accuracy of a constant answer; where all images are of one class, that of a random one."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(shares.max()) if len(shares) > 1 else 1 / n_classes


def gains(study: Study, before: Answers, after: Answers) -> list[Gain]:
    """The classes that take most images over, by predictions and then by mean probability."""
    k = study.head.linear.n_classes
    counts = [np.bincount(a.predicted, minlength=k) for a in (before, after)]
    order = np.lexsort((before.mean - after.mean, counts[0] - counts[1]))
    found = []
    for index in order[:_GAINS].tolist():
        if counts[1][index] <= counts[0][index]:
            break
        p, q = (a.probability(np.full(len(a.store), index)).astype(np.float64) for a in (before, after))
        found.append(
            Gain(
                index=index,
                name=study.outputs.name(index),
                predicted=(int(counts[0][index]), int(counts[1][index])),
                probability=(float(p.mean()), float(q.mean())),
                times=float(np.median(q / p.clip(1e-30))),
            )
        )
    return found


def better_order(
    labels: np.ndarray, predicted: np.ndarray, n_outputs: int
) -> tuple[Interval, dict[int, int]] | None:
    """Share of images that another order of classes gets right, and {class: output} in it; None where none is clearly better.

    The best assignment of classes to outputs is found on each half of the images and measured on the other, so that it is
    no better by chance. Clearly: intervals apart, and by :data:`~pfungst.measure.limits.REORDERED` or more.
    """
    from scipy.optimize import linear_sum_assignment

    classes, rows = np.unique(labels, return_inverse=True)
    outputs, columns = np.unique(np.r_[classes, predicted], return_inverse=True)
    columns = columns[len(classes) :]

    def assign(part: np.ndarray) -> np.ndarray:
        """Output of each class, as a column, on some images; its own where that is as good."""
        table = np.zeros((len(classes), len(outputs)))
        np.add.at(table, (rows[part], columns[part]), 1.0)
        table[np.arange(len(classes)), np.searchsorted(outputs, classes)] += 1e-3
        return linear_sum_assignment(table, maximize=True)[1]

    half = np.zeros(len(labels), bool)
    for k in range(len(classes)):
        half[np.flatnonzero(rows == k)[::2]] = True
    hits = np.zeros(len(labels), bool)
    for part in (half, ~half):
        hits[~part] = assign(part)[rows[~part]] == columns[~part]
    here, there = rate(predicted == labels), rate(hits)
    assert here.high is not None
    assert there.low is not None
    if there.low <= here.high or there.value - here.value < limits.REORDERED:
        return None
    best = outputs[assign(np.ones(len(labels), bool))]
    if (best != classes).sum() < 2:  # one class taken for another output is a confusion, not an order
        return None
    return there, {int(k): int(output) for k, output in zip(classes, best, strict=True)}


def score_spurious(validation: Answers, features: Answers, seed: int) -> Spurious:
    """Spurious score of all classes that have spurious images, and of each."""
    classes = sorted(set(features.labels.tolist()))
    total = score_probabilities(validation.by_class(classes), features.by_class(classes), seed=seed)
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
