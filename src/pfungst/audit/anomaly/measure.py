"""Fit with every seed, score both conditions, and what follows from the scores: rates, marks, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst import measure
from pfungst.audit.anomaly.mend import filtered
from pfungst.audit.anomaly.prepare import Study
from pfungst.audit.anomaly.result import Entry, Group, Provenance, Scored, Scores
from pfungst.audit.result import Interval, Variant

if TYPE_CHECKING:
    from pfungst.anomaly import Detector

RATES = {  # names of the result → names of `measure`
    "auroc": "auroc",
    "f1": "f1",
    "f1_balanced": "balanced_f1",
    "fnr": "fnr",
    "fpr": "fpr",
    "balanced_accuracy": "balanced_accuracy",
}
CONDITIONS = ("original", "deployed")
ORIGINAL, DEPLOYED = Variant(condition="original"), Variant(condition="deployed")
MENDED = Variant(condition="deployed", mitigated=True)
MENDED_ORIGINAL = Variant(condition="original", mitigated=True)
COMPARED_WITH = {DEPLOYED: ORIGINAL, MENDED: DEPLOYED, MENDED_ORIGINAL: ORIGINAL}
RESAMPLES = 300  # bootstrap resamples per seed
FIT_SHARE = 0.8  # of the normal training images, drawn anew for every seed


@dataclass(frozen=True)
class Run:
    """What the seeds gave for one variant.

    Attributes:
        detector, scores, threshold: of the first seed; scores (T,).
        flags: (seeds, T) bool, what each seed flags.
        found: per seed, the rates of :data:`RATES` with their intervals.
        labels: (T,) 1 for a defect.
    """

    detector: Detector
    scores: np.ndarray
    threshold: float
    flags: np.ndarray
    found: list[dict[str, measure.Interval]]
    labels: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """(T,) bool."""
        return self.scores > self.threshold

    def per_seed(self) -> dict[str, list[float]]:
        return {rate: [of[name].value for of in self.found] for rate, name in RATES.items()}

    def rates(self) -> dict[str, Interval]:
        """Means over seeds of each rate and its interval's ends; FNR and FPR, shares, have Wilson's."""
        means = {rate: np.mean([of[name] for of in self.found], axis=0) for rate, name in RATES.items()}
        for rate, label in (("fnr", 1), ("fpr", 0)):
            means[rate] = measure.wilson_of(float(means[rate][0]), int((self.labels == label).sum()))
        return {rate: Interval.model_validate(tuple(mean)) for rate, mean in means.items()}

    def change_from(self, before: Run) -> measure.Change:
        """Of F1, on the same images."""
        return measure.degradation(self.labels, before.flags, self.flags, measure.f1_of_flags)


def repeat(study: Study, model: str, mitigation: nn.Module | None = None) -> dict[Variant, Run]:
    """Fit with every seed; score both conditions with the same fitted detector and the same threshold.

    A mitigation is a fixed filter in front of the detector, so images are filtered once for all seeds; the
    detector that is kept and explained, that of the first seed, has the filter inside.

    Args:
        model: the detector, see :func:`pfungst.anomaly.detector_from_spec`.
    """
    config, conditions = study.config, CONDITIONS
    seen = {"train": study.train, "outliers": study.outliers, **{c: study.images(c) for c in conditions}}
    later = seen
    if mitigation is not None and config.seeds > 1:
        later = {name: filtered(mitigation, x) if len(x) else x for name, x in seen.items()}
    fits = [_fit(study, model, mitigation, i, later if i else seen) for i in range(config.seeds)]

    first, y, rates = fits[0], study.labels, tuple(RATES.values())
    runs = {}
    for c in conditions:
        flags = np.stack([of.scores[c] > of.threshold for of in fits])
        found = [
            measure.bootstrap_scores(y, of.scores[c], of.threshold, rates, RESAMPLES, seed=seed)
            for seed, of in enumerate(fits, config.seed)
        ]
        run = Run(first.detector, first.scores[c], first.threshold, flags, found, y)
        runs[Variant(condition=c, mitigated=mitigation is not None)] = run
    return runs


@dataclass(frozen=True)
class _Fit:
    detector: Detector
    threshold: float
    scores: dict[str, np.ndarray]


def _fit(study: Study, model: str, mitigation: nn.Module | None, index: int, seen: dict[str, Tensor]) -> _Fit:
    """The detector of one seed; `seen` are the images, which only the first seed filters itself."""
    config, train = study.config, seen["train"]
    seed = config.seed + index
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
    n_fit = len(train) if config.protocol == "published" else max(2, round(FIT_SHARE * len(train)))
    detector = study.detectors.fitted(
        model, train[order[:n_fit]], seen["outliers"], mitigation, inside=index == 0, seed=seed
    )

    def score(images: Tensor) -> np.ndarray:
        return detector.anomaly_score(images).double().cpu().numpy()

    scores = {name: score(images) for name, images in seen.items() if name in CONDITIONS}
    normal = [detector.training_scores_]
    normal += [score(train[order[n_fit:]])] if n_fit < len(train) else []
    known = {"labels": study.labels, "scores": scores["original"], "normal_scores": np.concatenate(normal)}
    threshold = measure.choose_threshold(config.protocol, **known, quantile=config.quantile)
    return _Fit(detector, threshold, scores)


def scores(study: Study, runs: dict[Variant, Run], heat: dict[Variant, Tensor]) -> list[Scores]:
    """The scores of every variant; the Clever Hans score where defects have masks.

    Args:
        heat: (T, S, S) relevance of the test images per variant.
    """
    result = []
    for variant, run in runs.items():
        hans = None
        if heat and study.masked.any() and study.test.masks is not None:
            maps, masks = heat[variant].cpu().numpy(), study.test.masks.numpy()
            hans = Interval.copied(measure.clever_hans_score(study.labels, run.scores, maps, masks))
        base = COMPARED_WITH.get(variant)
        change = None if base is None else run.change_from(runs[base])
        result.append(_compared(variant, run.rates(), hans, run.per_seed(), change))
    return result


def mean_scores(entries: list[Entry]) -> dict[str, Scored]:
    """Mean over categories for every detector and variant."""
    models = dict.fromkeys(e.model for e in entries)
    return {model: _mean([e for e in entries if e.model == model]) for model in models}


def _mean(entries: list[Entry]) -> Scored:
    """Intervals are over the images that were drawn in each category; the categories themselves are given."""
    if len(entries) == 1:
        return Scored(scores=entries[0].scores)
    result = []
    for i, first in enumerate(entries[0].scores):
        column = [e.scores[i] for e in entries]
        rates = {rate: _mean_rate([getattr(s, rate) for s in column]) for rate in RATES}
        per_seed = {rate: np.mean([s.per_seed[rate] for s in column], axis=0).tolist() for rate in RATES}
        known = [s.clever_hans.value for s in column if s.clever_hans is not None]
        hans = Interval(value=float(np.mean(known))) if known else None
        changes = [s.compared for s in column if s.compared is not None]
        change = measure.mean_change(changes) if changes else None
        result.append(_compared(first.variant, rates, hans, per_seed, change))
    return Scored(scores=result)


def _mean_rate(values: list[Interval]) -> Interval:
    found = [
        measure.Interval(v.value, v.value if v.low is None else v.low, v.value if v.high is None else v.high)
        for v in values
    ]
    return Interval.model_validate(measure.mean_share(found))


def _compared(
    variant: Variant,
    rates: dict[str, Interval],
    hans: Interval | None,
    per_seed: dict[str, list[float]],
    change: measure.Change | None,
) -> Scores:
    """Scores with the mark of F1 against what it was before, if anything."""
    known: dict[str, Any] = {}
    if change is not None:
        known = {"mark": change.mark, "p_value": change.p, "change": change.change, "spread": change.spread}
    return Scores(variant=variant, **rates, clever_hans=hans, per_seed=per_seed, **known)


def provenance(study: Study, scores: np.ndarray) -> list[Provenance]:
    """Whether the scores (T,) follow a group column rather than the label, for each with several groups."""
    result = []
    for column, values in study.columns.items():
        if len(np.unique(values)) < 2:
            continue
        found = measure.provenance(scores, study.labels, values)
        groups = [
            Group.copied(
                g, name=str(g.group) or "(none)", n_good=g.normal, n_defect=g.abnormal, mean_score=g.mean
            )
            for g in found.groups
        ]
        follows = {"follows": found.follows_group, "reasons": list(found.reasons), "groups": groups}
        result.append(Provenance.copied(found, column=column, **follows))
    return result
