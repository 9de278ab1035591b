"""From numbers to a sentence: what a classifier audit concludes, and the metrics that gates use.

A component is called a Clever Hans effect only when explanation and intervention agree: it looks spurious (blind
ranking, or people), images with only the feature are taken for the class, and switching the component off ends that.
"""

from __future__ import annotations

import math

from pfungst.audit.classifier.rank import SUSPECT
from pfungst.audit.classifier.result import ClassEntry, ClassifierResult
from pfungst.audit.result import Better, Interval, Metric, Verdict

TRIGGERED = 0.25  # share of the spurious images taken for the class, from which they trigger it
CURED = 0.25  # share of the triggered images that the fix must answer otherwise, for the two to agree
_NAMED = 3


def judge(result: ClassifierResult) -> Verdict:
    """The verdict, the most serious thing first."""
    sentences = [_accuracy(result)]
    chance = max((e.n_validation for e in result.entries), default=0) / max(result.n_validation, 1)
    high = result.accuracy.high if result.accuracy.high is not None else result.accuracy.value
    if high <= max(chance, 1 / result.n_classes):
        return Verdict(
            level="unfit",
            headline=f"{result.model} does not classify: accuracy {_percent(result.accuracy.value)} on the validation images",
            sentences=[
                "Check that its classes are in the order of the folders, and how its images are prepared."
            ],
        )
    if result.mauc is not None and result.mauc_fixed is not None:
        sentences.append(_scores(result))
    suspicious = [e for e in result.entries if suspects(e)]
    triggered = [e for e in result.entries if is_triggered(e)]
    proven = sorted((e for e in triggered if suspects(e) and is_cured(e)), key=_cut, reverse=True)
    if proven:
        first = proven[0]
        assert first.scores is not None
        assert first.scores_fixed is not None
        names = ", ".join(str(c) for c in first.fixed)
        more = f" and {len(proven) - 1} more classes" if len(proven) > 1 else ""
        headline = (
            f"{result.model} takes {_percent(first.scores.triggered.value)} of the images with only a spurious feature "
            f"for {first.name}{more}; SpuFix leaves {_percent(first.scores_fixed.triggered.value)} at "
            f"{_percent(abs(result.accuracy_loss.value))} {'loss' if result.accuracy_loss.value >= 0 else 'gain'} of accuracy"
        )
        sentences.append(
            f"{first.name}, component{'s' if len(first.fixed) > 1 else ''} {names}: {_component_words(first)}. Explanation "
            "and intervention agree: this is a Clever Hans effect."
        )
        return Verdict(level="clever-hans", headline=headline, sentences=sentences)
    if triggered:
        worst = max(triggered, key=lambda e: e.scores.triggered.value if e.scores else 0.0)
        assert worst.scores is not None
        why = (
            "switching off the components that look spurious does not end it"
            if suspects(worst)
            else "no component of the class looks spurious by itself"
        )
        return Verdict(
            level="fragile",
            headline=f"{_percent(worst.scores.triggered.value)} of the images with only a spurious feature are taken for "
            f"{worst.name}, but {why}",
            sentences=[
                *sentences,
                "Label the components of this class (pfungst label) and run the audit again.",
            ],
        )
    unverified = [e for e in suspicious if e.scores is None]
    if unverified:
        count = sum(len(suspects(e)) for e in unverified)
        listed = ", ".join(e.name for e in unverified[:_NAMED]) + (" …" if len(unverified) > _NAMED else "")
        kind = "judged" if result.chosen_by == "people" else "looks" if count == 1 else "look"
        headline = f"{count} component{'s' if count > 1 else ''} {kind} spurious ({listed}); nothing has shown yet that they do harm"
        advice = "Collect images with only the feature (pfungst pool) and pass them as --spurious."
        if result.chosen_by != "people":
            advice = f"Look at them (pfungst label). {advice}"
        return Verdict(level="fragile", headline=headline, sentences=[*sentences, advice])
    headline = f"{result.model} shows no reliance on a spurious feature"
    if suspicious:
        sentences.append(
            f"{sum(len(suspects(e)) for e in suspicious)} components look spurious, but images with only the feature do not "
            "trigger their class."
        )
    elif result.mauc is None:
        sentences.append(
            "No images with only a spurious feature were given, so this rests on the ranking alone."
        )
    return Verdict(level="sound", headline=headline, sentences=sentences)


def suspects(entry: ClassEntry) -> list[int]:
    """Components that people judged spurious, or, where nobody looked, that the ranking suspects."""
    if entry.judged is not None:
        return entry.judged
    return [c.component for c in entry.components if c.suspect]


def is_triggered(entry: ClassEntry) -> bool:
    """Whether the spurious images are taken for the class, far more often than other classes' images are."""
    if entry.scores is None:
        return False
    rate = entry.scores.triggered
    low = rate.low if rate.low is not None else rate.value
    return rate.value >= TRIGGERED and low > (entry.false_positives or 0.0)


def is_cured(entry: ClassEntry) -> bool:
    """Whether switching components off makes the spurious images lose the class."""
    if entry.scores is None or entry.scores_fixed is None or not entry.fixed:
        return False
    before, after = entry.scores.triggered.value, entry.scores_fixed.triggered.value
    return before - after >= CURED * before and entry.scores_fixed.auc.value >= entry.scores.auc.value


def _cut(entry: ClassEntry) -> float:
    assert entry.scores is not None
    assert entry.scores_fixed is not None
    return entry.scores.triggered.value - entry.scores_fixed.triggered.value


def _component_words(entry: ClassEntry) -> str:
    found = [c for c in entry.components if c.fixed]
    if entry.judged is not None or not found:
        return "people judged its components spurious"
    first = found[0]
    rank = entry.components.index(first) + 1
    words = f"α is {first.gap:.1f} logits higher in {_percent(first.share)} of its training images than in the rest"
    if first.off_object is not None:
        words += f", and {_percent(first.off_object)} of the heatmap lies off the object"
    return f"{words} (rank {rank} of {entry.ranked})"


def _accuracy(result: ClassifierResult) -> str:
    text = f"Accuracy {_percent(result.accuracy.value)} on {result.n_validation:,} validation images"
    if result.chosen_by == "nothing":
        return f"{text}; nothing was switched off."
    count = sum(len(e.fixed) for e in result.entries)
    look = "looks" if count == 1 else "look"
    who = "people judged spurious" if result.chosen_by == "people" else f"{look} most suspicious"
    return (
        f"{text}, {_percent(result.accuracy_fixed.value)} with the {count} component{'s' if count > 1 else ''} switched off "
        f"that {who}."
    )


def _scores(result: ClassifierResult) -> str:
    assert result.mauc is not None
    assert result.mauc_fixed is not None
    tested = [e for e in result.entries if e.scores is not None]
    return (
        f"Spurious score (mAUC) {_interval(result.mauc)} before and {_interval(result.mauc_fixed)} after, over "
        f"{len(tested)} class{'es' if len(tested) > 1 else ''}; {_percent(result.triggered or 0.0)} and "
        f"{_percent(result.triggered_fixed or 0.0)} of the images with only the feature are taken for the class."
    )


def _percent(value: float) -> str:
    return f"{value:.1%}" if 0 < abs(value) < 0.0995 else f"{value:.0%}"


def _interval(value: Interval) -> str:
    return (
        f"{value.value:.2f} ({value.low:.2f}–{value.high:.2f})"
        if value.low is not None
        else f"{value.value:.2f}"
    )


# --- gates -----------------------------------------------------------------------------------------------


def metrics(result: ClassifierResult) -> dict[str, Metric]:
    """The metrics that ``pfungst check`` can gate on: of the whole, and of the worst class."""
    table: dict[str, Metric] = {}

    def whole(name: str, better: Better, meaning: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            table[name] = Metric(value=value, where="all classes", meaning=meaning, better=better)

    def worst(name: str, better: Better, meaning: str, per: dict[str, float]) -> None:
        if per:
            table[name] = Metric.worst(per, better, meaning)

    whole("accuracy", "higher", "accuracy on the validation images", result.accuracy.value)
    whole("accuracy-fixed", "higher", "the same with SpuFix", result.accuracy_fixed.value)
    whole("accuracy-loss", "lower", "accuracy minus that with SpuFix", result.accuracy_loss.value)
    whole(
        "mauc",
        "higher",
        "mean ROC AUC, images of a class against its spurious feature alone",
        _value(result.mauc),
    )
    whole("mauc-fixed", "higher", "the same with SpuFix", _value(result.mauc_fixed))
    whole("mauc-gain", "higher", "mAUC with SpuFix minus without", _value(result.mauc_gain))
    whole(
        "published-map",
        "higher",
        "mean average precision, as the published code computes",
        result.published_map,
    )
    whole("published-map-fixed", "higher", "the same with SpuFix", result.published_map_fixed)

    names = {e.index: f"{e.index} {e.name}" for e in result.entries}
    scored = [(names[e.index], e.scores, e.scores_fixed) for e in result.entries if e.scores]
    worst("class-auc", "higher", "ROC AUC of one class", {n: s.auc.value for n, s, _ in scored})
    worst("class-auc-fixed", "higher", "the same with SpuFix", {n: f.auc.value for n, _, f in scored if f})
    worst(
        "triggered",
        "lower",
        "share of images with only the spurious feature that are taken for the class",
        {n: s.triggered.value for n, s, _ in scored},
    )
    worst(
        "triggered-fixed", "lower", "the same with SpuFix", {n: f.triggered.value for n, _, f in scored if f}
    )
    worst(
        "class-accuracy-loss",
        "lower",
        "accuracy minus that with SpuFix, of one class",
        {
            names[e.index]: e.accuracy.value - e.accuracy_fixed.value
            for e in result.entries
            if e.accuracy and e.accuracy_fixed
        },
    )
    worst(
        "harm",
        "lower",
        "how harmful the most suspicious component looks, blind",
        {names[e.index]: max(c.harm for c in e.components) for e in result.entries if e.components},
    )
    suspicious = {names[e.index]: float(len(suspects(e))) for e in result.entries}
    worst("suspects", "lower", f"components with harm of {SUSPECT} or more, or judged spurious", suspicious)
    return table


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _spufix(result: ClassifierResult) -> str:
    if result.reference == "mean":
        return (
            "SpuFix subtracts the positive α of the chosen components from the logit of their class, as published; no weight is "
            "changed. Of a feature in a share of the class's training images, that share of what it adds stays (--reference absent "
            "removes it whole)."
        )
    return (
        "SpuFix subtracts from the logit of a class what α of its chosen components exceeds α of the training images that lack the "
        "feature: their mean, the lower group of the best split in two. No weight is changed. The published method (--reference "
        "mean) measures from the mean of all images, and so leaves the more of a feature the more of them have it."
    )


def explain_numbers(result: ClassifierResult) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    notes = [
        f"Components: neural PCA of each class's weighted penultimate features (layer {result.layer}), all training images "
        "of the class, no prediction filter (Neuhaus et al. 2023).",
        "α is what a component adds to the logit of its class, relative to the mean over the class's training images.",
        "Harm: geometric mean of two or three cues. Concentration: how far the best split of α into two groups explains more of its "
        "variance than it would for a bell curve by chance, times the share by which the gap between the groups changes the odds of the "
        "class. Reach: that share, or the confidence of the feature visualisation if it is higher. Share of the heatmap off the "
        "object, where masks exist. "
        f"From {SUSPECT} a component is called suspicious. Nobody looked at the images for that.",
        _spufix(result),
        "Class intervals: Wilson for shares, Newcombe for AUC. Whole: paired bootstrap, 2,000 draws of images within classes.",
    ]
    if result.mauc is not None:
        notes.append(
            "mAUC is the ROC AUC that the paper defines; the average precision that its published code computes is named "
            "published mAP. The two are not comparable."
        )
    if result.chosen_by == "ranking":
        notes.append(
            "The components that SpuFix switches off were chosen by the blind ranking, which can be wrong: look at them before "
            "using the fix."
        )
    if result.npfv_note:
        notes.append(result.npfv_note)
    return notes
