"""From numbers to a sentence: what a similarity audit concludes, and the metrics that gates use.

An effect is called Clever Hans only when explanation and intervention agree. Intervention: the probe gets worse under a
condition, and the images that it turns wrong gather in one class. Explanation: what the condition pastes carries both the
similarity of images of different classes and the probe's evidence for that class, more than its area and more than the
same place without it. An occlusion that merely costs accuracy may meet the second part, but scatters its errors.
"""

from __future__ import annotations

import math

from pfungst.audit.result import Better, Metric, Verdict
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.result import Artefact, Provenance, SimilarityResult

FALL = 0.03  # of the class-balanced accuracy (Kauffmann et al. 2025)
EXCESS = 0.1  # by which relevance on a pasted region exceeds its area, for the explanation to agree
TIMES = 1.5  # by which it exceeds what the same place carries without what is pasted
GATHER = {
    False: 0.5,
    True: 0.8,
}  # share of the images turned wrong in one class; the second with two classes only
SHARED = 0.5  # of the positive relevance of sentence pairs between equal words
TELLS = 0.8  # AUROC from which similarity tells relations apart
ORIGINAL = "original"


def judge(result: SimilarityResult) -> Verdict:
    """The verdict, the most serious and best established thing first."""
    return _judge_texts(result) if result.modality == "texts" else _judge_images(result)


def _judge_images(result: SimilarityResult) -> Verdict:
    base = result.pooled(ORIGINAL)
    assert base is not None
    chance = 1 / len(result.classes)
    low = base.accuracy.value if base.accuracy.low is None else base.accuracy.low
    what = f"{result.encoder}{'' if result.trained else ' (random weights)'}"
    told = f"class-balanced accuracy {base.accuracy.value:.2f} over {base.n} images"
    sentences: list[str] = []
    hans = [c for c in falls(result) if _agrees(result, c)]
    follows = [p for p in result.provenance if p.follows]
    if hans:
        worst = max(hans, key=lambda c: falls(result)[c])
        level, headline = "clever-hans", _hans(result, worst, what, sentences)
    elif follows:
        leading = max(follows, key=lambda p: p.eta2_group - p.eta2_label)
        level, headline = "provenance", f"{what}: the label follows {leading.column}, and so does the probe"
        sentences += _provenance(leading)
    elif low <= chance:
        level = "unfit"
        headline = f"{what} does not hold the label: {told}, where chance is {chance:.2f}"
    elif falls(result):
        worst = max(falls(result), key=lambda c: falls(result)[c])
        after = result.pooled(worst)
        assert after is not None
        level = "fragile"
        headline = f"A probe on {what} does not survive {worst}: accuracy {base.accuracy.value:.2f} → {after.accuracy.value:.2f}"
        sentences.append("Explanation and intervention do not agree, so the cause is not established.")
    else:
        level = "sound"
        held = f" and holds under {', '.join(c for c in _conditions(result))}" if _conditions(result) else ""
        headline = f"A probe on {what} reaches {told}{held}"
    if level != "provenance":
        sentences += _mended(result) + [s for p in follows for s in _provenance(p)]
    if level == "provenance":
        sentences += [
            f"{p.column} alone: the probe's score follows it too ({'; '.join(p.reasons)})."
            for p in follows
            if f"follows {p.column}," not in headline
        ]
        sentences.append(f"Pooled, the probe has {told} (chance {chance:.2f}).")
        sentences += _mended(result)
    sentences += _regions(result, every=level == "provenance")
    if not result.trained:
        sentences.append("The encoder has random weights: it is a baseline, not a model anyone trained.")
    return Verdict(level=level, headline=headline, sentences=sentences)


def _conditions(result: SimilarityResult) -> list[str]:
    return [v for v in result.variants if v != ORIGINAL and not v.startswith("mitigated ")]


def falls(result: SimilarityResult) -> dict[str, float]:
    """Conditions under which the accuracy falls by a mark (or, with too few repetitions to test, by its size)."""
    base = result.pooled(ORIGINAL)
    found = {}
    for condition in _conditions(result):
        after = result.pooled(condition)
        if base is None or after is None:
            continue
        fall = base.accuracy.value - after.accuracy.value
        untested = len(after.per_seed) < 3
        if after.mark.startswith("↓") or (untested and fall >= FALL):
            found[condition] = fall
    return found


def _artefact(result: SimilarityResult, condition: str) -> Artefact | None:
    return next((a for a in result.artefacts if a.condition == condition), None)


def _rests(share: float, without: float, area: float) -> bool:
    """Whether a share of relevance shows that what was pasted counts, not merely the place."""
    return share - area >= EXCESS and share >= TIMES * without


def _agrees(result: SimilarityResult, condition: str) -> bool:
    """Similarity and the probe's evidence rest on what was pasted, and errors gather in one class because of it."""
    artefact, errors = _artefact(result, condition), result.confusion[condition]
    if artefact is None or errors.into is None:
        return False
    similar = _rests(artefact.share, artefact.share_without, artefact.area)
    read = _rests(artefact.evidence, artefact.evidence_without, artefact.area)
    gathered = errors.turned_share >= GATHER[len(result.classes) == 2]
    return similar and read and gathered and errors.turned > 0


def _hans(result: SimilarityResult, condition: str, what: str, sentences: list[str]) -> str:
    base, after = result.pooled(ORIGINAL), result.pooled(condition)
    artefact, errors = _artefact(result, condition), result.confusion[condition]
    assert base is not None
    assert after is not None
    assert artefact is not None
    sentences.append(
        f"With it pasted, {artefact.share:.0%} of what makes images of different classes alike lies on the pasted region, "
        f"{artefact.area:.0%} of the area ({artefact.share_without:.0%} without it); their mean similarity goes from "
        f"{artefact.similarity_without:.2f} to {artefact.similarity:.2f}."
    )
    sentences.append(
        f"{artefact.evidence:.0%} of the probe's evidence for {errors.into!r} lies there ({artefact.evidence_without:.0%} "
        "without it)."
    )
    sentences.append(
        f"Of {errors.turned} images that {condition} turns wrong, {errors.turned_share:.0%} are taken for {errors.into!r}; so are "
        f"{errors.share:.0%} of all {errors.errors} errors under it."
    )
    place = {r.group: r.share for r in result.regions if r.name == f"where {condition} lies" and not r.column}
    own = place.pop(errors.into or "", 0.0)
    others = [share for name, share in place.items() if name]
    if others and own >= sum(others) / len(others) + EXCESS:
        sentences.append(
            f"In images as they are, {own:.0%} of what makes two images of {errors.into!r} alike lies there (other classes: "
            f"{sum(others) / len(others):.0%}): the class itself holds it."
        )
    sentences.append("Explanation and intervention agree: this is a Clever Hans effect.")
    return (
        f"A probe on {what} reads {condition} as {errors.into!r}: accuracy {base.accuracy.value:.2f} → "
        f"{after.accuracy.value:.2f}"
    )


def _mended(result: SimilarityResult) -> list[str]:
    found: list[str] = []
    if result.mitigation is None:
        return found
    taken = result.mitigation.trials[result.mitigation.chosen]
    where = "" if taken.where == "everywhere" else f" in {taken.where}"
    for condition, share in result.mitigation.recovered.items():
        before, after = result.pooled(condition), result.pooled(f"mitigated {condition}")
        if share is not None and before is not None and after is not None:
            back = f"{share:.0%} of the fall"
            if share > 1.05:
                back = "more than the fall, since original images hold the artefact too"
            found.append(
                f"Setting {taken.k} filters of {taken.layer} to zero{where} brings the accuracy under {condition} from "
                f"{before.accuracy.value:.2f} to {after.accuracy.value:.2f}: {back}."
            )
    return found


def _provenance(p: Provenance) -> list[str]:
    within = "not defined" if p.auroc_within is None else f"{p.auroc_within:.2f}"
    accuracy = (
        ""
        if p.accuracy_within is None
        else f", class-balanced accuracy {p.accuracy_pooled:.2f} and {p.accuracy_within:.2f}"
    )
    found = [
        f"{p.column} explains {p.eta2_group:.0%} of the variance of the score for {p.label!r} and the label "
        f"{p.eta2_label:.0%}; AUROC is {p.auroc_pooled:.2f} pooled and {within} within {p.column}{accuracy}.",
        f"Naming the commonest label of each {p.column}, without looking at any image, has a class-balanced accuracy "
        f"of {p.by_group_alone:.2f}.",
    ]
    if not math.isnan(p.group_readable) and p.group_readable >= p.group_chance + 0.5 * (1 - p.group_chance):
        found.append(
            f"{p.column} can be read from the representation: accuracy {p.group_readable:.2f}, chance {p.group_chance:.2f}."
        )
    return found


def _regions(result: SimilarityResult, every: bool) -> list[str]:
    """Shares on places that should not matter: all of them, or those that carry 1.5 times their area."""
    found = []
    for name in ("border", "burnt-in marks"):
        region = next((r for r in result.regions if r.name == name and not r.column and not r.group), None)
        if region is not None and (every or region.share >= TIMES * region.area):
            found.append(
                f"{region.share:.1%} of the similarity's relevance lies on the {name}, {region.area:.1%} of the area."
            )
    return found


def _judge_texts(result: SimilarityResult) -> Verdict:
    expected, *others = result.relations
    sentences = [
        f"Mean similarity: {expected.name} {expected.similarity.value:.2f}"
        + "".join(f", {o.name} {o.similarity.value:.2f}" for o in others)
        + f". Sums over token pairs and biases agree with the similarity to {result.conservation:.1e}."
    ]
    if not others or result.auroc is None:
        headline = f"{result.encoder}: {expected.shared_tokens:.0%} of what makes {expected.name} pairs alike lies between equal words"
        return Verdict(level="sound", headline=headline, sentences=sentences)
    worst = max(others, key=lambda o: o.similarity.value)
    sentences.append(
        f"{worst.shared_tokens:.0%} of the positive relevance of {worst.name} pairs lies between equal words, "
        f"{worst.special_tokens:.0%} of all relevance on separators and punctuation."
    )
    if result.auroc >= TELLS:
        headline = f"{result.encoder} tells {expected.name} from {', '.join(o.name for o in others)}: AUROC {result.auroc:.2f}"
        return Verdict(level="sound", headline=headline, sentences=sentences)
    headline = f"{result.encoder} finds {worst.name} pairs as alike as {expected.name} ones (AUROC {result.auroc:.2f})"
    if worst.shared_tokens >= SHARED:
        sentences.append(
            "Changing what a sentence says leaves the similarity high, and the relevance lies on the words that did "
            "not change: explanation and intervention agree, it looks at shared words."
        )
        return Verdict(
            level="clever-hans", headline=f"{headline}: it looks at shared words", sentences=sentences
        )
    return Verdict(level="unfit", headline=headline, sentences=sentences)


def metrics(result: SimilarityResult) -> dict[str, Metric]:
    """The gateable metrics: for each the worst over conditions, groups and columns."""
    table: dict[str, tuple[dict[str, float], Better, str]] = {}

    def add(name: str, better: Better, meaning: str, where: str, value: float | None) -> None:
        if value is not None and not math.isnan(value):
            table.setdefault(name, ({}, better, meaning))[0][where] = float(value)

    base = result.pooled(ORIGINAL)
    if base is not None:
        add("accuracy", "higher", "class-balanced accuracy of the probe", "all images", base.accuracy.value)
        add(
            "fpr",
            "lower",
            "false positive rate of the probe",
            "all images",
            base.fpr.value if base.fpr else None,
        )
    for s in result.scores:
        if s.column and s.variant == ORIGINAL and len(s.counts) > 1:
            where = f"{s.column} {s.group}"
            add("accuracy-group", "higher", "class-balanced accuracy within a group", where, s.accuracy.value)
            add(
                "fpr-group",
                "lower",
                "false positive rate within a group",
                where,
                s.fpr.value if s.fpr else None,
            )
    for condition in _conditions(result):
        after, mended = result.pooled(condition), result.pooled(f"mitigated {condition}")
        assert base is not None
        assert after is not None
        fall = "accuracy on the original images minus accuracy under the condition"
        add("condition-drop", "lower", fall, condition, base.accuracy.value - after.accuracy.value)
        errors = result.confusion[condition]
        add("confusion-share", "lower", "share of the errors in one class", condition, errors.share)
        if mended is not None:
            lost = base.accuracy.value - mended.accuracy.value
            add("mitigated-drop", "lower", "the same with the pruned encoder", condition, lost)
    if result.mitigation is not None:
        for condition, share in result.mitigation.recovered.items():
            add("recovered", "higher", "share of the fall that pruning brings back", condition, share)
    for a in result.artefacts:
        meaning = "share of the relevance on what is pasted, less its area"
        add("artefact-excess", "lower", meaning, a.condition, a.share - a.area)
        meaning = "share of the probe's evidence on what is pasted, less its area"
        add("evidence-excess", "lower", meaning, a.condition, a.evidence - a.area)
    for r in result.regions:
        if not r.column and not r.group:
            add(
                "region-excess",
                "lower",
                "share of the relevance on a region, less its area",
                r.name,
                r.share - r.area,
            )
    for p in result.provenance:
        gap = None if p.auroc_within is None else abs(p.auroc_pooled - p.auroc_within)
        add("provenance-gap", "lower", "AUROC pooled against within groups", p.column, gap)
        meaning = "share of the score's variance explained by the group, less that by the label"
        add("provenance-eta2", "lower", meaning, p.column, p.eta2_group - p.eta2_label)
    add("auroc", "higher", "similarity of the first relation against the others", "all pairs", result.auroc)
    for o in result.relations[1:]:
        add(
            "similarity",
            "lower",
            "mean similarity of pairs that should not be alike",
            o.name,
            o.similarity.value,
        )
    for o in result.relations:
        add("shared-tokens", "lower", "share of the relevance between equal words", o.name, o.shared_tokens)
    add(
        "conservation",
        "lower",
        "error of relevance and biases against the similarity",
        "worst pair",
        result.conservation,
    )
    return {name: Metric.worst(per, better, meaning) for name, (per, better, meaning) in table.items()}


def _pruning_note(result: SimilarityResult) -> list[str]:
    if result.mitigation is None:
        return []
    leak = "" if result.split == "given" else " (those of the first fold, which other folds test on)"
    return [
        "Filters are ranked by their mean activation with the condition minus without, on training images. Settings are "
        f"compared on {result.mitigation.images} validation images held out of the training images{leak}, by a probe fitted "
        "anew on the rest; where the audit chooses, the mean of the accuracies without and with the condition decides."
    ]


def explain_numbers(result: SimilarityResult, config: SimilarityConfig) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    basis = (
        f"BiLRP of the cosine similarity ({result.composite}, {result.basis}; Eberle et al. 2022): values over pairs of "
        "components sum, with what biases absorb, to the similarity."
    )
    if result.modality == "texts":
        return [
            basis,
            "Shares between equal words count positive relevance of token pairs, markers and punctuation left out; means "
            f"over up to {config.explain} pairs per relation.",
            f"AUROC: chance that a {result.relations[0].name} pair is more similar than any other pair.",
        ]
    kept = f"; images of one {result.kept_together} are never on both sides" if result.kept_together else ""
    split = (
        "the data's own test images; every repetition fits on another 80 % of the training images"
        if result.split == "given"
        else "folds: every image is tested by a probe that was not fitted on it; every repetition deals them anew"
    )
    probe = {
        "logreg": "multinomial logistic regression (ℓ2, C = 1, no offset, classes balanced)",
        "svm": "linear support vector machine (C = 0.01, classes balanced)",
    }[config.probe]
    return [
        f"Probe: {probe}. Split: {split}{kept}.",
        f"Accuracies are means of the classes' recalls over {len(result.seeds)} repetitions; intervals are 95 % bootstrap "
        f"intervals over {result.kept_together or 'image'}s.",
        "Rebalanced: accuracy with weights that cap each class at the weight of 10 images (Kauffmann et al. 2025).",
        "Probes are fitted on original images only and see every condition with the same weights; the mitigated probe is "
        "fitted anew on the pruned encoder.",
        "Marks: ↓ accuracy falls by 0.03 or more, ↓↓ by 0.06 or more, ↑ rises by 0.03 or more, only where a two-sided t-test "
        "over at least 3 repetitions gives P < 0.001. Conditions are held against the original images, the mitigated "
        "encoder against the same condition.",
        *_pruning_note(result),
        basis,
        "Evidence: positive relevance of the probe's score for the class that errors fall into minus its score for the "
        "true class, read through the encoder with the same rules, over images of other classes.",
        f"Averages over groups: mean |relevance| over up to 150 pairs within each group, among {config.explain} images.",
        "The border is the outer 8 % of each side; burnt-in marks are small saturated spots near the edges, looked for at up to 512 px, a heuristic.",
    ]
