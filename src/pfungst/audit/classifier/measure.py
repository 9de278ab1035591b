"""Accuracy, spurious score and what conditions change: as the model is and with SpuFix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import ClassEntry, ClassScores, Explained, Gain, Scores, SpuriousScores
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.result import Interval, Variant
from pfungst.errors import DataError
from pfungst.measure.proportions import better_order, paired_difference, wilson
from pfungst.spurious import FeatureStore, SpuFix, SpuriousScore, score_probabilities
from pfungst.spurious.answers import Answers

_GAINS = 3
AS_IS = Variant(condition=ORIGINAL)
MENDED = Variant(condition=ORIGINAL, mitigated=True)


class Scored(NamedTuple):
    """Spurious score of all classes that have spurious images, and of each."""

    whole: SpuriousScore
    classes: dict[int, SpuriousScores]


@dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
        scores: of the whole, by variant.
        classes: of each audited class, by index and variant.
        loss: of accuracy by SpuFix; gain: of mAUC.
        n_images: validation images; n_validation: by class index.
        chance: share of the validation images that a constant answer gets right.
        false_positives: share of other classes' images that are taken for a class.
        reordered: see :func:`~pfungst.measure.proportions.better_order`.
    """

    scores: dict[Variant, Scores]
    classes: dict[int, list[ClassScores]]
    loss: Interval
    gain: Interval | None
    n_images: int
    n_validation: dict[int, int]
    chance: float
    false_positives: dict[int, float]
    reordered: tuple[Interval, dict[int, int]] | None

    @property
    def as_is(self) -> Scores:
        return self.scores[AS_IS]

    @property
    def mended(self) -> Scores:
        """With SpuFix; where nothing was switched off, the model as it is."""
        return self.scores.get(MENDED, self.as_is)


def measure(
    study: Study, stores: Mapping[str, FeatureStore], fixed: SpuFix | None, classes: Sequence[int]
) -> Measured:
    """Measure the model, and with SpuFix where there is one.

    Args:
        study: what is audited.
        stores: features of the validation images by the name of the condition; of the images with only a
            feature under "spurious".
        fixed: the mended model.
        classes: indices of the audited classes.

    Raises:
        DataError: images were readable under one condition only.
    """
    models = {False: None} if fixed is None else {False: None, True: fixed}
    answers: dict[Variant, Answers] = {}
    for name in study.conditions:
        if stores[name].ids != stores[ORIGINAL].ids:
            raise DataError(f"other images could be read under {name} than under {ORIGINAL}", "repair them")
        for mitigated, fix in models.items():
            answers[Variant(condition=name, mitigated=mitigated)] = Answers(study.head, stores[name], fix)
    scored: dict[Variant, Scored] = {}
    for variant, fix in {AS_IS: None, MENDED: fixed}.items():
        if "spurious" in stores and variant in answers:
            spurious = Answers(study.head, stores["spurious"], fix)
            scored[variant] = score_spurious(answers[variant], spurious, study.config.seed)
    as_is, mended = answers[AS_IS], answers.get(MENDED, answers[AS_IS])
    gain = scored[MENDED if fixed else AS_IS].whole.gain_over(scored[AS_IS].whole) if scored else None
    counts = {k: int((as_is.labels == k).sum()) for k in classes}
    wrong = np.bincount(as_is.predicted[~as_is.right], minlength=study.head.linear.n_classes)
    others = {k: len(as_is.labels) - n for k, n in counts.items()}
    better = better_order(as_is.labels, as_is.predicted)
    shares = np.unique(as_is.labels, return_counts=True)[1] / len(as_is.labels)
    return Measured(
        scores={v: _scores(study, v, answers, scored.get(v)) for v in answers},
        classes={k: [_class_scores(k, v, a, scored.get(v)) for v, a in answers.items()] for k in classes},
        loss=Interval.model_validate(paired_difference(as_is.right, mended.right)),
        gain=None if gain is None else Interval.model_validate(gain),
        n_images=len(as_is.labels),
        n_validation=counts,
        chance=float(shares.max()) if len(shares) > 1 else 1 / study.head.linear.n_classes,
        false_positives={k: float(wrong[k] / n) for k, n in others.items() if n},
        reordered=None if better is None else (Interval.model_validate(better[0]), better[1]),
    )


def answers_of(
    study: Study, stores: Mapping[str, FeatureStore], fixed: SpuFix | None
) -> dict[str, np.ndarray]:
    """What was said of each validation image: ids, labels and predictions (N,) per variant."""
    first = stores[ORIGINAL]
    found = {"ids": np.array(first.ids), "labels": np.asarray(first.labels)}
    for name in study.conditions:
        for mitigated, fix in ({False: None} if fixed is None else {False: None, True: fixed}).items():
            key = Variant(condition=name, mitigated=mitigated).key
            found[f"predicted_{key}"] = Answers(study.head, stores[name], fix).predicted
    return found


def score_spurious(validation: Answers, features: Answers, seed: int) -> Scored:
    """The spurious score of images that show only a feature, against the validation images."""
    classes = sorted(set(features.labels.tolist()))
    whole = score_probabilities(validation.by_class(classes), features.by_class(classes), seed=seed)
    per = {
        k: SpuriousScores(
            auc=(c.auc, c.low, c.high),
            average_precision=c.average_precision,
            triggered=wilson(features.right[features.labels == k]),
            n_spurious=c.n_negative,
            n_validation=c.n_positive,
        )
        for k, c in whole.classes.items()
    }
    return Scored(whole, per)


def entry(
    explained: Explained,
    measured: Measured,
    judged: dict[int, list[int]] | None,
    fixed: dict[int, list[int]],
    transferred: bool = False,
) -> ClassEntry:
    """A class with its scores; `transferred`: `fixed` are components of another model."""
    k = explained.index
    counted = measured.n_validation[k]
    return ClassEntry(
        **dict(explained),
        n_validation=counted,
        judged=None if judged is None else judged.get(k, []),
        fixed=[] if transferred else fixed.get(k, []),
        transferred=fixed.get(k, []) if transferred else [],
        false_positives=measured.false_positives.get(k),
        scores=measured.classes[k],
        notes=[] if counted else ["the class has no validation images, so nothing was measured on it"],
    )


def _scores(
    study: Study, variant: Variant, answers: Mapping[Variant, Answers], scored: Scored | None
) -> Scores:
    after = answers[variant]
    found: dict[str, Any] = {}
    if variant.condition != ORIGINAL:
        before = answers[Variant(condition=ORIGINAL, mitigated=variant.mitigated)]
        found["fall"] = paired_difference(before.right, after.right)
        found["gains"] = _gains(study, before, after)
        found["rises"] = _rises(study, before, after)
    elif scored is not None:
        found["mauc"] = (scored.whole.mauc, *scored.whole.interval)
        found["published_map"] = scored.whole.published_mAP
        found["triggered"] = float(np.mean([s.triggered.value for s in scored.classes.values()]))
    return Scores(variant=variant, accuracy=wilson(after.right), among=_among(after), **found)


def _among(answers: Answers) -> float | None:
    """Accuracy with answers limited to the classes that occur; None where there are no others."""
    classes = torch.from_numpy(np.unique(answers.labels))
    if len(classes) in (1, len(answers.mean)):
        return None
    best = torch.cat([z[:, classes.to(z.device)].argmax(1).cpu() for z in answers.logits()])
    return float((classes[best].numpy() == answers.labels).mean())


def _class_scores(k: int, variant: Variant, answers: Answers, scored: Scored | None) -> ClassScores:
    own = answers.labels == k
    accuracy = wilson(answers.right[own]) if own.any() else None
    spurious = None if scored is None else scored.classes.get(k)
    return ClassScores(variant=variant, accuracy=accuracy, spurious=spurious)


def _gains(study: Study, before: Answers, after: Answers) -> list[Gain]:
    """The classes that take most images over, by predictions and then by mean probability."""
    counts = [np.bincount(a.predicted, minlength=len(a.mean)) for a in (before, after)]
    order = np.lexsort((before.mean - after.mean, counts[0] - counts[1]))
    chosen = [k for k in order[:_GAINS].tolist() if counts[1][k] > counts[0][k]]
    return [_gain(study, before, after, k) for k in chosen]


def _rises(study: Study, before: Answers, after: Answers) -> Gain:
    """The class whose log probability rises most, in the median over the images."""
    p, q = (torch.cat([z.log_softmax(1).cpu() for z in a.logits()]) for a in (before, after))
    return _gain(study, before, after, int((q - p).median(0).values.argmax()))


def _gain(study: Study, before: Answers, after: Answers, index: int) -> Gain:
    p, q = (a.probability(np.full(len(a.store), index)).astype(np.float64) for a in (before, after))
    return Gain(
        index=index,
        name=study.outputs.name(index),
        predicted=(int((before.predicted == index).sum()), int((after.predicted == index).sum())),
        probability=(float(p.mean()), float(q.mean())),
        times=float(np.median(q / p.clip(1e-30))),
    )
