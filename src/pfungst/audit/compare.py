"""Two audits compared on the images that both saw: what got better, what got worse, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pfungst import measure
from pfungst.audit.anomaly.result import AnomalyResult
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.machine import circumstances
from pfungst.audit.result import (
    About,
    Better,
    Interval,
    Metric,
    Model,
    Result,
    Verdict,
    load,
    refuse_other,
    save,
)
from pfungst.audit.similarity.result import SimilarityResult
from pfungst.errors import ConfigError, DataError, few
from pfungst.files import read, reading
from pfungst.measure import limits
from pfungst.measure import proportions as shares
from pfungst.measure.intervals import bootstrap
from pfungst.measure.paired import Statistic, change, class_balanced, mcnemar

_MEASURES = ("auroc", "f1", "balanced_accuracy", "fnr", "fpr")
_RATES = _MEASURES[2:]  # shares of images
_NAMED = 20  # images that are listed
_ALPHA = 0.05
_DRAWS = 2000  # bootstrap resamples

Word = Literal["better", "worse", "no difference shown"]


class Changed(Model):
    """One measure before and after."""

    entry: str
    variant: str
    measure: str
    better: Better
    before: float
    after: float
    change: Interval = Field(description="after less before; 95 % interval over the images")
    word: Word = Field(description="by an interval corrected for all measures compared (Bonferroni)")

    @property
    def words(self) -> str:
        """The measure as people write it."""
        plain = self.measure.replace("-", " ")
        return plain if plain.startswith("balanced") else plain.upper()


class Flips(Model):
    """Images answered differently."""

    entry: str
    variant: str
    n: int = Field(description="images that both saw; 0 where they saw others")
    lost: int = Field(description="right before, wrong after")
    gained: int
    p: float = Field(description="McNemar, exact")
    corrected: float = Field(description="for all variants and entries (Holm)")
    lost_ids: list[str] = Field(description="the first of them")
    gained_ids: list[str]


class ComparisonResult(Result):
    """What ``pfungst compare`` writes."""

    kind: Literal["comparison"] = "comparison"
    of: str = Field(description="kind of the audits")
    first: str
    second: str
    paired: bool = Field(description="whether both saw the same images")
    changes: list[Changed]
    flips: list[Flips]
    others: dict[str, tuple[float, float]] = Field(
        description="metrics that both audits have, before and after, without a test"
    )

    def words(self, word: Word) -> list[Changed]:
        """The changes of one kind, the surest first."""
        found = [c for c in self.changes if c.word == word]
        return sorted(found, key=lambda c: -abs(c.change.value))


class Answers(NamedTuple):
    """What one audit said of N images: labels, right or wrong, and for detectors scores and decisions."""

    ids: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    scores: np.ndarray | None = None
    flagged: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Answers:
        """Some of the images."""
        return Answers(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

    def statistics(self) -> dict[str, Statistic]:
        """Measures as functions of the images' weights."""
        if self.scores is None or self.flagged is None:
            return {"balanced_accuracy": class_balanced(self.right, self.labels)}
        y, s, flagged = self.labels, self.scores, self.flagged
        found: dict[str, Statistic] = {"auroc": lambda w: np.asarray(measure.auroc(y, s, w))}

        def rate(name: str, w: np.ndarray) -> np.ndarray:
            return getattr(measure.confusion(y, flagged, w), name)

        return found | {name: partial(rate, name) for name in _MEASURES[1:]}


def compare(first: Path, second: Path, out: Path | None = None, seed: int = 0) -> ComparisonResult:
    """Compare two audits of one kind; writes ``result.json`` into `out`.

    Args:
        first, second: folders of audits, before and after. seed: of the bootstrap.

    Raises:
        ConfigError: audits of different kinds, or of a kind that keeps no answers; `out` holds a result of
            another kind.
        DataError: nothing in common, or arrays are missing.
    """
    started = time.monotonic()
    refuse_other(out, "comparison")
    results = load(first), load(second)
    if results[0].kind != results[1].kind:
        kinds = f"{first} is of kind {results[0].kind}, {second} of kind {results[1].kind}"
        raise ConfigError(kinds, "compare the same kind")
    answers = [_answers(result, folder) for result, folder in zip(results, (first, second), strict=True)]
    pairs = _pairs(*answers)
    if not pairs:
        raise DataError(
            f"{first} and {second} have no entry in common: {few(answers[0])} and {few(answers[1])}",
            "audit the same categories and conditions",
        )
    changes, flips, paired = _measured(pairs, seed)
    common = [name for name in results[0].metrics if name in results[1].metrics]
    asked = {"first": str(first), "second": str(second), "seed": seed}
    asked["out"] = str(out or "pfungst-comparison")
    result = ComparisonResult(
        title=f"{results[0].title} → {results[1].title}",
        **circumstances(asked, started),
        verdict=_verdict(changes, flips, paired),
        metrics=_metrics(changes, flips),
        notes=_notes(changes, paired, pairs),
        of=results[0].kind,
        first=results[0].title,
        second=results[1].title,
        paired=paired,
        changes=changes,
        flips=flips,
        others={n: (results[0].metrics[n].value, results[1].metrics[n].value) for n in common},
    )
    if out is not None:
        save(result, out)
    return result


def _answers(result: Result, folder: Path) -> dict[tuple[str, str], Answers]:
    """What an audit said, by entry and variant."""
    folder = folder if folder.is_dir() else folder.parent
    remedy = "run the audit again"
    found: dict[tuple[str, str], Answers] = {}
    if isinstance(result, AnomalyResult):
        alone = len({e.model for e in result.entries}) == 1  # old and new detector are compared by category
        for entry in result.entries:
            with reading(folder / entry.arrays, remedy):
                arrays = read(folder / entry.arrays, remedy)
                for scores in entry.scores:
                    key = scores.variant.key
                    flagged = arrays[f"scores_{key}"] > arrays[f"threshold_{key}"]
                    y = arrays["labels"].astype(int)
                    found[entry.category if alone else entry.name, str(scores.variant)] = Answers(
                        arrays["ids"], y, flagged == y, arrays[f"scores_{key}"], flagged
                    )
        return found
    if isinstance(result, ClassifierResult | SimilarityResult) and result.arrays:
        with reading(folder / result.arrays, remedy):
            arrays = read(folder / result.arrays, remedy)
            for name in [k for k in arrays if k.startswith("predicted")]:
                key, right = name.removeprefix("predicted").lstrip("_"), arrays[name] == arrays["labels"]
                found["all images", key or "original"] = Answers(arrays["ids"], arrays["labels"], right)
    if not found:
        raise ConfigError(
            f"a {result.kind} result of {folder} keeps no answers to single images",
            "compare audits of images: anomaly, similarity or classifier",
        )
    return found


_Pair = tuple[Answers, Answers, bool]


def _pairs(
    first: Mapping[tuple[str, str], Answers], second: Mapping[tuple[str, str], Answers]
) -> dict[tuple[str, str], _Pair]:
    """Answers of the same entry and variant: of images that both saw or, without any, of each audit's own."""
    found: dict[tuple[str, str], _Pair] = {}
    for key in first:
        if key not in second:
            continue
        a, b = first[key], second[key]
        where = {id_: row for row, id_ in enumerate(b.ids.tolist())}
        rows = [(i, where[id_]) for i, id_ in enumerate(a.ids.tolist()) if id_ in where]
        same = [(i, j) for i, j in rows if a.labels[i] == b.labels[j]]
        if same:
            left, right = (np.array(part) for part in zip(*same, strict=True))
            found[key] = (a.take(left), b.take(right), True)
        elif not rows:
            found[key] = (a, b, False)
    return found


def _measured(pairs: Mapping[tuple[str, str], _Pair], seed: int) -> tuple[list[Changed], list[Flips], bool]:
    count = sum(len(a.statistics()) for a, _, _ in pairs.values())
    levels = (0.95, 1 - _ALPHA / count)
    changes, tested = [], []
    for (entry, variant), (a, b, same) in pairs.items():
        after = b.statistics()
        for name, before in a.statistics().items():
            ci, strict = (
                _of_rates(name, a, b, same, levels)
                if name in _RATES
                else _of_draws(name, a, b, same, levels, before, after[name], seed)
            )
            ones = np.ones((1, len(a.labels)))
            value = float(before(ones)[0])
            better: Better = "lower" if name in ("fnr", "fpr") else "higher"
            place = {"entry": entry, "variant": variant, "measure": name.replace("_", "-"), "better": better}
            found = {"before": value, "after": value + ci.value, "change": ci, "word": _word(strict, better)}
            changes.append(Changed.model_validate({**place, **found}))
        if same:
            tested.append((entry, variant, a, b, mcnemar(a.right, b.right)))
    corrected = measure.holm([test.p for *_, test in tested]) if tested else []
    flips = [
        Flips(
            entry=entry,
            variant=variant,
            n=len(a.ids),
            lost=test.lost,
            gained=test.gained,
            p=test.p,
            corrected=float(p),
            lost_ids=a.ids[a.right & ~b.right][:_NAMED].tolist(),
            gained_ids=a.ids[~a.right & b.right][:_NAMED].tolist(),
        )
        for (entry, variant, a, b, test), p in zip(tested, corrected, strict=True)
    ]
    return changes, flips, all(same for *_, same in pairs.values())


def _rates(name: str, a: Answers) -> list[np.ndarray]:
    """What is counted of each image (True or False), by class."""
    if name == "balanced_accuracy" or a.flagged is None:
        return [a.right[a.labels == k] for k in np.unique(a.labels)]
    return [a.flagged[a.labels == 0]] if name == "fpr" else [~a.flagged[a.labels == 1]]


def _of_rates(
    name: str, a: Answers, b: Answers, same: bool, levels: Sequence[float]
) -> list[measure.Interval]:
    """Change of a share, or of the mean of the classes' shares, by Newcombe's intervals, which have a width
    also where every image agrees."""
    before, after = _rates(name, a), _rates(name, b)
    if same:
        pairs = list(zip(after, before, strict=True))
        return [
            shares.mean_change([shares.paired_difference(*pair, level) for pair in pairs]) for level in levels
        ]
    sides = [
        [shares.mean_share([shares.wilson(x, level) for x in s]) for s in (after, before)] for level in levels
    ]
    return [shares.share_difference(new, old) for new, old in sides]


def _of_draws(
    name: str,
    a: Answers,
    b: Answers,
    same: bool,
    levels: tuple[float, ...],
    before: Statistic,
    after: Statistic,
    seed: int,
) -> list[measure.Interval]:
    """Change of AUROC or F1 by the bootstrap; where no resample differs, of intervals with a width."""
    found = change(before, after, a.labels, None if same else b.labels, levels, _DRAWS, seed)
    sides = ((before, a), (after, b))
    own = [bootstrap(statistic, x.labels, 200, seed=seed) for statistic, x in sides]
    if any(f.low != f.high for f in [*found, *own]):
        return found

    def alone(value: float, x: Answers, level: float) -> measure.Interval:
        assert x.flagged is not None
        bad = x.labels == 1
        if name == "auroc":
            return shares.auroc_interval(value, int(bad.sum()), int((~bad).sum()), level)
        return shares.f1_interval(x.flagged[bad], x.flagged[~bad], level)

    after_before = ((alone(own[1].value, b, level), alone(own[0].value, a, level)) for level in levels)
    return [shares.share_difference(*pair) for pair in after_before]


def _word(strict: Any, better: Better) -> Word:
    if not (strict.low > 0 or strict.high < 0):
        return "no difference shown"
    return "better" if (strict.low > 0) == (better == "higher") else "worse"


def _verdict(changes: Sequence[Changed], flips: Sequence[Flips], paired: bool) -> Verdict:
    worse = [c for c in changes if c.word == "worse"]
    lost = [f for f in flips if f.corrected < _ALPHA and f.lost > f.gained]
    better = [c for c in changes if c.word == "better"]
    told = [_told(c) for c in sorted(better, key=lambda c: -abs(c.change.value))[:3]]
    n = max((f.n for f in flips), default=0)
    if paired and n < limits.COMPARED_IMAGES:
        headline = f"{n} images in common are too few to compare two audits"
        needed = f"At least {limits.COMPARED_IMAGES:g} are needed."
        return Verdict(level="too-few", headline=headline, sentences=[needed])
    if worse or lost:
        first = max(worse, key=lambda c: abs(c.change.value)) if worse else None
        headline = f"The second audit is worse: {_told(first) if first else _flip(lost[0])}"
        more = [_told(c) for c in worse if c is not first][:2] + [_flip(f) for f in lost[:2]]
        about = About(entry=first.entry, condition=first.variant) if first else About(entry=lost[0].entry)
        more += [f"Better: {t}" for t in told]
        return Verdict(level="fragile", headline=headline, sentences=more, about=about)
    words = f"better: {told[0]}" if told else "no difference is shown"
    return Verdict(level="sound", headline=f"Nothing got worse; {words}", sentences=told[1:])


def _told(c: Changed) -> str:
    ends = c.change.ends("+.2f").replace("-", "−")
    return f"{c.words} of {c.entry}, {c.variant}: {c.before:.2f} → {c.after:.2f}{ends}"


def _flip(f: Flips) -> str:
    return (
        f"{f.entry}, {f.variant}: {f.lost} of {f.n} images are wrong that were right, {f.gained} the other "
        f"way round (McNemar, p = {f.corrected:.2g})"
    )


def _metrics(changes: Sequence[Changed], flips: Sequence[Flips]) -> dict[str, Metric]:
    found = {}
    for name in dict.fromkeys(c.measure for c in changes):
        part = [c for c in changes if c.measure == name]
        per = {f"{c.entry}, {c.variant}": c.change.value for c in part}
        found[f"{name}-change"] = Metric.worst(per, part[0].better, "after less before")
    if flips:
        per = {f"{f.entry}, {f.variant}": f.lost / f.n for f in flips}
        found["lost"] = Metric.worst(per, "lower", "share of the images that are wrong now and were right")
    worse = {f"{c.entry}, {c.variant}, {c.measure}": float(c.word == "worse") for c in changes}
    found["worse"] = Metric(
        value=sum(worse.values()),
        where=next((k for k, v in worse.items() if v), "nothing"),
        meaning="measures that got worse for certain",
    )
    return found


def _notes(changes: Sequence[Changed], paired: bool, pairs: Mapping[Any, _Pair]) -> list[str]:
    how = "both audits saw these images" if paired else "the audits saw other images"
    pairs_of = "paired" if paired else "independent"
    methods = [f"intervals of the shares: Newcombe's for {pairs_of} proportions"]
    if any(c.measure not in ("fnr", "fpr", "balanced-accuracy") for c in changes):
        methods.append(
            f"of AUROC and F1: {_DRAWS} bootstrap resamples within the classes, "
            + ("drawn together" if paired else "each audit by itself")
            + "; where no resample differs, Newcombe's for one AUROC and Wilson's of both rates"
        )
    return [
        f"{how}; {'; '.join(methods)}",
        f"better and worse are said where the interval of level 1 − 0.05/{len(changes)} leaves out zero",
        f"the first of the repetitions of each audit; {len(pairs)} pairs of entries and variants",
    ]
