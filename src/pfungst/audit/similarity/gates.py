"""The metrics of a similarity audit that gates use, and how its numbers were made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pfungst.audit.notes import note, notes
from pfungst.audit.result import Metric, MetricRow, Variant
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.prepare import AS_IS
from pfungst.audit.similarity.result import SIMILARITY, Findings, named


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
    told = partial(notes, "similarity", result=result, config=config, similarity=SIMILARITY[result.metric])
    basis = " ".join(told(["bilrp", result.remainder is not None and "remainder"]))
    if result.modality == "texts":
        return [basis, *told(["words", "auroc"])]
    folds = result.split != "given"
    said = partial(
        told,
        probe=note("similarity", config.probe),
        split=note("similarity", "folds" if folds else "given"),
        kept=f"; images of one {result.kept_together} are never on both sides" * bool(result.kept_together),
        leak=" (those of the first fold, which other folds test on)" * folds,
        unit=result.kept_together or "image",
        repetitions=len(result.seeds),
    )
    first = ["probe", "intervals", "rebalanced", "conditions", "marks", bool(result.subgroups) and "groups"]
    last = ["evidence", "averages", "provenance", "faithfulness", "border"]
    return [*said([*first, result.mitigation is not None and "pruning"]), basis, *said(last)]
