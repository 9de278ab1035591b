"""From numbers to a sentence: what a classifier audit concludes, and the metrics that gates use.

A component is called a Clever Hans effect only when explanation and intervention agree: it looks spurious (blind
ranking, or people), images with only the feature are taken for the class, and switching the component off ends that.
"""

from __future__ import annotations

import math

from pfungst.audit.classifier.measure import Measured
from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import ClassEntry, Gain, Scores
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.result import About, Better, Interval, Metric, Variant, Verdict
from pfungst.data.outputs import Outputs
from pfungst.errors import few
from pfungst.measure import limits

_NAMED = 3


class Judge:
    """The verdict of an audit, the most serious thing first.

    Args:
        model: its name; outputs: the names of its outputs.
        measured: all that was measured; entries: the classes with their scores.
        chosen_by: who chose what is switched off: people, ranking or nothing.
    """

    def __init__(
        self, model: str, outputs: Outputs, measured: Measured, entries: list[ClassEntry], chosen_by: str
    ) -> None:
        self.model, self.outputs, self.measured, self.entries = model, outputs, measured, entries
        self.chosen_by = chosen_by
        self.scores = {s.variant: s for s in measured.scores}
        self.as_is = self.scores[Variant(condition=ORIGINAL)]
        self.mended = self.scores.get(Variant(condition=ORIGINAL, mitigated=True), self.as_is)
        self.triggered = [e for e in entries if is_triggered(e)]
        self.suspicious = [e for e in entries if e.suspects]

    def __call__(self) -> Verdict:
        steps = (
            self._too_few,
            self._reordered,
            self._unfit,
            self._clever_hans,
            self._unexplained,
            self._condition,
            self._unverified,
        )
        return next((v for v in (step() for step in steps) if v is not None), None) or self._sound()

    def _too_few(self) -> Verdict | None:
        if self.measured.n_images >= limits.TEST_IMAGES:
            return None
        return Verdict(
            level="too-few",
            headline=f"{self.measured.n_images} validation images are too few to judge {self.model}",
            sentences=[
                f"From {limits.TEST_IMAGES:.0f} on a verdict is given. Accuracy on these is {_range(self.as_is.accuracy)}."
            ],
            about=About(numbers={"images": self.measured.n_images}),
        )

    def _reordered(self) -> Verdict | None:
        if self.measured.reordered is None:
            return None
        share, order = self.measured.reordered
        return Verdict(
            level="unfit",
            headline=f"{self.model} answers in another order of classes than assumed: accuracy {_percent(self.as_is.accuracy.value)} "
            f"as it is, {_percent(share.value)} in the order that fits best",
            sentences=[
                f"Assumed is {self.outputs.order}. What fits best, found on half of the validation images and measured on the rest, is "
                f"{self.outputs.describe(order)}.",
                "Give the names in the order of the model's outputs with --class-names and audit again; no other number here means anything.",
            ],
            about=About(
                numbers={"accuracy": self.as_is.accuracy.value, "accuracy in the best order": share.value}
            ),
        )

    def _unfit(self) -> Verdict | None:
        accuracy, chance = self.as_is.accuracy, self.measured.chance
        assert accuracy.low is not None
        if accuracy.low > chance:
            return None
        return Verdict(
            level="unfit",
            headline=f"{self.model} is not shown to classify: accuracy {_range(accuracy)} on the validation images, chance {_percent(chance)}",
            sentences=[
                "Check that its classes are in the order of the folders, and how its images are prepared."
            ],
            about=About(
                numbers={"accuracy": accuracy.value, "accuracy, low": accuracy.low, "chance": chance}
            ),
        )

    def _clever_hans(self) -> Verdict | None:
        proven = sorted((e for e in self.triggered if e.suspects and is_cured(e)), key=_cut, reverse=True)
        if not proven:
            return None
        first, loss = proven[0], self.measured.loss.value
        before, after = triggered_share(first), triggered_share(first, mitigated=True)
        names = ", ".join(str(c) for c in first.fixed)
        more = f" and {len(proven) - 1} more classes" if len(proven) > 1 else ""
        return Verdict(
            level="clever-hans",
            headline=f"{self.model} takes {_percent(before)} of the images with only a spurious feature for {first.name}{more}; "
            f"SpuFix leaves {_percent(after)} at {_percent(abs(loss))} {'loss' if loss >= 0 else 'gain'} of accuracy",
            sentences=[
                *self._figures(),
                f"{first.name}, component{'s' if len(first.fixed) > 1 else ''} {names}: {_component_words(first)}. Explanation "
                "and intervention agree: this is a Clever Hans effect.",
            ],
            about=About(
                entry=first.name,
                numbers={"triggered": before, "triggered, mended": after, "accuracy loss": loss},
            ),
        )

    def _unexplained(self) -> Verdict | None:
        if not self.triggered:
            return None
        worst = max(self.triggered, key=triggered_share)
        why = (
            "switching off the components that look spurious does not end it"
            if worst.suspects
            else "no component of the class looks spurious by itself"
        )
        share = triggered_share(worst)
        return Verdict(
            level="fragile",
            headline=f"{_percent(share)} of the images with only a spurious feature are taken for {worst.name}, but {why}",
            sentences=[
                *self._figures(),
                "Label the components of this class (pfungst label) and run the audit again.",
            ],
            about=About(entry=worst.name, numbers={"triggered": share}),
        )

    def _condition(self) -> Verdict | None:
        if not (fallen := self._fallen()):
            return None
        worst = fallen[0]
        assert worst.fall is not None
        gain = worst.gains[0] if worst.gains else None
        return Verdict(
            level="fragile",
            headline=f"{self.model} falls from {_percent(self.as_is.accuracy.value)} to {_percent(worst.accuracy.value)} accuracy under "
            f"{worst.variant.condition}" + (f": {gain.name} takes over" if gain else ""),
            sentences=self._figures(),
            about=About(
                entry=gain.name if gain else "",
                condition=worst.variant.condition,
                numbers={"accuracy": worst.accuracy.value, "fall": worst.fall.value}
                | ({"times": gain.times} if gain else {}),
            ),
        )

    def _unverified(self) -> Verdict | None:
        unverified = [e for e in self.suspicious if e.under().spurious is None]
        if not unverified:
            return None
        count = sum(len(e.suspects) for e in unverified)
        kind = "judged" if self.chosen_by == "people" else "looks" if count == 1 else "look"
        advice = "Collect images with only the feature (pfungst pool) and pass them as --spurious."
        return Verdict(
            level="fragile",
            headline=f"{count} component{'s' if count > 1 else ''} {kind} spurious ({few((e.name for e in unverified), _NAMED)}); "
            "nothing has shown yet that they do harm",
            sentences=[
                *self._figures(),
                advice if self.chosen_by == "people" else f"Look at them (pfungst label). {advice}",
            ],
            about=About(entry=unverified[0].name, numbers={"suspects": count}),
        )

    def _sound(self) -> Verdict:
        sentences = self._figures()
        if self.suspicious:
            sentences.append(
                f"{sum(len(e.suspects) for e in self.suspicious)} components look spurious, but images with only the feature do not "
                "trigger their class."
            )
        elif self.as_is.mauc is None:
            sentences.append(
                "No images with only a spurious feature were given, so this rests on the ranking alone."
            )
        return Verdict(
            level="sound",
            headline=f"{self.model} shows no reliance on a spurious feature",
            sentences=sentences,
            about=About(numbers={"accuracy": self.as_is.accuracy.value}),
        )

    def _fallen(self) -> list[Scores]:
        """Conditions under which the model as it is loses accuracy, the largest fall first."""
        fallen = [s for s in self.measured.scores if not s.variant.mitigated and is_fallen(s)]
        return sorted(fallen, key=lambda s: -s.fall.value if s.fall else 0.0)

    def _figures(self) -> list[str]:
        """Accuracy, spurious score and falls, in sentences."""
        text = (
            f"Accuracy {_percent(self.as_is.accuracy.value)} on {self.measured.n_images:,} validation images"
        )
        if self.chosen_by == "nothing":
            found = [f"{text}; nothing was switched off."]
        else:
            count = sum(len(e.fixed) for e in self.entries)
            look = "looks" if count == 1 else "look"
            who = "people judged spurious" if self.chosen_by == "people" else f"{look} most suspicious"
            found = [
                f"{text}, {_percent(self.mended.accuracy.value)} with the {count} component{'s' if count > 1 else ''} switched off "
                f"that {who}."
            ]
        if self.as_is.mauc is not None and self.mended.mauc is not None:
            tested = sum(e.under().spurious is not None for e in self.entries)
            found.append(
                f"Spurious score (mAUC) {_plain(self.as_is.mauc)} before and {_plain(self.mended.mauc)} after, over "
                f"{tested} class{'es' if tested > 1 else ''}; {_percent(self.as_is.triggered or 0.0)} and "
                f"{_percent(self.mended.triggered or 0.0)} of the images with only the feature are taken for the class."
            )
        for scores in self._fallen():
            found.append(self._fall_words(scores))
        return found

    def _fall_words(self, scores: Scores) -> str:
        name = scores.variant.condition
        assert scores.fall is not None
        text = f"Under {name} accuracy falls by {_range(scores.fall)} to {_percent(scores.accuracy.value)}"
        if scores.gains:
            text += f"; {_gain_words(scores.gains[0], self.measured.n_images)}"
        mended = self.scores.get(Variant(condition=name, mitigated=True))
        return f"{text}; SpuFix leaves {_percent(mended.accuracy.value)}." if mended else f"{text}."


def judge(
    model: str, outputs: Outputs, measured: Measured, entries: list[ClassEntry], chosen_by: str
) -> Verdict:
    """The verdict, see :class:`Judge`."""
    return Judge(model, outputs, measured, entries, chosen_by)()


def triggered_share(entry: ClassEntry, mitigated: bool = False) -> float:
    """Share of the images with only its feature that are taken for the class; 0 where there are none."""
    spurious = entry.under(mitigated=mitigated).spurious
    return 0.0 if spurious is None else spurious.triggered.value


def is_triggered(entry: ClassEntry) -> bool:
    """Whether the spurious images are taken for the class, far more often than other classes' images are."""
    spurious = entry.under().spurious
    if spurious is None or spurious.n_spurious < limits.SPURIOUS_IMAGES:
        return False
    rate = spurious.triggered
    low = rate.low if rate.low is not None else rate.value
    return rate.value >= limits.TRIGGERED and low > (entry.false_positives or 0.0)


def is_cured(entry: ClassEntry) -> bool:
    """Whether switching components off makes the spurious images lose the class."""
    before, after = (entry.under(mitigated=m).spurious for m in (False, True))
    if before is None or after is None or not entry.fixed:
        return False
    share = before.triggered.value
    return share - after.triggered.value >= limits.CURED * share and after.auc.value >= before.auc.value


def is_fallen(scores: Scores) -> bool:
    """Whether a condition costs accuracy: a fall worth a mark, whose interval excludes none."""
    return scores.fall is not None and scores.fall.value >= limits.FALL and (scores.fall.low or 0.0) > 0


def _cut(entry: ClassEntry) -> float:
    return triggered_share(entry) - triggered_share(entry, mitigated=True)


def _component_words(entry: ClassEntry) -> str:
    found = [c for c in entry.components if c.component in entry.fixed]
    if entry.judged is not None or not found:
        return "people judged its components spurious"
    first = found[0]
    rank = entry.components.index(first) + 1
    words = f"α is {first.gap:.1f} logits higher in {_percent(first.share)} of its training images than in the rest"
    if first.off_object is not None:
        words += f", and {_percent(first.off_object)} of the heatmap lies off the object"
    return f"{words} (rank {rank} of {entry.ranked})"


def _gain_words(gain: Gain, images: int) -> str:
    before, after = (n / images for n in gain.predicted)
    times = f"{gain.times:.0f}" if gain.times >= 9.5 else f"{gain.times:.1f}"
    return (
        f"{gain.name} gains most: {_percent(before)} of the images are taken for it before, {_percent(after)} after, its "
        f"probability × {times} in the median"
    )


def _percent(value: float) -> str:
    return f"{value:.1%}" if 0 < abs(value) < 0.0995 else f"{value:.0%}"


def _range(value: Interval) -> str:
    ends = (
        ""
        if value.low is None or value.high is None
        else f" ({_percent(value.low)} to {_percent(value.high)})"
    )
    return _percent(value.value) + ends


def _plain(value: Interval) -> str:
    ends = "" if value.low is None else f" ({value.low:.2f}–{value.high:.2f})"
    return f"{value.value:.2f}{ends}"


# --- gates -----------------------------------------------------------------------------------------------


def metrics(measured: Measured, entries: list[ClassEntry]) -> dict[str, Metric]:
    """The metrics that ``pfungst check`` can gate on: of the whole, and of the worst class or condition."""
    table: dict[str, Metric] = {}
    scores = {s.variant: s for s in measured.scores}
    as_is = scores[Variant(condition=ORIGINAL)]
    mended = scores.get(Variant(condition=ORIGINAL, mitigated=True), as_is)

    def whole(name: str, better: Better, meaning: str, value: float | Interval | None) -> None:
        value = value.value if isinstance(value, Interval) else value
        if value is not None and math.isfinite(value):
            table[name] = Metric(value=value, where="all classes", meaning=meaning, better=better)

    def worst(name: str, better: Better, meaning: str, per: dict[str, float]) -> None:
        if per:
            table[name] = Metric.worst(per, better, meaning)

    same = "the same with SpuFix"
    whole("accuracy", "higher", "accuracy on the validation images", as_is.accuracy)
    whole("accuracy-fixed", "higher", same, mended.accuracy)
    whole("accuracy-loss", "lower", "accuracy minus that with SpuFix", measured.loss)
    meaning = "mean ROC AUC, images of a class against its spurious feature alone"
    whole("mauc", "higher", meaning, as_is.mauc)
    whole("mauc-fixed", "higher", same, mended.mauc)
    whole("mauc-gain", "higher", "mAUC with SpuFix minus without", measured.gain)
    meaning = "mean average precision, as the published code computes"
    whole("published-map", "higher", meaning, as_is.published_map)
    whole("published-map-fixed", "higher", same, mended.published_map)

    for suffix, mitigated in (("", False), ("-fixed", True)):
        by = {e.name: e.under(mitigated=mitigated).spurious for e in entries}
        scored = {name: s for name, s in by.items() if s is not None}
        meaning = same if mitigated else "ROC AUC of one class"
        worst(f"class-auc{suffix}", "higher", meaning, {n: s.auc.value for n, s in scored.items()})
        meaning = (
            same
            if mitigated
            else "share of images with only the spurious feature that are taken for the class"
        )
        worst(f"triggered{suffix}", "lower", meaning, {n: s.triggered.value for n, s in scored.items()})
        under = {v.condition: s for v, s in scores.items() if v.mitigated is mitigated and s.fall is not None}
        meaning = same if mitigated else "accuracy under a condition"
        worst(
            f"condition-accuracy{suffix}", "higher", meaning, {c: s.accuracy.value for c, s in under.items()}
        )
        meaning = same if mitigated else "accuracy minus that under a condition"
        worst(f"fall{suffix}", "lower", meaning, {c: s.fall.value for c, s in under.items() if s.fall})
    losses = {e.name: (e.under().accuracy, e.under(mitigated=True).accuracy) for e in entries}
    worst(
        "class-accuracy-loss",
        "lower",
        "accuracy minus that with SpuFix, of one class",
        {name: a.value - b.value for name, (a, b) in losses.items() if a and b},
    )
    meaning = "how harmful the most suspicious component looks, blind"
    worst("harm", "lower", meaning, {e.name: e.harm for e in entries if e.components})
    meaning = f"components with harm of {limits.SUSPECT:g} or more, or judged spurious"
    worst("suspects", "lower", meaning, {e.name: float(len(e.suspects)) for e in entries})
    return table


_SPUFIX = {
    "mean": "SpuFix subtracts the positive α of the chosen components from the logit of their class, as published; no weight is "
    "changed. Of a feature in a share of the class's training images, that share of what it adds stays (--reference absent "
    "removes it whole).",
    "absent": "SpuFix subtracts from the logit of a class what α of its chosen components exceeds α of the training images that "
    "lack the feature: their mean, the lower group of the best split in two. No weight is changed. The published method "
    "(--reference mean) measures from the mean of all images, and so leaves the more of a feature the more of them have it.",
}


def explain_numbers(study: Study, measured: Measured, chosen_by: str) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    notes = [
        f"Classes: {study.outputs.order}.",
        f"Components: neural PCA of each class's weighted penultimate features (layer {study.head.layer}), all training images "
        "of the class, no prediction filter (Neuhaus et al. 2023).",
        "α is what a component adds to the logit of its class, relative to the mean over the class's training images.",
        "Harm: geometric mean of two or three cues. Concentration: how far the best split of α into two groups explains more of its "
        "variance than it would for a bell curve by chance, times the share by which the gap between the groups changes the odds of the "
        "class. Reach: that share, or, of the components shown, the confidence of the feature visualisation if it is higher. Share of "
        f"the heatmap off the object, where masks exist. From {limits.SUSPECT:g} a component is called suspicious. Nobody looked "
        "at the images for that.",
        _SPUFIX[study.config.reference],
        "Class intervals: Wilson for shares, Newcombe for AUC. Whole: paired bootstrap, 2,000 draws of images within classes.",
    ]
    if len(study.conditions) > 1:
        notes.append(
            f"A condition counts as a fall from {_percent(limits.FALL)} of accuracy on the same images, where the interval excludes "
            "none. Times: the probability of a class after over before, median over the validation images."
        )
    if measured.gain is not None:
        notes.append(
            "mAUC is the ROC AUC that the paper defines; the average precision that its published code computes is named "
            "published mAP. The two are not comparable."
        )
    if chosen_by == "ranking":
        notes.append(
            "The components that SpuFix switches off were chosen by the blind ranking, which can be wrong: look at them before "
            "using the fix."
        )
    return notes
