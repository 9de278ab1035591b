"""What the probes of a study reach: per group and variant, by where images come from; where errors fall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import confusion_matrix

from pfungst import measure
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.result import Interval, Variant
from pfungst.audit.similarity.prepare import AS_IS, ERASED, OPPOSITE, Study
from pfungst.audit.similarity.result import Confusion, Erased, Fall, ProbeScores, Provenance, Subgroup
from pfungst.measure import limits
from pfungst.measure.intervals import interval
from pfungst.probes import Plan, predict
from pfungst.similarity import shared_likeness

_RESAMPLES = 300
_FEW = 5  # units of a group within a label, from which ranks are compared


def score(study: Study) -> list[ProbeScores]:
    """Scores of every variant, over all images and per group.

    Conditions are held against the original images, the mended encoder against the same condition.
    """
    result: list[ProbeScores] = []
    for column, name, index in _places(study):
        for variant, predicted in study.found.predicted.items():
            against = Variant(condition=variant.condition) if variant.mitigated else AS_IS
            before = None if variant == AS_IS else against
            result.append(_score_one(study, predicted[:, index], index, variant, column, name, before))
    order = list(study.found.predicted)
    return sorted(result, key=lambda s: order.index(s.variant))


def _places(study: Study) -> Iterator[tuple[str, str, np.ndarray]]:
    """Column, group and numbers of the tested images; all of them first."""
    tested = study.plan.tested
    yield "", "", tested
    for column, values in study.columns.items():
        for name in np.unique(values[tested]).tolist():
            yield column, name, tested[values[tested] == name]


def _score_one(
    study: Study,
    predicted: np.ndarray,
    index: np.ndarray,
    variant: Variant,
    column: str,
    group: str,
    against: Variant | None,
) -> ProbeScores:
    y = study.plan.labels[index]
    correct = (predicted == y).astype(float)  # (S, n)
    classes, code = np.unique(y, return_inverse=True)
    member = np.eye(len(classes))[code]  # (n, C)
    per_class = (correct @ member) / member.sum(0)
    units = study.plan.units[index]
    counted = [len(set(units[y == c].tolist())) for c in classes.tolist()]
    recalls = [measure.wilson_of(float(p), n) for p, n in zip(per_class.mean(0), counted, strict=True)]
    capped = measure.capped_weights(y)
    weights = _unit_weights(units)
    rebalanced = (weights * capped) @ correct.T / np.maximum(weights @ capped, 1e-12)[:, None]
    rates: dict[str, Interval | None] = {"fpr": None, "fnr": None}
    for label, recall in zip(classes.tolist() if study.positive is not None else [], recalls, strict=False):
        wrong = Interval(value=1 - recall.value, low=1 - recall.high, high=1 - recall.low)
        rates["fnr" if label == study.positive else "fpr"] = wrong
    known: dict[str, Any] = {}
    if against is not None:
        was = study.found.predicted[against][:, index] == y
        change = measure.degradation(y, was, correct, units=units)
        known = {"mark": change.mark, "change": change.change, "p_value": change.p}
    return ProbeScores(
        variant=variant,
        column=column,
        group=group,
        n=len(index),
        counts=dict(Counter(y.tolist())),
        accuracy=measure.mean_share(recalls),
        rebalanced=_interval(float((correct @ capped / capped.sum()).mean()), rebalanced.mean(1)),
        per_seed=per_class.mean(1).tolist(),
        **rates,
        **known,
    )


def _unit_weights(units: np.ndarray, seed: int = 0) -> np.ndarray:
    """(R, n) bootstrap weights that draw whole units."""
    _, code = np.unique(units, return_inverse=True)
    k = int(code.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=_RESAMPLES)
    return drawn[:, code].astype(float)


def _interval(value: float, draws: np.ndarray) -> Interval:
    if np.isfinite(draws).sum() < 20:
        return Interval(value=float(value))
    _, low, high = interval(value, draws)
    return Interval(value=float(value), low=min(low, float(value)), high=max(high, float(value)))


def confusion(study: Study, variant: Variant) -> Confusion:
    """The confusion matrix of the first repetition, and the class that errors fall into."""
    tested = study.plan.tested
    labels = study.plan.labels[tested]
    said, before = (study.found.predicted[v][0][tested] for v in (variant, AS_IS))
    into = measure.confusion_share(labels, said)
    turned = (before == labels) & (said != labels)
    return Confusion(
        matrix=confusion_matrix(labels, said, labels=study.plan.classes).tolist(),
        into=into.label,
        share=into.share,
        errors=into.errors,
        turned=int(turned.sum()),
        turned_share=float((said[turned] == into.label).mean()) if turned.any() else 0.0,
    )


# --- groups ----------------------------------------------------------------------------------------------


def subgroups(study: Study) -> list[Subgroup]:
    """Every group against all other tested images of the same classes, whole and class by class.

    Tests are over images; P values are adjusted over all that are made (Holm), of two groups of a column
    once.
    """
    tested = study.plan.tested
    labels, units = study.plan.labels[tested], study.plan.units[tested]
    said = study.found.predicted[AS_IS][:, tested]
    correct = (said == labels).mean(0)
    places = [(column, name, np.isin(tested, index)) for column, name, index in _places(study) if column]
    found = [measure.subgroup_fall(correct, labels, inside, units) for _, _, inside in places]
    two = {c for c, v in study.columns.items() if len(set(v[tested].tolist())) == 2}
    raw: dict[tuple[str, str, str], float] = {}
    for (column, name, _), falls in zip(places, found, strict=True):
        for label, fall in {"": falls.whole, **falls.classes}.items() if falls else ():
            raw.setdefault((column, "" if column in two else name, label), fall.p)
    adjusted = dict(zip(raw, measure.holm(list(raw.values())), strict=True))
    result = []
    for (column, name, inside), falls in zip(places, found, strict=True):
        whole, classes = None, []
        if falls is not None:
            key = column, "" if column in two else name
            mixed = np.isin(labels, list(falls.classes))
            whole = _fall(falls.whole, list(falls.classes), adjusted[*key, ""], said, labels, inside, mixed)
            for c, f in falls.classes.items():
                classes.append(_fall(f, [c], adjusted[*key, c], said, labels, inside, labels == c))
        group = Subgroup(column=column, group=name, n=int(inside.sum()), whole=whole, classes=classes)
        alike = shared_likeness(study.original[tested], labels, inside) if group.falls else None
        if alike is not None:
            excess = Interval.model_validate(alike.excess)
            more = {"alike": alike.inside, "alike_outside": alike.outside, "alike_excess": excess}
            group = group.model_copy(update=more)
        result.append(group)
    return result


def _fall(
    found: measure.Fall,
    classes: list[str],
    p: float,
    said: np.ndarray,
    labels: np.ndarray,
    inside: np.ndarray,
    used: np.ndarray,
) -> Fall:
    """A fall with its mark, and the class that images of the group are wrongly taken for more than others."""
    large = "↓↓" if found.fall.value >= limits.LARGE_FALL else "↓"
    rates = {
        c: [float(((said == c) & (labels != c))[:, used & side].mean()) for side in (inside, ~inside)]
        for c in np.unique(labels).tolist()
    }
    into = max(rates, key=lambda c: rates[c][0] - rates[c][1])
    more = rates[into][0] > rates[into][1]
    return Fall.copied(
        found,
        classes=classes,
        p_value=p,
        mark=large if p < limits.P_GROUP and found.fall.value >= limits.FALL else "",
        into=into if more else None,
        into_inside=rates[into][0] if more else 0.0,
        into_outside=rates[into][1] if more else 0.0,
    )


def erased(study: Study) -> Erased | None:
    """Whether images of different classes are alike because of the text in them."""
    if study.text is None:
        return None
    tested = study.plan.tested
    inside = np.array([len(study.text(study.source.items[n])) > 0 for n in tested])
    found = [
        shared_likeness(study.embeddings[v][tested], study.plan.labels[tested], inside, resamples=2)
        for v in (AS_IS, ERASED, OPPOSITE)
    ]
    if any(f is None for f in found):
        return None
    as_is, without, opposite = (f.inside - f.outside for f in found if f is not None)
    share = float(inside.mean())
    return Erased(images=share, alike=as_is, alike_erased=without, alike_opposite=opposite)


# --- provenance ------------------------------------------------------------------------------------------


def follow(study: Study) -> list[Provenance]:
    """For every column: does the score for a class follow the group instead of the class?

    With more than two classes each is tested against the rest, and the one that parts most is reported. P, of
    a score that knows the group beyond the class, is adjusted over all classes and columns that were tried.
    """
    tested = study.plan.tested
    y, units = study.plan.labels[tested], study.plan.units[tested]
    scores = study.found.scores[AS_IS][:, tested].mean(0)
    correct = (study.found.predicted[AS_IS][:, tested] == y).mean(0)
    led = {c: _leading(study, scores, y, values[tested]) for c, values in study.columns.items()}
    tried = 1 if len(study.plan.classes) == 2 else len(study.plan.classes)
    raw = [
        tried * beyond_label(scores[:, study.plan.classes.index(label)], y, study.columns[c][tested], units)
        for c, (_, label) in led.items()
    ]
    adjusted = measure.holm([min(p, 1.0) for p in raw])
    result = []
    for (column, (p, label)), p_value in zip(led.items(), adjusted, strict=True):
        values = study.columns[column]
        groups = values[tested]
        names = np.unique(groups).tolist()
        within = [
            np.mean([correct[(groups == g) & (y == c)].mean() for c in np.unique(y[groups == g])])
            for g in names
            if len(np.unique(y[groups == g])) > 1
        ]
        common = {g: Counter(y[groups == g].tolist()).most_common(1)[0][0] for g in names}
        rule = np.array([common[g] for g in groups.tolist()])
        readable, chance = _readable(study, values)
        result.append(
            Provenance.copied(
                p,
                column=column,
                label=label,
                accuracy_pooled=float(np.mean([correct[y == c].mean() for c in np.unique(y)])),
                accuracy_within=float(np.mean(within)) if within else None,
                by_group_alone=float(measure.balanced_accuracy(y, rule)),
                group_readable=readable,
                group_chance=chance,
                p_value=float(p_value),
                follows=p.follows_group and float(p_value) < limits.P_PROVENANCE,
                reasons=list(p.reasons),
            )
        )
    return result


def beyond_label(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, units: np.ndarray) -> float:
    """P that a score knows no more of the group than the label tells.

    Kruskal and Wallis's H of the groups of five or more within every label, summed: χ² with the sum of their
    degrees of freedom. Images of one unit in one group of a label count once, with their mean.

    Args:
        scores: (N,). labels, groups, units: (N,).
    """
    total, freedom = 0.0, 0
    for label in np.unique(labels):
        samples = []
        for group in np.unique(groups[labels == label]):
            rows = (labels == label) & (groups == group)
            _, code = np.unique(units[rows], return_inverse=True)
            samples.append(np.bincount(code, scores[rows]) / np.bincount(code))
        samples = [x for x in samples if len(x) >= _FEW]
        if len(samples) > 1 and np.ptp(np.concatenate(samples)) > 0:
            total += float(stats.kruskal(*samples).statistic)
            freedom += len(samples) - 1
    return float(stats.chi2.sf(total, freedom)) if freedom else 1.0


def _leading(
    study: Study, scores: np.ndarray, y: np.ndarray, groups: np.ndarray
) -> tuple[measure.Provenance, str]:
    """The class whose score parts most along the groups; every class of the plan is among those tested."""

    def key(found: tuple[measure.Provenance, str]) -> tuple[bool, float, float]:
        p = found[0]
        gap = abs(p.auroc_pooled - (p.auroc_within or p.auroc_pooled))
        return p.follows_group, gap, p.eta2_group - p.eta2_label

    classes = [study.positive] if study.positive else [c for c in study.plan.classes if (y == c).sum() > 0]
    tested = [
        (measure.provenance(scores[:, study.plan.classes.index(c)], y == c, groups, resamples=300), c)
        for c in classes
    ]
    return max(tested, key=key)


def _readable(study: Study, groups: np.ndarray) -> tuple[float, float]:
    """Class-balanced accuracy of a probe for the group, units kept apart, and its chance level."""
    units = study.plan.units
    counts = {g: len(set(units[groups == g].tolist())) for g in np.unique(groups).tolist()}
    kept = [g for g, n in counts.items() if n >= 2]
    if len(kept) < 2:
        return float("nan"), float("nan")
    index = np.flatnonzero(np.isin(groups, kept))
    part = Plan.make(groups[index], units[index], how="folds", folds=3, seeds=[study.config.seed])
    if any(len(set(part.labels[train].tolist())) < 2 for train, _ in part.rounds[0]):
        return float("nan"), float("nan")  # units of several groups: a fold may leave one group to learn from
    found = predict(part, {ORIGINAL: study.original[index]}, ORIGINAL, study.config.probe)
    return float(measure.balanced_accuracy(part.labels, found.predicted[ORIGINAL][0])), 1 / len(kept)
