"""The page of an anomaly audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfungst.audit.anomaly.result import AnomalyResult, Entry, Scores
from pfungst.audit.result import Interval, Result
from pfungst.report import closing, plots, text
from pfungst.report.anomaly_entry import entry_blocks, entry_id, provenance_blocks
from pfungst.report.anomaly_tables import MARK_MEANINGS, MEASURES, VARIANT_KEYS, row, steps
from pfungst.report.page import (
    Block,
    Cell,
    Column,
    Columns,
    Details,
    Facts,
    Figure,
    Key,
    Page,
    Prose,
    Rows,
    Section,
    Stat,
    Step,
    Table,
    expect,
)

SHOWN = ("original", "deployed", "mitigated")


def page(result: Result, folder: Path) -> Page:
    """The page of an anomaly audit.

    Args:
        result: an :class:`AnomalyResult`.
        folder: where its arrays are.

    Raises:
        DataError: arrays are missing or damaged, or it is another kind of result.
    """
    result = expect(result, AnomalyResult)
    models = list(dict.fromkeys(e.model for e in result.entries))
    categories = list(dict.fromkeys(e.category for e in result.entries))
    provenance = _provenance(result, folder)
    results = _results(result, models, categories)
    leads_with_provenance = provenance is not None and result.verdict.level == "provenance"
    first = [provenance, results] if leads_with_provenance else [results, provenance]
    sections = [*first, _categories(result, folder, models, categories)]
    sections += [closing.skipped(result), _method(result, models)]
    facts = [("Original", result.original), ("Deployed", result.deployed)]
    facts += [("Mitigation", result.mitigation or "none"), ("Image size", f"{result.size} px")]
    facts += [("Detector" if len(models) == 1 else "Detectors", text.listing(models))]
    facts += [("Data", text.plural(len(categories), "category", "categories"))]
    facts += [("Threshold", result.protocol)]
    stats, note = _headline_stats(result)
    return Page.of(result, facts=facts, sections=sections, stats=stats, stats_note=note)


# --- head ------------------------------------------------------------------------------------------------


def _fall(variants: dict[str, Scores]) -> float:
    """Fall of F1 from original to deployed, 0 where one is missing."""
    if "original" not in variants or "deployed" not in variants:
        return 0.0
    return variants["original"].f1.value - variants["deployed"].f1.value


def _headline_stats(result: AnomalyResult) -> tuple[list[Stat], str]:
    """The figures that carry the verdict, of the model that suffers most."""
    if not result.mean:
        return [], ""
    level = result.verdict.level
    if level == "unfit":
        model = min(result.mean, key=lambda m: _value(result.mean[m], "auroc"))
    else:
        model = max(result.mean, key=lambda m: _fall(result.mean[m]))
    variants = result.mean[model]
    entries = [e for e in result.entries if e.model == model]
    trivial = sum(e.trivial_f1 for e in entries) / len(entries) if entries else float("nan")
    auroc = Stat("AUROC", steps(variants, "auroc"), "Ranking of defects above good images; 0.50 is chance.")
    f1 = Stat("F1", steps(variants, "f1"), f"Flagging every image would give {text.ratio(trivial)}.")
    fnr = Stat("Defects missed (FNR)", steps(variants, "fnr"), "At the threshold chosen before deployment.")
    fpr = Stat("False alarms (FPR)", steps(variants, "fpr"), "Share of the good images that are flagged.")
    chosen = {"unfit": [auroc, f1, fnr, fpr]}.get(level, [fnr, f1, fpr, auroc])
    if level == "provenance":
        found = [(e, p) for e in result.entries for p in e.provenance if p.follows]
        if found:
            entry, worst = max(found, key=lambda pair: pair[1].eta2_group - pair[1].eta2_label)
            model = entry.model
            within = "–" if worst.auroc_within is None else text.ratio(worst.auroc_within)
            explained = Stat(
                "Variance of the score explained",
                [Step(f"by {worst.column}", text.percent(worst.eta2_group)),
                 Step("by the defect", text.percent(worst.eta2_label))],
                "η², share of the score's variance.",
            )  # fmt: skip
            pooled = Stat(
                "AUROC",
                [
                    Step("all together", text.ratio(worst.auroc_pooled)),
                    Step(f"within {worst.column}", within),
                ],
                "0.50 is chance.",
            )
            chosen = [explained, pooled, fnr, f1]
    scope = f"mean over {len(entries)} categories" if len(entries) > 1 else "one category"
    which = "" if len(result.mean) == 1 else ", the detector hit hardest"
    return chosen, f"Figures of {model}{which}; {scope}."


def _value(variants: dict[str, Scores], measure: str, variant: str = "original") -> float:
    cell = getattr(variants[variant], measure) if variant in variants else None
    return float("nan") if cell is None else float(cell.value)


# --- results ---------------------------------------------------------------------------------------------


def _results(result: AnomalyResult, models: Sequence[str], categories: Sequence[str]) -> Section:
    blocks: list[Block] = []
    several = len(models) > 1
    rows = models if several else categories
    source = (
        [result.mean.get(m, {}) for m in models]
        if several
        else [next(e.variants for e in result.entries if e.category == c) for c in categories]
    )
    if rows:
        blocks.append(_dot_figure(rows, source, "detector" if several else "category"))
    if several:
        groups = [_group(m, result.mean.get(m, {}), href=f"table-{i}") for i, m in enumerate(models)]
        blocks.append(_table(groups, "Mean over categories", several=True))
        blocks += [b for b in (_scatter(result, models), _strongest(result, models)) if b]
    for index, model in enumerate(models):
        entries = [e for e in result.entries if e.model == model]
        groups = []
        if len(entries) > 1 and model in result.mean:
            note = f"flagging everything: F1 {text.ratio(sum(e.trivial_f1 for e in entries) / len(entries))}"
            groups.append(_group("Mean", result.mean[model], note=note, strong=True))
        for entry in entries:
            note = (
                f"{entry.n_train:,} train · {entry.n_good:,} good and {entry.n_defect:,} defective to test · "
                f"flagging everything: F1 {text.ratio(entry.trivial_f1)}"
            )
            groups.append(_group(entry.category, entry.variants, note=note, href=entry_id(entry)))
        table = _table(groups, f"Results of {model} by category")
        if several:
            blocks.append(
                Details(title=model, id=f"table-{index}", blocks=[table], note="every category",
                        stats=_glance(result.mean.get(model, {})))
            )  # fmt: skip
        else:
            blocks.append(table)
    lead = "The same fitted detector and the same threshold on images prepared in two ways"
    lead += ", and the mended detector on the deployed images." if result.mitigation else "."
    return Section(id="results", title="Results", lead=lead, blocks=blocks)


def _dot_figure(rows: Sequence[str], source: Sequence[dict[str, Scores]], what: str) -> Figure:
    present = [v for v in SHOWN if any(v in variants for variants in source)]

    def series(measure: str) -> dict[str, list[Interval | None]]:
        return {v: [getattr(s[v], measure) if v in s else None for s in source] for v in present}

    panels = [
        plots.Panel("F1", series("f1")),
        plots.Panel("Defects missed (FNR)", series("fnr"), percent=True),
        plots.Panel("False alarms (FPR)", series("fpr"), percent=True),
    ]
    label = f"Dot plot of F1, FNR and FPR for each {what}, with 95 % intervals"
    shapes = {"original": "circle", "deployed": "diamond", "mitigated": "square"}
    names = {**VARIANT_KEYS, "mitigated": "Mitigated, deployed images"}
    bars = any(i is not None and i.low is not None for p in panels for s in p.series.values() for i in s)
    caption = f"One row per {what}: how far each measure moves when the images are prepared as in deployment"
    caption += ", and how far mitigation brings it back" if "mitigated" in present else ""
    caption += ". Bars are 95 % intervals." if bars else "."
    return Figure(
        title=f"What deployment costs, by {what}",
        picture=plots.dots(rows, panels, label),
        narrow=plots.dots(rows, panels, label, width=344),
        legend=[Key(label=names[v], colour=v, shape=shapes[v]) for v in present],
        caption=caption,
    )


def _scatter(result: AnomalyResult, models: Sequence[str]) -> Figure | None:
    points: list[plots.Point] = []
    arrows: list[tuple[int, int]] = []
    for model in models:
        variants = result.mean.get(model, {})
        place = {
            v: plots.Point(model, variants[v].clever_hans.value, variants[v].auroc.value)  # type: ignore[union-attr]
            for v in ("original", "mitigated_original")
            if v in variants and variants[v].clever_hans is not None
        }
        if "original" in place:
            points.append(place["original"])
            if "mitigated_original" in place:
                points.append(place["mitigated_original"])
                arrows.append((len(points) - 2, len(points) - 1))
    if len({p.name for p in points}) < 2:
        return None
    label = "Scatter plot of AUROC against the Clever Hans score, one point per detector"
    axes = ("Clever Hans score  (lower is better)  →", "AUROC  →")
    legend = [Key(label="Original", colour="original", shape="circle")]
    legend += [Key(label="Mitigated", colour="mitigated", shape="square")] if arrows else []
    return Figure(
        title="Detecting well against detecting for the right reason",
        picture=plots.scatter(points, *axes, label=label, arrows=arrows, ceiling=1),
        narrow=plots.scatter(points, *axes, label=label, arrows=arrows, width=344, ceiling=1),
        legend=legend,
        caption="Means over categories, original images. Upper left is where a detector should be: it ranks "
        "well and its relevance lies on the defect. Far right: it ranks well for other reasons.",
    )


def _strongest(result: AnomalyResult, models: Sequence[str]) -> Table | None:
    """The three categories of each detector in which it looks away from the defects most."""
    groups = []
    for model in models:
        found = [
            (hans.value, e)
            for e in result.entries
            if e.model == model and (hans := e.variants["original"].clever_hans) is not None
        ]
        found.sort(key=lambda pair: -pair[0])
        rows = [
            [Cell(e.category), Cell(text.ratio(hans)), Cell(text.ratio(e.variants["original"].auroc.value))]
            for hans, e in found[:3]
        ]
        if len(found) > 1:
            groups.append(Rows(rows, model))
    if not groups:
        return None
    return Table(
        columns=[Column("Category", numeric=False), Column("Clever Hans score"), Column("AUROC")],
        groups=groups,
        name="Highest Clever Hans scores of each detector",
        caption="The categories with the highest Clever Hans score of each detector, original images: it ranks well "
        "there while its relevance lies elsewhere than the change.",
    )


def _table(groups: Sequence[Rows], name: str, several: bool = False) -> Table:
    columns = [Column("Images", numeric=False)]
    columns += [Column(label, hint) for _, label, _, hint in MEASURES]
    where = "Mean over categories. " if several else ""
    return Table(
        columns=columns,
        groups=groups,
        name=name,
        caption=f"{where}Small figures are 95 % intervals. {MARK_MEANINGS['↓']}; {MARK_MEANINGS['↓↓']}; "
        f"{MARK_MEANINGS['↑']}.",
    )


def _group(
    label: str, variants: dict[str, Scores], note: str = "", href: str = "", strong: bool = False
) -> Rows:
    return Rows([row(n, variants[n]) for n in SHOWN if n in variants], label, note, href, strong)


def _glance(variants: dict[str, Scores]) -> list[Stat]:
    return [Stat("F1", steps(variants, "f1")), Stat("FNR", steps(variants, "fnr"))]


# --- provenance ------------------------------------------------------------------------------------------


def _provenance(result: AnomalyResult, folder: Path) -> Section | None:
    found = [e for e in result.entries if e.provenance]
    if not found:
        return None
    blocks: list[Block] = []
    others: list[Block] = []
    several = len(found) > 1
    for entry in found:
        # With one finding that leads the verdict, the head of the page already shows its figures.
        said = not several and len(entry.provenance) == 1 and result.verdict.level == "provenance"
        inside = provenance_blocks(entry, folder, stats=not said)
        name = f"{entry.category} · {entry.model}"
        if not several:
            blocks = inside
        elif any(p.follows for p in entry.provenance):
            opened = len(blocks) < 2
            blocks.append(Details(title=name, note="score follows the group", blocks=inside, open=opened))
        else:
            others.append(Details(title=name, note="score does not follow the group", blocks=inside))
    if blocks and len(others) > 1:
        others = [
            Details(title=f"{len(others)} others", note="score does not follow the group", blocks=others)
        ]
    blocks += others
    return Section(
        id="provenance",
        title="Where the images come from",
        lead="Does the score tell defects from good images, or one source of images from another?",
        blocks=blocks,
    )


# --- categories ------------------------------------------------------------------------------------------


def _categories(
    result: AnomalyResult, folder: Path, models: Sequence[str], categories: Sequence[str]
) -> Section:
    count = sum(len(e.examples) for e in result.entries)
    side = 320 if count <= 60 else 224 if count <= 150 else 144
    worst = max(result.entries, key=lambda e: _fall(e.variants), default=None)
    blocks: list[Block] = []
    links: list[tuple[str, str]] = []
    for number, category in enumerate(categories):
        entries = [e for e in result.entries if e.category == category]
        hardest = max(entries, key=lambda e: _fall(e.variants))
        opened = len(categories) <= 2 or (worst is not None and worst.category == category)
        if len(models) == 1:
            name = entry_id(entries[0])
            inside = entry_blocks(result, entries[0], folder, side)
        else:
            name = f"category-{number}"
            inside = [
                Details(
                    title=entry.model,
                    id=entry_id(entry),
                    blocks=entry_blocks(result, entry, folder, side),
                    stats=_glance(entry.variants),
                    open=entry is hardest,
                    level=4,
                )
                for entry in entries
            ]
        note = _kinds(entries[0])
        if len(models) > 1:
            note += f" · figures of {hardest.model}"
        blocks.append(
            Details(title=category, id=name, note=note, blocks=inside, stats=_glance(hardest.variants), open=opened)
        )  # fmt: skip
        links.append((name, category))
    shrunk = f" Pictures are reduced to {side} px for this page." if result.size > side else ""
    lead = "Where the relevance lies, in the image and in frequency, and what is missed because of it."
    return Section(
        id="categories", title="Category by category", lead=lead + shrunk, blocks=blocks, links=links
    )


def _kinds(entry: Entry) -> str:
    kinds = [f"{name} {count}" for name, count in entry.kinds.items()]
    return f"{text.plural(entry.n_defect, 'defect')}: {', '.join(kinds)}" if kinds else ""


# --- end -------------------------------------------------------------------------------------------------


def _method(result: AnomalyResult, models: Sequence[str]) -> Section:
    protocol = {
        "held-out": "The threshold was set on held-out normal images or a labelled validation split; test labels were not used.",
        "published": "The threshold is the one of best F1 on the original test set, its labels included, and is kept for the "
        "deployed images, as in the published study. That favours the original column.",
    }[result.protocol]
    how = [
        protocol,
        "AUROC is the chance that a defect scores above a good image. FNR is the share of defects missed, FPR the share of "
        "good images flagged. F1 is plain; balanced F1 weighs both classes alike.",
        "The Clever Hans score is AUROC minus the mean cosine between positive relevance and the mask of the defect: high when a "
        "detector ranks well while its relevance lies elsewhere.",
        *result.notes,
    ]
    audit = [("Pfungst", result.version), ("Created", result.created), ("Machine", result.machine)]
    audit += [("Computed in", text.duration(result.seconds)), ("Seeds", ", ".join(map(str, result.seeds)))]
    audit += [("Protocol", result.protocol), ("Detectors", text.listing(models))]
    blocks: list[Block] = [Prose(paragraphs=how, bullets=True)]
    blocks.append(Columns(blocks=[Facts(title="This audit", facts=audit)]))
    if result.config:
        blocks.append(Facts(title="Configuration", facts=text.flatten(result.config)))
    blocks += [table for table in (closing.gates(result),) if table is not None]
    return Section(id="method", title="How every number was made", blocks=blocks)
