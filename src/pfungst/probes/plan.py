"""Who is trained on and who is tested, and what probes say then, for every repetition."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from pfungst.errors import DataError, PfungstWarning
from pfungst.probes.linear import LinearSVM, LogisticRegression, Probe

_FIT_SHARE = 0.8
_TEST = ("test", "validation", "val")

Key = TypeVar("Key", bound=Hashable)
Rounds = tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]


@dataclass(frozen=True)
class Plan:
    """Splits of N images, for every repetition.

    Attributes:
        labels: (N,) str.
        units: (N,) int; images of one unit, such as a patient, are never on both sides.
        rounds: per repetition pairs of index arrays (train, test); the tests of one repetition do not
            overlap.
        split: "given" or "folds".
        notes: fallbacks that were taken.
    """

    labels: np.ndarray
    units: np.ndarray
    rounds: Rounds
    split: str
    notes: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        labels: Sequence[str] | np.ndarray,
        units: Sequence[str] | np.ndarray | None = None,
        given: Sequence[str | None] | None = None,
        how: str = "auto",
        folds: int = 5,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
    ) -> Self:
        """Splits for every seed.

        Args:
            labels: (N,).
            units: (N,) what stays together; by default every image is its own unit.
            given: (N,) "train", "test" (or "validation", where nothing is called test), anything else unused.
            how: "given": each repetition fits on another 80 % of the training units, and all test on the same
                images; "folds": each repetition deals the units anew, and every image is tested once; "auto":
                the first where it is possible.
            folds: fewer where the smallest class has fewer units.
            seeds: one per repetition.

        Raises:
            DataError: the given split does not cover two classes, or has a unit on both sides.
        """
        labels = np.asarray(labels)
        _, code = np.unique(np.arange(len(labels)) if units is None else units, return_inverse=True)
        names = np.array(["" for _ in labels] if given is None else [s or "" for s in given])
        train = np.flatnonzero(names == "train")
        test = next((t for t in map(np.flatnonzero, (names == n for n in _TEST)) if len(t)), train[:0])
        covered = set(labels[train].tolist()) >= set(labels[test].tolist())
        complete = covered and len(set(labels[test].tolist())) > 1
        if how == "given" and not complete:
            raise DataError(
                f"the data name {len(train)} training and {len(test)} test images, which do not cover two "
                "classes",
                "pass --split folds",
            )
        if how == "folds" or not complete:
            least = min(len(set(code[labels == c].tolist())) for c in np.unique(labels))
            taken = min(folds, least)
            notes = (f"{taken} folds instead of {folds}: the smallest class has only {taken} units",)
            dealt = tuple(
                tuple(StratifiedGroupKFold(taken, shuffle=True, random_state=s).split(labels, labels, code))
                for s in seeds
            )
            return cls(labels, code, dealt, "folds", notes if taken < folds else ())
        if shared := set(code[train].tolist()) & set(code[test].tolist()):
            raise DataError(
                f"{len(shared)} of the units that are to stay together are in both training and test images",
                "pass --split folds, or --keep-together none",
            )
        return cls(labels, code, tuple(((_draw(train, code, labels, s), test),) for s in seeds), "given")

    @property
    def classes(self) -> list[str]:
        """The labels in order."""
        return np.unique(self.labels).tolist()

    @property
    def tested(self) -> np.ndarray:
        """Numbers of the images that are tested, the same in every repetition."""
        return np.unique(np.concatenate([test for _, test in self.rounds[0]]))

    @property
    def fitted(self) -> np.ndarray:
        """Numbers of the images that may be looked at before testing: with folds those of the first fold."""
        if self.split == "folds":
            return np.unique(self.rounds[0][0][0])
        return np.unique(np.concatenate([fit for fold in self.rounds for fit, _ in fold]))


def _draw(train: np.ndarray, units: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """80 % of the training units, with at least one image of every class."""
    names = np.random.default_rng(seed).permutation(np.unique(units[train]))
    picked = np.isin(units[train], names[: max(2, round(_FIT_SHARE * len(names)))])
    for label in np.unique(labels[train]):
        if not (picked & (labels[train] == label)).any():
            picked |= labels[train] == label
    return train[picked]


def fit_probe(name: str, x: np.ndarray, labels: np.ndarray) -> Probe:
    """The probe "svm" or "logreg", fitted to representations (N, K)."""
    probe = LinearSVM() if name == "svm" else LogisticRegression()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PfungstWarning)
        return probe.fit(x, labels)


@dataclass(frozen=True)
class Predictions(Generic[Key]):
    """What the probes of S repetitions said of N images, per variant of the images.

    Attributes:
        predicted: (S, N) str, "" where an image was not tested.
        scores: (S, N, classes) evidence for each class, NaN where not tested.
        weights: (classes, K) of the first probe that was fitted.
    """

    predicted: Mapping[Key, np.ndarray]
    scores: Mapping[Key, np.ndarray]
    weights: np.ndarray

    def __or__(self, other: Predictions[Key]) -> Predictions[Key]:
        """With the variants of another one added."""
        return Predictions(
            {**self.predicted, **other.predicted}, {**self.scores, **other.scores}, self.weights
        )


def predict(
    plan: Plan, embeddings: Mapping[Key, np.ndarray], fit_on: Key, probe: str = "logreg"
) -> Predictions[Key]:
    """Fit on one variant's training images, predict every variant's test images, for all repetitions.

    Args:
        plan: who is trained on and who is tested.
        embeddings: representations (N, K) of the same images by variant.
        fit_on: the variant to fit on.
        probe: logreg or svm.
    """
    classes = plan.classes
    n, width = len(plan.labels), max(map(len, classes))
    shape = (len(plan.rounds), n)
    predicted = {v: np.full(shape, "", dtype=f"<U{width}") for v in embeddings}
    scores = {v: np.full((*shape, len(classes)), np.nan) for v in embeddings}
    weights = np.zeros((len(classes), embeddings[fit_on].shape[1]))
    for s, folds in enumerate(plan.rounds):
        for number, (train, test) in enumerate(folds):
            model = fit_probe(probe, embeddings[fit_on][train], plan.labels[train])
            places = np.array([classes.index(c) for c in model.classes_])
            absent = np.setdiff1d(np.arange(len(classes)), places)
            if s == number == 0:
                two = len(places) == 2
                weights[places] = np.concatenate([-model.coef_, model.coef_]) if two else model.coef_
            for variant, values in embeddings.items():
                found = model.decision_function(values[test])
                found = np.stack([-found, found], 1) if found.ndim == 1 else found
                predicted[variant][s, test] = model.classes_[found.argmax(1)]
                scores[variant][s][np.ix_(test, places)] = found
                scores[variant][s][np.ix_(test, absent)] = found.min()
    return Predictions(predicted, scores, weights)
