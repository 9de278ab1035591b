"""The metrics of a similarity audit that gates use, and how its numbers were made."""

from __future__ import annotations

from collections.abc import Iterator

from pfungst.audit.result import Metric, MetricRow, Variant
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.prepare import AS_IS
from pfungst.audit.similarity.result import SIMILARITY, Findings, named
from pfungst.measure import limits


def metrics(result: Findings) -> dict[str, Metric]:
    """The gateable metrics: for each the worst over conditions, groups and columns."""
    return Metric.table(_text_rows(result) if result.modality == "texts" else _image_rows(result))


def _image_rows(result: Findings) -> Iterator[MetricRow]:
    base = result.score(AS_IS)
    accuracy = base.accuracy.value
    for s in result.scores:
        if s.variant == AS_IS and (not s.column or len(s.counts) > 1):
            end, where = ("-group", named(s.column, s.group)) if s.column else ("", "all images")
            inside = " within a group" if s.column else " of the probe"
            yield f"accuracy{end}", "higher", f"class-balanced accuracy{inside}", where, s.accuracy.value
            fpr = None if s.fpr is None else s.fpr.value
            yield f"fpr{end}", "lower", f"false positive rate{inside}", where, fpr
    for g in result.subgroups:
        for f in [g.whole, *g.classes] if g.whole is not None else []:
            meaning = "accuracy of the other images of the same classes minus that of the group"
            where = str(g) + ("" if f is g.whole else f", {f.classes[0]}")
            yield "group-drop", "lower", meaning, where, f.fall.value
    for condition in result.conditions:
        where = condition.condition
        meaning = "accuracy on the original images minus accuracy under the condition"
        yield "condition-drop", "lower", meaning, where, accuracy - result.score(condition).accuracy.value
        share = result.confusion[condition.key].share
        yield "confusion-share", "lower", "share of the errors in one class", where, share
        mended = result.pooled(Variant(condition=where, mitigated=True))
        lost = None if mended is None else accuracy - mended.accuracy.value
        yield "mitigated-drop", "lower", "the same with the pruned encoder", where, lost
    for where, back in (result.mitigation.recovered if result.mitigation else {}).items():
        yield "recovered", "higher", "share of the fall that pruning brings back", where, back
    for a in result.artefacts:
        meaning = "share of the relevance on what is pasted, less its area"
        yield "artefact-excess", "lower", meaning, a.condition, a.share - a.area
        meaning = "share of the probe's evidence on what is pasted, less its area"
        yield "evidence-excess", "lower", meaning, a.condition, a.evidence - a.area
    for r in result.regions:
        if not r.column and not r.group:
            meaning = "share of the relevance on a region, less its area"
            yield "region-excess", "lower", meaning, r.name, r.share - r.area
    for p in result.provenance:
        gap = None if p.auroc_within is None else abs(p.auroc_pooled - p.auroc_within)
        yield "provenance-gap", "lower", "AUROC pooled against within groups", p.column, gap
        meaning = "share of the score's variance explained by the group, less that by the label"
        yield "provenance-eta2-excess", "lower", meaning, p.column, p.eta2_group - p.eta2_label
    yield from _conserved(result)


def _text_rows(result: Findings) -> Iterator[MetricRow]:
    meaning = "similarity of the first relation against the others"
    yield "auroc", "higher", meaning, "all pairs", result.auroc
    for number, o in enumerate(result.relations):
        if number:
            meaning = "mean similarity of pairs that should not be alike"
            yield "similarity", "lower", meaning, o.name, o.similarity.value
        meaning = "share of the relevance between equal words"
        yield "shared-tokens", "lower", meaning, o.name, o.shared_tokens
    yield from _conserved(result)


def _conserved(result: Findings) -> Iterator[MetricRow]:
    if result.faithfulness is not None:
        meaning = "lower end of the explanations' advantage over a random order of patches"
        yield "faithfulness", "higher", meaning, "pairs of a class", result.faithfulness.value.low
    meaning = "error of relevance and biases against the similarity"
    yield "conservation", "lower", meaning, "worst pair", result.conservation


def explain_numbers(result: Findings, config: SimilarityConfig) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    basis = (
        f"BiLRP of the {SIMILARITY[result.metric]} ({result.composite}, {result.basis}; Eberle et al. 2022): "
        "values over pairs of components sum, with what biases absorb, to the similarity."
    )
    if result.remainder is not None:
        basis += (
            " Only the directions of the representation that matter most were followed in each image; what "
            f"they leave out was measured on random sums of patches: at most {result.remainder:.1%} of the "
            "size of a pair's values. Their sum, and so what biases absorb, is exact."
        )
    if result.modality == "texts":
        return [
            basis,
            "Shares between equal words count positive relevance of token pairs, markers and punctuation "
            f"left out; means over up to {config.explain} pairs per relation.",
            f"AUROC: chance that a {result.relations[0].name} pair is more similar than any other pair.",
        ]
    kept = f"; images of one {result.kept_together} are never on both sides" if result.kept_together else ""
    split = (
        "the data's own test images; every repetition fits on another 80 % of the training images"
        if result.split == "given"
        else "folds: every image is tested by a probe not fitted on it; every repetition deals them anew"
    )
    probe = {
        "logreg": "multinomial logistic regression (ℓ2, C = 1, no offset, classes balanced)",
        "svm": "linear support vector machine (C = 0.01, classes balanced)",
    }[config.probe]
    unit = result.kept_together or "image"
    groups = (
        "Groups are held against all other images, class by class and class-balanced over these classes "
        f"(of {limits.TEST_IMAGES:g} images or more on either side). ↓ and ↓↓ of a group need P < "
        f"{limits.P_GROUP:g} by permutation over {unit}s, adjusted over all groups and classes (Holm). "
        "Similarity of images of different classes: the same mix of pairs of classes on either side."
    )
    return [
        f"Probe: {probe}. Split: {split}{kept}.",
        f"Accuracies are means of the classes' recalls over {len(result.seeds)} repetitions; intervals are "
        f"95 % intervals over {unit}s (Wilson's of each recall, put together; Zou & Donner 2008).",
        "Rebalanced: accuracy with weights that cap each class at the weight of 10 images (Kauffmann et al. "
        "2025).",
        "Probes are fitted on original images only and see every condition with the same weights; the "
        "mended probe is fitted anew on the pruned encoder.",
        f"Marks: ↓ accuracy falls by {limits.FALL:.2f} or more, ↓↓ by {limits.LARGE_FALL:.2f} or more, ↑ "
        f"rises by {limits.FALL:.2f} or more, only where a two-sided permutation over {unit}s gives P < "
        f"{limits.P_MARK:g}. Conditions are held against the original images, the mended encoder against "
        "the same condition.",
        *([groups] if result.subgroups else []),
        *_pruning_note(result),
        basis,
        "Evidence: positive relevance of the probe's score for the class that errors fall into minus its "
        "score for the "
        "true class, read through the encoder with the same rules, over images of other classes.",
        "Averages over groups: mean |relevance| over up to 150 pairs within each group, among "
        f"{config.explain} images.",
        "Where the score follows a column: its effect is as said, and P of Kruskal and Wallis's H within "
        "every label, over "
        f"{unit}s, adjusted over all columns and classes tried (Holm), is below {limits.P_PROVENANCE:g}.",
        "Faithfulness: patches replaced in the order of the relevance for the similarity to one other "
        "image of the class, half the area between the curves least and most relevant first, as a share of "
        "the range; 95 % bootstrap interval.",
        "The border is the outer 8 % of each side; burnt-in marks are small saturated spots near the "
        "edges, looked for at up to 512 px, a heuristic.",
    ]


def _pruning_note(result: Findings) -> Iterator[str]:
    if result.mitigation is not None:
        leak = "" if result.split == "given" else " (those of the first fold, which other folds test on)"
        yield (
            "Filters are ranked by their mean activation with the condition minus without, on training "
            f"images. Settings are compared on {result.mitigation.images} validation images held out of the "
            f"training images{leak}, by a probe fitted anew on the rest; where the audit chooses, the mean "
            "of the accuracies without and with the condition decides."
        )
