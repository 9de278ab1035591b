"""Probes on embeddings: splits that keep units together, repeated fits, accuracies with intervals and marks."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedGroupKFold

from pfungst import measure
from pfungst.audit.result import Interval
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import ORIGINAL
from pfungst.audit.similarity.result import Confusion, ProbeScores, Provenance
from pfungst.data import Item
from pfungst.errors import ConfigError, DataError, PfungstWarning
from pfungst.probes import LinearSVM, LogisticRegression
from pfungst.probes.linear import Probe
from pfungst.suggest import suggest

UNITS = ("patient", "patientid", "patient_id", "subject", "subject_id")
_NEGATIVE = ("good", "normal", "other", "negative", "none", "no", "false", "0", "healthy")
_RESAMPLES = 300
_FIT_SHARE = 0.8

Embeddings = Mapping[str, np.ndarray]


@dataclass
class Plan:
    """Who is trained on and who is tested, for every repetition.

    Attributes:
        labels: (N,) str.
        units: (N,) int; images of one unit are never on both sides.
        kept_together: the column the units come from.
        rounds: per repetition pairs of index arrays (train, test); the tests of one repetition do not overlap.
        split: "given" or "folds".
        positive: of two classes the one false positives are counted for.
        notes: fallbacks that were taken.
    """

    labels: np.ndarray
    units: np.ndarray
    kept_together: str | None
    rounds: list[list[tuple[np.ndarray, np.ndarray]]]
    split: str
    positive: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return np.unique(self.labels).tolist()


def usable(items: Sequence[Item], config: SimilarityConfig) -> tuple[list[Item], list[str]]:
    """Items of classes with at least two units, and notes about the classes that are left out.

    Raises:
        DataError: fewer than two such classes.
    """
    column = unit_column(items, config.keep_together)
    units = np.array([i.groups.get(column, i.id) if column else i.id for i in items])
    labels = np.array([i.label or "" for i in items])
    alone = [c for c in np.unique(labels).tolist() if len(set(units[labels == c].tolist())) < 2]
    kept = [i for i in items if i.label not in alone]
    left = len(set(labels.tolist()) - set(alone))
    if left < 2:
        raise DataError(
            f"{len(items)} images have {left} class{'es' if left != 1 else ''} with two or more "
            f"{column + 's' if column else 'images'}",
            "a probe needs two classes with images to train and to test on; choose the label with --labels",
        )
    notes = [f"class {c!r} has one {column or 'image'} only and was left out" for c in alone]
    return kept, notes


def unit_column(items: Sequence[Item], wanted: str) -> str | None:
    """The column whose values stay on one side of a split. Raises ConfigError where it does not exist."""
    known = dict.fromkeys(name for item in items for name in item.groups)
    if wanted == "none":
        return None
    if wanted == "auto":
        return next((name for name in UNITS if name in known), None)
    if wanted not in known:
        same = next((name for name in UNITS if name in known), None) if wanted in UNITS else None
        if same is None:
            raise ConfigError(
                f"the data have no column {wanted!r} to keep together",
                suggest(wanted, known, "columns"),
            )
        return same
    return wanted


def make_plan(items: Sequence[Item], config: SimilarityConfig) -> Plan:
    """Splits for every repetition.

    With the data's own split each repetition fits on another 80 % of the training units; with folds each
    repetition deals the units into folds anew, and every image is tested once.
    """
    labels = np.array([i.label for i in items])
    column = unit_column(items, config.keep_together)
    names = [i.groups.get(column) or i.id for i in items] if column else [i.id for i in items]
    _, units = np.unique(names, return_inverse=True)
    classes = np.unique(labels).tolist()
    split = np.array([i.split or "" for i in items])
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    covered = set(labels[train].tolist()) >= set(labels[test].tolist())
    complete = covered and len(set(labels[test].tolist())) > 1
    how = config.split if config.split != "auto" else "given" if complete else "folds"
    if how == "given" and not complete:
        raise DataError(
            f"the data name {len(train)} training and {len(test)} test images, which do not cover two classes",
            "pass --split folds",
        )
    notes = []
    if how == "given" and (shared := set(units[train].tolist()) & set(units[test].tolist())):
        raise DataError(
            f"{len(shared)} values of {column} are in both training and test images of the data",
            "pass --split folds, or --keep-together none",
        )
    seeds = [config.seed + i for i in range(config.seeds)]
    rounds: list[list[tuple[np.ndarray, np.ndarray]]]
    if how == "given":
        rounds = [[(_draw(train, units, labels, seed), test)] for seed in seeds]
    else:
        folds = min(config.folds, *(len(set(units[labels == c].tolist())) for c in classes))
        if folds < config.folds:
            notes.append(
                f"{folds} folds instead of {config.folds}: the smallest class has only {folds} units"
            )
        rounds = [
            list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, units))
            for seed in seeds
        ]
    return Plan(labels, units, column, rounds, how, _positive(classes, config.positive), notes)


def _draw(train: np.ndarray, units: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """80 % of the training units, with at least one image of every class."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(units[train]))
    chosen = set(names[: max(2, round(_FIT_SHARE * len(names)))].tolist())
    picked = np.array([u in chosen for u in units[train]])
    for label in np.unique(labels[train]):
        if not (picked & (labels[train] == label)).any():
            picked |= labels[train] == label
    return train[picked]


def _positive(classes: list[str], wanted: str | None) -> str | None:
    if wanted is not None and wanted not in classes:
        raise ConfigError(f"no image has the label {wanted!r}", f"labels: {', '.join(classes[:20])}")
    if len(classes) != 2:
        return None
    if wanted is not None:
        return wanted
    plain = [c for c in classes if c.lower() not in _NEGATIVE and not c.lower().startswith(("not ", "no "))]
    return plain[-1] if plain else classes[1]


def fit_probe(name: str, x: np.ndarray, labels: np.ndarray) -> Probe:
    """The probe "svm" or "logreg", fitted."""
    probe = LinearSVM() if name == "svm" else LogisticRegression()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PfungstWarning)
        return probe.fit(x, labels)


@dataclass
class Predictions:
    """What the probes said, per variant.

    Attributes:
        predicted: (S, N) str, "" where an image was not tested.
        scores: (S, N, classes) evidence for each class, NaN where not tested.
        weights: (classes, K) of the first probe that was fitted.
    """

    predicted: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    weights: np.ndarray

    @property
    def tested(self) -> np.ndarray:
        """(N,) images that were tested."""
        return next(iter(self.predicted.values()))[0] != ""


def predict(plan: Plan, embeddings: Embeddings, fit_on: str, probe: str) -> Predictions:
    """Fit on one variant's training images, predict every variant's test images, for all repetitions."""
    classes = plan.classes
    n, width = len(plan.labels), max(map(len, classes))
    shape = (len(plan.rounds), n)
    predicted = {v: np.full(shape, "", dtype=f"<U{width}") for v in embeddings}
    scores = {v: np.full((*shape, len(classes)), np.nan) for v in embeddings}
    weights = np.zeros((len(classes), embeddings[fit_on].shape[1]))
    for s, folds in enumerate(plan.rounds):
        for number, (train, test) in enumerate(folds):
            model = fit_probe(probe, embeddings[fit_on][train], plan.labels[train])
            places = [classes.index(c) for c in model.classes_]
            if s == number == 0:
                weights[places] = (
                    model.coef_ if len(places) > 2 else np.concatenate([-model.coef_, model.coef_])
                )
            for variant, values in embeddings.items():
                found = model.decision_function(values[test])
                found = np.stack([-found, found], 1) if found.ndim == 1 else found
                predicted[variant][s, test] = model.classes_[found.argmax(1)]
                scores[variant][s][np.ix_(test, np.asarray(places, dtype=int))] = found
                absent = [i for i in range(len(classes)) if i not in places]
                scores[variant][s][np.ix_(test, np.asarray(absent, dtype=int))] = found.min()
    return Predictions(predicted, scores, weights)


# --- scores ----------------------------------------------------------------------------------------------


def score(
    plan: Plan, found: Predictions, columns: Mapping[str, np.ndarray], compared: Mapping[str, str]
) -> list[ProbeScores]:
    """Scores of every variant, over all images and per group; `compared` names what each variant is held against."""
    tested = found.tested
    places: list[tuple[str, str, np.ndarray]] = [("", "", np.flatnonzero(tested))]
    for column, values in columns.items():
        for name in np.unique(values[tested]).tolist():
            places.append((column, name, np.flatnonzero(tested & (values == name))))
    result = []
    for column, name, index in places:
        entries = {
            v: _score_one(plan, p[:, index], index, v, column, name) for v, p in found.predicted.items()
        }
        for variant, entry in entries.items():
            if variant in compared:
                change = measure.degradation(entries[compared[variant]].per_seed, entry.per_seed)
                entry.mark = change.mark  # type: ignore[assignment]
                entry.p_value = change.p
            result.append(entry)
    return sorted(result, key=lambda s: list(found.predicted).index(s.variant))


def _score_one(
    plan: Plan, predicted: np.ndarray, index: np.ndarray, variant: str, column: str, group: str
) -> ProbeScores:
    y = plan.labels[index]
    correct = (predicted == y).astype(float)  # (S, n)
    classes, code = np.unique(y, return_inverse=True)
    member = np.eye(len(classes))[code]  # (n, C)
    per_class = (correct @ member) / member.sum(0)
    weights = _unit_weights(plan.units[index])
    resampled = np.einsum("rn,sn,nc->rsc", weights, correct, member, optimize=True)
    counts = weights @ member
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        recalls = np.where(counts[:, None] > 0, resampled / np.maximum(counts[:, None], 1e-12), np.nan)
        balanced = np.nanmean(recalls, 2).mean(1)
    capped = measure.capped_weights(y)
    rebalanced = (weights * capped) @ correct.T / np.maximum(weights @ capped, 1e-12)[:, None]
    rates: dict[str, Interval | None] = {"fpr": None, "fnr": None}
    if plan.positive is not None:
        for name, label in (("fpr", None), ("fnr", plan.positive)):
            column_of = [i for i, c in enumerate(classes) if (c == plan.positive) == (label is not None)]
            if column_of:
                c = column_of[0]
                rates[name] = _interval(1 - per_class[:, c].mean(), 1 - np.nanmean(recalls[:, :, c], 1))
    accuracies = per_class.mean(1)
    return ProbeScores(
        variant=variant,
        column=column,
        group=group,
        n=len(index),
        counts=dict(Counter(y.tolist())),
        accuracy=_interval(accuracies.mean(), balanced),
        rebalanced=_interval(float((correct @ capped / capped.sum()).mean()), rebalanced.mean(1)),
        per_seed=accuracies.tolist(),
        **rates,
    )


def _unit_weights(units: np.ndarray, seed: int = 0) -> np.ndarray:
    """(R, n) bootstrap weights that draw whole units."""
    _, code = np.unique(units, return_inverse=True)
    k = int(code.max()) + 1
    return (
        np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=_RESAMPLES)[:, code].astype(float)
    )


def _interval(value: float, resampled: np.ndarray) -> Interval:
    good = resampled[np.isfinite(resampled)]
    if len(good) < 20:
        return Interval(value=float(value))
    low, high = np.quantile(good, [0.025, 0.975])
    return Interval(
        value=float(value), low=min(float(low), float(value)), high=max(float(high), float(value))
    )


def confusion(plan: Plan, predicted: np.ndarray, original: np.ndarray) -> Confusion:
    """The confusion matrix of the first repetition, and the class that errors fall into.

    Args:
        plan: who is tested.
        predicted: (S, N) under a variant.
        original: (S, N) on original images.
    """
    tested = predicted[0] != ""
    labels, said, before = plan.labels[tested], predicted[0][tested], original[0][tested]
    into = measure.confusion_share(labels, said)
    turned = (before == labels) & (said != labels)
    return Confusion(
        matrix=confusion_matrix(labels, said, labels=plan.classes).tolist(),
        into=into.label,
        share=into.share,
        errors=into.errors,
        turned=int(turned.sum()),
        turned_share=float((said[turned] == into.label).mean()) if turned.any() else 0.0,
    )


# --- provenance ------------------------------------------------------------------------------------------


def follow(
    plan: Plan,
    found: Predictions,
    embeddings: np.ndarray,
    columns: Mapping[str, np.ndarray],
    config: SimilarityConfig,
) -> list[Provenance]:
    """For every column: does the score for a class follow the group instead of the class?

    With more than two classes each is tested against the rest, and the one that parts most is reported.
    """
    result = []
    tested = found.tested
    y = plan.labels[tested]
    scores = found.scores[ORIGINAL][:, tested].mean(0)
    predicted = found.predicted[ORIGINAL][:, tested]
    correct = (predicted == y).mean(0)
    classes = plan.classes
    for column, values in columns.items():
        groups = values[tested]
        names = np.unique(groups).tolist()
        if len(names) < 2:
            continue
        best, chosen = None, classes[0]
        for c in [plan.positive] if plan.positive else classes:
            target = (y == c).astype(int)
            if target.min() == target.max():
                continue
            one = measure.provenance(scores[:, classes.index(str(c))], target, groups, resamples=300)
            gap = abs(one.auroc_pooled - (one.auroc_within or one.auroc_pooled))
            key = (one.follows_group, gap, one.eta2_group - one.eta2_label)
            if best is None or key > best[0]:
                best, chosen = (key, one), str(c)
        if best is None:
            continue
        p = best[1]
        within = [
            np.mean([correct[(groups == g) & (y == c)].mean() for c in np.unique(y[groups == g])])
            for g in names
            if len(np.unique(y[groups == g])) > 1
        ]
        common = {g: Counter(y[groups == g].tolist()).most_common(1)[0][0] for g in names}
        rule = np.array([common[g] for g in groups.tolist()])
        readable, chance = _readable(plan, embeddings, values, config)
        result.append(
            Provenance(
                column=column,
                label=chosen,
                eta2_group=p.eta2_group,
                eta2_label=p.eta2_label,
                auroc_pooled=p.auroc_pooled,
                auroc_within=p.auroc_within,
                accuracy_pooled=float(np.mean([correct[y == c].mean() for c in np.unique(y)])),
                accuracy_within=float(np.mean(within)) if within else None,
                by_group_alone=float(measure.balanced_accuracy(y, rule)),
                group_readable=readable,
                group_chance=chance,
                follows=p.follows_group,
                reasons=list(p.reasons),
            )
        )
    return result


def _readable(
    plan: Plan, embeddings: np.ndarray, groups: np.ndarray, config: SimilarityConfig
) -> tuple[float, float]:
    """Class-balanced accuracy of a probe for the group, units kept apart, and its chance level."""
    counts = {g: len(set(plan.units[groups == g].tolist())) for g in np.unique(groups).tolist()}
    kept = [g for g, n in counts.items() if n >= 2]
    if len(kept) < 2:
        return float("nan"), float("nan")
    index = np.flatnonzero(np.isin(groups, kept))
    folds = min(3, *(counts[g] for g in kept))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=config.seed)
    rounds = [list(splitter.split(index, groups[index], plan.units[index]))]
    part = Plan(groups[index], plan.units[index], None, rounds, "folds", None)
    found = predict(part, {ORIGINAL: embeddings[index]}, ORIGINAL, config.probe)
    done = found.predicted[ORIGINAL][0]
    return float(measure.balanced_accuracy(part.labels, done)), 1 / len(kept)
