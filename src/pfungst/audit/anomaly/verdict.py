"""From numbers to a sentence: what an anomaly audit concludes, and the metrics that gates use.

An effect is called Clever Hans only when explanation and intervention agree: the relevance lies on what the
deployed condition removes, the detector gets worse when it is removed, and it is well without it.
"""

from __future__ import annotations

import math

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.result import Entry, Scores
from pfungst.audit.result import Better, Level, Metric, Verdict

FIT_AUROC = 0.8  # below this a detector is not called a detector
FALL = 0.03  # of F1; smaller ones are not marked (Kauffmann et al. 2025, table 1)
LOST_SHARE = 0.1  # of the relevance on what deployment removes, for the explanation to agree

SERIOUS: tuple[Level, ...] = ("sound", "fragile", "clever-hans", "provenance", "unfit")


def judge(entries: list[Entry], mean: dict[str, dict[str, Scores]], config: AnomalyConfig) -> Verdict:
    """The verdict on all detectors of an audit, the most serious first."""
    verdicts = [
        _judge_model(model, [e for e in entries if e.model == model], mean[model], config) for model in mean
    ]
    verdicts.sort(key=lambda v: SERIOUS.index(v.level), reverse=True)
    first = verdicts[0]
    if len(verdicts) == 1:
        return first
    others = [f"{v.headline}." if not v.headline.endswith(".") else v.headline for v in verdicts[1:]]
    return Verdict(level=first.level, headline=first.headline, sentences=[*first.sentences, *others])


def _judge_model(model: str, entries: list[Entry], mean: dict[str, Scores], config: AnomalyConfig) -> Verdict:
    original, deployed = mean["original"], mean["deployed"]
    mended = mean.get("mitigated")
    fall = original.f1.value - deployed.f1.value
    auroc = original.auroc.value
    unfit = auroc < FIT_AUROC or math.isnan(auroc)
    follows = [(e, p) for e in entries for p in e.provenance if p.follows]
    sentences = []

    if follows:
        entry, worst = max(
            follows, key=lambda pair: abs(pair[1].auroc_pooled - (pair[1].auroc_within or 0.5))
        )
        low = min(worst.groups, key=lambda g: g.mean_score)
        high = max(worst.groups, key=lambda g: g.mean_score)
        within = f"{worst.auroc_within:.2f}" if worst.auroc_within is not None else "not defined"
        sentences.append(
            f"In {entry.category}, {worst.column} explains {worst.eta2_group:.0%} of the score's variance and the "
            f"label {worst.eta2_label:.0%}; AUROC is {worst.auroc_pooled:.2f} pooled and {within} within {worst.column}."
        )
        sentences.append(
            f"The mean score goes from {_number(low.mean_score)} ({low.name}) to "
            f"{_number(high.mean_score)} ({high.name})."
        )
        headline = f"the score follows the {worst.column}, not the defect"
        found, of = len({e.category for e, _ in follows}), len({e.category for e in entries})
        if found < of:
            headline += f", in {found} of {of} categories"
        if not unfit:
            return Verdict(level="provenance", headline=f"{model}: {headline}", sentences=sentences)
        headline = f"{model} is unfit for this task (AUROC {auroc:.2f}): {headline}"
        return Verdict(level="unfit", headline=headline, sentences=sentences)

    if unfit:
        trivial = sum(e.trivial_f1 for e in entries) / len(entries)
        sentences.append(
            f"AUROC {auroc:.2f} and F1 {original.f1.value:.2f} on the original images, where flagging everything "
            f"has F1 {trivial:.2f}. Whatever it looks at, it does not tell defects from good parts."
        )
        if auroc < 0.4:
            sentences.append(
                "An AUROC far below 0.5 means that good test images differ from the training images more than "
                "defects do: check whether the sets come from different sources (--groups)."
            )
        return Verdict(
            level="unfit", headline=f"{model} is unfit for this task: AUROC {auroc:.2f}", sentences=sentences
        )

    lost = _mean([e.exposure["lost_in_deployment"] for e in entries if "lost_in_deployment" in e.exposure])
    rates = f"FNR {original.fnr.value:.0%} → {deployed.fnr.value:.0%}, FPR {original.fpr.value:.0%} → {deployed.fpr.value:.0%}"
    rates += f", F1 {original.f1.value:.2f} → {deployed.f1.value:.2f}"
    repair = ""
    if mended is not None:
        repair = f"; with {config.mitigate} FNR {mended.fnr.value:.0%}, F1 {mended.f1.value:.2f}"
    if lost is not None:
        sentences.append(
            f"{lost:.0%} of the relevance lies on what {config.deployed} removes from the images"
            + (
                f", {_mean([e.exposure['high'] for e in entries if 'high' in e.exposure]) or 0:.0%} on high frequencies."
            )
        )
    if fall >= FALL:
        if mended is not None:
            recovered = (mended.f1.value - deployed.f1.value) / fall
            sentences.append(f"The mitigation recovers {recovered:.0%} of the fall in F1.")
        explained = lost is not None and lost >= LOST_SHARE
        mends = mended is None or mended.f1.value - deployed.f1.value >= fall / 2
        if explained and mends:
            sentences.append("Explanation and intervention agree: this is a Clever Hans effect.")
            return Verdict(
                level="clever-hans",
                headline=f"{model} relies on frequencies that {config.deployed} removes: {rates}{repair}",
                sentences=sentences,
            )
        sentences.append("Explanation and intervention do not agree, so the cause is not established.")
        return Verdict(
            level="fragile",
            headline=f"{model} does not survive {config.deployed}: {rates}{repair}",
            sentences=sentences,
        )
    if original.clever_hans is not None and original.clever_hans.value >= 0.5:
        sentences.append(
            f"Clever Hans score {original.clever_hans.value:.2f}: it detects well while its relevance lies mostly "
            "outside the defects. Look at the heatmaps before you sign off."
        )
    return Verdict(
        level="sound", headline=f"{model} holds under {config.deployed}: {rates}{repair}", sentences=sentences
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _mean(values: list[float]) -> float | None:
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else None


def metrics(entries: list[Entry]) -> dict[str, Metric]:
    """The gateable metrics: for each the worst over categories and detectors."""
    table: dict[str, tuple[dict[str, float], Better, str]] = {}

    def add(name: str, better: Better, meaning: str, where: str, value: float | None) -> None:
        if value is not None:
            table.setdefault(name, ({}, better, meaning))[0][where] = value

    for e in entries:
        where = f"{e.category} / {e.model}"
        original, deployed, mended = (
            e.variants["original"],
            e.variants["deployed"],
            e.variants.get("mitigated"),
        )
        ch = original.clever_hans
        add("auroc", "higher", "AUROC on the original images", where, original.auroc.value)
        add("f1", "higher", "F1 on the original images", where, original.f1.value)
        add("f1-deployed", "higher", "F1 on the deployed images", where, deployed.f1.value)
        add("fnr-deployed", "lower", "FNR on the deployed images", where, deployed.fnr.value)
        add("f1-drop", "lower", "F1 original minus deployed", where, original.f1.value - deployed.f1.value)
        add(
            "fnr-rise", "lower", "FNR deployed minus original", where, deployed.fnr.value - original.fnr.value
        )
        add(
            "clever-hans-score",
            "lower",
            "AUROC minus cosine of relevance and mask",
            where,
            ch.value if ch else None,
        )
        add(
            "high-frequency-share",
            "lower",
            "share of relevance above index 190",
            where,
            e.exposure.get("high"),
        )
        add(
            "outside-mask-share",
            "lower",
            "share of relevance off the defect",
            where,
            e.exposure.get("outside_mask"),
        )
        add(
            "lost-in-deployment",
            "lower",
            "share of relevance on what the deployed condition removes",
            where,
            e.exposure.get("lost_in_deployment"),
        )
        if mended is not None:
            drop = original.f1.value - mended.f1.value
            add("mitigated-f1-drop", "lower", "F1 original minus F1 mended and deployed", where, drop)
        for p in e.provenance:
            gap = None if p.auroc_within is None else abs(p.auroc_pooled - p.auroc_within)
            add(
                "provenance-gap", "lower", "AUROC pooled against within groups", f"{where} by {p.column}", gap
            )
            add(
                "provenance-eta2",
                "lower",
                "share of the score's variance explained by the group, less that by the label",
                f"{where} by {p.column}",
                p.eta2_group - p.eta2_label,
            )

    return {name: Metric.worst(per, better, meaning) for name, (per, better, meaning) in table.items()}


def explain_numbers(config: AnomalyConfig) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    if config.protocol == "published":
        threshold = (
            "Protocol 'published': the threshold is the one of best F1 on the labelled original test images, kept for "
            "the deployed ones. Such numbers are optimistic; F1 is the plain one, as published."
        )
    else:
        threshold = (
            f"Protocol 'held-out': the threshold is the {config.quantile:.0%} quantile of scores of normal images that "
            "the scoring detector had not seen (left out one by one, and a random fifth left out altogether)."
        )
    repetitions = f"{config.seeds} repetition{'s' if config.seeds > 1 else ''}"
    fits = "fit on all training images" if config.protocol == "published" else "fit on a random 80 % each"
    return [
        threshold,
        f"Values are means over {repetitions} ({fits}); intervals are 95 % stratified bootstrap intervals over the "
        "test images, pooled over the repetitions.",
        "The same fitted detector and the same threshold score the original and the deployed images.",
        "Marks: ↓ F1 falls by 0.03 or more, ↓↓ by 0.06 or more, ↑ F1 rises by 0.03 or more through the mitigation; "
        "only where a two-sided t-test over at least 3 repetitions gives P < 0.001.",
        "F1 balanced weighs good and defective images equally; flagging everything would have the F1 named beside it.",
        "Clever Hans score: AUROC minus the mean cosine between positive relevance and mask over defective images "
        "(Kauffmann et al. 2020), from the first repetition.",
        "Lost in deployment: share of relevance per frequency band times the share of the images' energy in that band "
        "(deviation from the mean training image) that the deployed condition removes.",
        "High frequencies: zigzag index 190 and above, as in the published pictures.",
    ]
