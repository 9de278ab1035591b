"""From numbers to a sentence: what an anomaly audit concludes, and the metrics that gates use.

An effect is called Clever Hans only when explanation and intervention agree: the relevance lies on what the
deployed condition removes, the detector gets worse when it is removed, and it is well without it. An
explanation that does not beat a random order of patches is said so, and nothing rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.explain import FLIPPED, GRID
from pfungst.audit.anomaly.result import Entry, Provenance, Scored
from pfungst.audit.notes import notes
from pfungst.audit.result import About, Level, Metric, MetricRow, Verdict, recovered
from pfungst.measure import limits
from pfungst.measure.proportions import above_chance, wilson_of

SERIOUS: tuple[Level, ...] = ("sound", "not-established", "fragile", "clever-hans", "provenance", "unfit")


def judge(entries: list[Entry], means: dict[str, Scored], config: AnomalyConfig) -> Verdict:
    """The verdict on all detectors of an audit: that of the most serious level, then of the worst numbers."""
    few = _too_few(entries)
    if few is not None:
        return few
    found = [
        _Case(model, [e for e in entries if e.model == model], scored, config).judge()
        for model, scored in means.items()
    ]
    found.sort(key=lambda v: (SERIOUS.index(v.level), _severity(v)), reverse=True)
    first, *others = found
    if first.level not in ("unfit", "provenance") and (wide := _too_wide(entries)):
        return wide
    return first.model_copy(update={"sentences": first.sentences + [f"{v.headline}." for v in others]})


def _too_few(entries: list[Entry]) -> Verdict | None:
    """Whether the test set, all categories together, is too small for any verdict."""
    model = entries[0].model
    mine = [e for e in entries if e.model == model]
    good, defect = sum(e.n_good for e in mine), sum(e.n_defect for e in mine)
    if min(good, defect) >= limits.TEST_IMAGES:
        return None
    count, kind = (defect, "defective") if defect <= good else (good, "good")
    return Verdict(
        level="too-few",
        headline=f"{count} {kind} test image{'' if count == 1 else 's'}: too few to judge a detector",
        sentences=[
            f"At least {limits.TEST_IMAGES:g} good and {limits.TEST_IMAGES:g} defective test images are "
            f"needed; one image of {count} is {1 / count:.0%} of the rate. The figures below are given, "
            "nothing is concluded from them."
        ],
        about=About(entry=model, condition="original", numbers={"good": good, "defective": defect}),
    )


def _too_wide(entries: list[Entry]) -> Verdict | None:
    """Whether the rates, all categories together, are known too badly to say what deployment does."""
    entries = [e for e in entries if e.model == entries[0].model]
    for name, kind, count in (("fnr", "defective", "n_defect"), ("fpr", "good", "n_good")):
        sizes = [getattr(e, count) for e in entries]
        wrong = sum(n * getattr(e.original, name).value for n, e in zip(sizes, entries, strict=True))
        _, low, high = wilson_of(wrong / sum(sizes), sum(sizes))
        if high - low > limits.WIDE:
            rate, few = name.upper(), f"{sum(sizes)} {kind} test images: too few to judge a detector"
            told = (
                f"A verdict needs an interval of {rate} no wider than {limits.WIDE:.0%} (95 %, Wilson). The "
                "figures below are given, nothing is concluded from them."
            )
            about = About(entry=entries[0].model, condition="original", numbers={"low": low, "high": high})
            headline = f"{few}, as {rate} is {low:.0%} to {high:.0%}"
            return Verdict(level="too-few", headline=headline, sentences=[told], about=about)
    return None


@dataclass(frozen=True)
class _Case:
    """One detector on all categories."""

    model: str
    entries: list[Entry]
    scored: Scored
    config: AnomalyConfig

    def judge(self) -> Verdict:
        auroc = self.scored.original.auroc.value
        low = self.scored.original.auroc.low
        at_chance = low is not None and not above_chance(low, 0.5)
        unfit = math.isnan(auroc) or auroc < limits.FIT_AUROC or at_chance
        follows = [(e, p) for e in self.entries for p in e.provenance if p.follows]
        if follows:
            return self._provenance(follows, unfit)
        if unfit:
            return self._unfit()
        if not self.scored.original.fnr.value < limits.MISSED:
            return self._misses()
        if self.scored.fall < limits.FALL:
            return self._holds()
        p = self.scored.deployed.p_value
        return self._falls() if p is None or p < limits.P_FALL else self._open(p)

    def _verdict(
        self, level: Level, headline: str, sentences: list[str], about: About | None = None
    ) -> Verdict:
        """A verdict about the mean of the detector, with what it rests on, unless `about` says otherwise."""
        original, condition = self.scored.original, "original" if level == "unfit" else "deployed"
        numbers = {"auroc": original.auroc.value, "f1": original.f1.value, "fall": self.scored.fall}
        numbers["lost"] = self.lost
        about = about or About(entry=self.model, condition=condition, numbers=numbers)
        return Verdict(level=level, headline=headline, sentences=sentences, about=about)

    # --- what it follows, whether it detects -----------------------------------------------------------

    def _provenance(self, follows: list[tuple[Entry, Provenance]], unfit: bool) -> Verdict:
        entry, worst = max(follows, key=lambda pair: _gap(pair[1]))
        column, auroc = worst.column, self.scored.original.auroc.value
        within = "not defined" if worst.auroc_within is None else f"{worst.auroc_within:.2f}"
        low, high = (pick(worst.groups, key=lambda g: g.mean_score) for pick in (min, max))
        sentences = [
            f"In {entry.category}, {column} explains {worst.eta2_group:.0%} of the score's variance and the "
            f"label {worst.eta2_label:.0%}; AUROC is {worst.auroc_pooled:.2f} pooled and {within} within "
            f"{column}.",
            f"The mean score goes from {_number(low.mean_score)} ({low.name}) to {_number(high.mean_score)} "
            f"({high.name}).",
        ]
        what = f"the score follows the {column}, not the defect"
        found, of = len({e.category for e, _ in follows}), len(self.entries)
        what += f", in {found} of {of} categories" if found < of else ""
        numbers = {"auroc": auroc, "eta2_group": worst.eta2_group, "eta2_label": worst.eta2_label}
        numbers["gap"] = _gap(worst)
        about = About(entry=entry.name, column=column, condition="original", numbers=numbers)
        if unfit:
            headline = f"{self.model} is unfit for this task (AUROC {auroc:.2f}): {what}"
            return self._verdict("unfit", headline, sentences, about)
        return self._verdict("provenance", f"{self.model}: {what}", sentences, about)

    def _unfit(self) -> Verdict:
        auroc, f1 = self.scored.original.auroc.value, self.scored.original.f1.value
        trivial = fmean(e.trivial_f1 for e in self.entries)
        sentences = [
            f"AUROC {auroc:.2f} and F1 {f1:.2f} on the original images, where flagging everything has F1 "
            f"{trivial:.2f}. Below an AUROC of {limits.FIT_AUROC:g}, whatever it looks at, it does not tell "
            "defects from good parts."
        ]
        if auroc < limits.INVERTED_AUROC:
            sentences.append(
                "An AUROC far below 0.5 means that good test images differ from the training images more "
                "than defects do: check whether the sets come from different sources (--groups)."
            )
        ends = self.scored.original.auroc.ends()
        return self._verdict(
            "unfit", f"{self.model} is unfit for this task: AUROC {auroc:.2f}{ends}", sentences
        )

    def _misses(self) -> Verdict:
        """It ranks, but at its threshold it does not detect."""
        original = self.scored.original
        trivial = fmean(e.trivial_f1 for e in self.entries)
        headline = (
            f"{self.model} is unfit at its threshold: it misses {original.fnr.value:.0%} of the defects"
            f"{original.fnr.ends('.0%')}"
        )
        sentences = [
            f"It ranks them, AUROC {original.auroc.value:.2f}, so another threshold (--quantile) may do: F1 "
            f"is {original.f1.value:.2f} at FPR {original.fpr.value:.0%}; flagging everything has "
            f"{trivial:.2f}.",
            f"{self.config.original} → {self.config.deployed}: {self._rates}.",
            *self._rests(),
        ]
        return self._verdict("unfit", headline, sentences)

    def _open(self, p: float) -> Verdict:
        headline = f"Not established whether {self.model} survives {self.config.deployed}: {self._rates}"
        change, told = self.scored.deployed.change, f"F1 falls by {self.scored.fall:.2f}"
        if change is not None and change.low is not None and change.high is not None:
            told += f" ({-change.high:.2f} to {-change.low:.2f})"
        sentences = [f"{told}, P = {p:.2g} over the test images: more of them would tell.", *self._rests()]
        return self._verdict("not-established", headline, sentences)

    # --- what deployment does --------------------------------------------------------------------------

    @property
    def lost(self) -> float:
        """Share of the relevance on what deployment removes, mean over categories."""
        return fmean([e.exposure.lost_in_deployment for e in self.entries if e.exposure] or [0.0])

    @property
    def _explained(self) -> bool:
        return any(e.exposure for e in self.entries)

    @property
    def _rates(self) -> str:
        before, after, mended = self.scored.original, self.scored.deployed, self.scored.mended
        told = f"FNR {before.fnr.value:.0%} → {after.fnr.value:.0%}, FPR {before.fpr.value:.0%} → "
        told += f"{after.fpr.value:.0%}, F1 {before.f1.value:.2f} → {after.f1.value:.2f}"
        if mended is None:
            return told
        told += f"; with {self.config.mitigate} FNR {mended.fnr.value:.0%}, F1 {mended.f1.value:.2f}"
        return told + self._price

    @property
    def _price(self) -> str:
        """What mending costs: false alarms, and categories that get worse."""
        after, mended = self.scored.deployed, self.scored.mended
        if mended is None:
            return ""
        costs = []
        if mended.fpr.value - after.fpr.value >= limits.FALL:
            costs.append(f"FPR {after.fpr.value:.0%} → {mended.fpr.value:.0%}")
        falls = [
            e for e in self.entries if e.mended and e.deployed.f1.value - e.mended.f1.value >= limits.FALL
        ]
        if falls:
            of = len(self.entries)
            costs.append(f"F1 lower in {len(falls)} of {of} categories" if of > 1 else "F1 lower")
        return f", at the price of {', '.join(costs)} ↓" if costs else ""

    @property
    def _faithful(self) -> bool:
        """Whether the explanation beats a random order, in more than half of the categories."""
        beat = [e.faithfulness is not None and e.faithfulness.beats_random for e in self.entries]
        return sum(beat) > len(beat) / 2

    def _rests(self) -> list[str]:
        """Where the relevance lies, and whether it is to be believed."""
        if not self._explained:
            return [f"{self.model} is not explained, so nothing is said about what it looks at."]
        high = fmean(e.exposure.high for e in self.entries if e.exposure)
        where = f"{self.lost:.0%} of the relevance lies on what {self.config.deployed} removes from images"
        known, of = [e.faithfulness for e in self.entries if e.faithfulness], len(self.entries)
        told = f"is {fmean(f.value for f in known):.2f}" if known else "was not measured"
        if of > 1:
            beat = sum(f.beats_random for f in known)
            told += f"{' on average' if known else ''}, above a random order in {beat} of {of} categories"
        elif known:
            told += f" ({known[0].low:.2f} to {known[0].high:.2f})"
        if not self._faithful:
            told += ": the explanation does not beat a random order, nothing rests on it"
        return [f"{where}, {high:.0%} on high frequencies.", f"Faithfulness {told}."]

    def _falls(self) -> Verdict:
        fall, mended, deployed = self.scored.fall, self.scored.mended, self.config.deployed
        sentences, mends = self._rests(), True
        if mended is not None:
            share = (mended.f1.value - self.scored.deployed.f1.value) / fall
            mends = share >= limits.RECOVERED
            sentences.append(f"The mitigation {recovered(share, 'the fall in F1')}.")
        agree = self.lost >= limits.LOST_SHARE and mends
        if agree and self._faithful:
            sentences.append("Explanation and intervention agree: this is a Clever Hans effect.")
            headline = f"{self.model} relies on frequencies that {deployed} removes: {self._rates}"
            return self._verdict("clever-hans", headline, sentences)
        why = "Explanation and intervention do not agree"
        if agree:
            why = "Explanation and intervention agree, but the explanation is not shown to be faithful"
        if not self._explained:
            why = "There is no explanation"
        sentences.append(f"{why}, so the cause is not established.")
        headline = f"{self.model} does not survive {deployed}: {self._rates}"
        return self._verdict("fragile", headline, sentences)

    def _holds(self) -> Verdict:
        hans, sentences = self.scored.original.clever_hans, self._rests()
        if self._faithful and hans is not None and hans.value >= limits.OUTSIDE:
            sentences.append(
                f"Clever Hans score {hans.value:.2f}: it detects well while its relevance lies mostly "
                "outside the defects. Look at the heatmaps before you sign off."
            )
        misses = self.scored.original.fnr
        but = f", but misses {misses.value:.0%} of the defects" if misses.value >= limits.MISSES else ""
        headline = f"{self.model} holds under {self.config.deployed}{but}: {self._rates}"
        return self._verdict("sound", headline, sentences)


def _gap(finding: Provenance) -> float:
    """How far the ranking over all images is from that within groups; from chance without any to rank in."""
    return abs(finding.auroc_pooled - (0.5 if finding.auroc_within is None else finding.auroc_within))


def _severity(verdict: Verdict) -> float:
    """The worst of several verdicts of one level."""
    numbers = verdict.about.numbers
    if verdict.level == "unfit":
        return math.inf if math.isnan(numbers["auroc"]) else -numbers["auroc"]
    return numbers["gap" if verdict.level == "provenance" else "fall"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- metrics ---------------------------------------------------------------------------------------------


def metrics(entries: list[Entry]) -> dict[str, Metric]:
    """The gateable metrics: for each the worst over categories and detectors that have it."""
    return Metric.table(row for e in entries for row in _rows(e))


def _rows(e: Entry) -> Iterator[MetricRow]:
    before, after, mended, hans = e.original, e.deployed, e.mended, e.original.clever_hans
    yield "auroc", "higher", "AUROC on the original images", e.name, before.auroc.value
    yield "f1", "higher", "F1 on the original images", e.name, before.f1.value
    yield "f1-deployed", "higher", "F1 on the deployed images", e.name, after.f1.value
    meaning = "how much better than a random order of patches the explanation is"
    yield "faithfulness", "higher", meaning, e.name, e.faithfulness.value if e.faithfulness else None
    yield "fnr-deployed", "lower", "FNR on the deployed images", e.name, after.fnr.value
    yield "f1-drop", "lower", "F1 original minus deployed", e.name, e.fall
    yield "fnr-rise", "lower", "FNR deployed minus original", e.name, after.fnr.value - before.fnr.value
    meaning = "AUROC minus cosine of relevance and mask"
    yield "clever-hans-score", "lower", meaning, e.name, hans.value if hans else None
    for name, of, where in (
        ("high-frequency-share", "high", "in high frequencies"),
        ("outside-mask-share", "outside_mask", "off the defect"),
        ("lost-in-deployment", "lost_in_deployment", "on what the deployed condition removes"),
    ):
        share = getattr(e.exposure, of) if e.exposure else None
        yield name, "lower", f"share of relevance {where}", e.name, share
    meaning = "F1 original minus F1 mended and deployed"
    yield "mitigated-f1-drop", "lower", meaning, e.name, before.f1.value - mended.f1.value if mended else None
    for p in e.provenance:
        where, gap = f"{e.name} by {p.column}", None if p.auroc_within is None else _gap(p)
        yield "provenance-gap", "lower", "AUROC pooled against within groups", where, gap
        meaning = "share of the score's variance explained by the group, less that by the label"
        yield "provenance-eta2-excess", "lower", meaning, where, p.eta2_group - p.eta2_label


def explain_numbers(config: AnomalyConfig) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    names = [config.protocol, "intervals", "same", "marks", "rates", "clever-hans", "frequencies", "lost"]
    return notes(
        "anomaly",
        [*names, "faithfulness", "high"],
        config=config,
        repetitions=f"{config.seeds} repetition{'s' if config.seeds > 1 else ''}",
        fits=f"fit on {'all training images' if config.protocol == 'published' else 'a random 80 % each'}",
        grid=GRID,
        flipped=FLIPPED,
    )
