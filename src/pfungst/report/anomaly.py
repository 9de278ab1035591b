"""The page of an anomaly audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from pfungst.audit.anomaly.result import AnomalyResult, Entry, Scored
from pfungst.audit.result import Interval
from pfungst.conditions import sides
from pfungst.report import discovery, parts, plots, text
from pfungst.report import page as ui
from pfungst.report.anomaly_entry import entry_blocks, entry_id, provenance_blocks
from pfungst.report.anomaly_tables import group, shown, steps, table

# Longest side of the pictures in pixels, by how many examples there are at most.
_SIDES = ((60, 320), (150, 224))
_SMALLEST = 144


def _pixels(result: AnomalyResult) -> str:
    height, width = sides(result.size)
    return f"{height} px" if height == width else f"{height} × {width} px (height × width)"


@ui.page_of(AnomalyResult)
def page(result: AnomalyResult, folder: Path) -> ui.Page:
    """The page of an anomaly audit."""
    models, categories = list(result.mean), list(dict.fromkeys(e.category for e in result.entries))
    first: list[ui.Section | None] = [_results(result), _provenance(result, folder)]
    if result.verdict.level == "provenance":
        first.reverse()
    facts = [("Original", result.original), ("Deployed", result.deployed)]
    facts += [("Mitigation", result.mitigation or "none"), ("Image size", _pixels(result))]
    facts += [("Detector" if len(models) == 1 else "Detectors", text.listing(models))]
    facts += [("Data", text.plural(len(categories), "category", "categories"))]
    facts += [("Threshold", result.protocol)]
    audit = [("Seeds", ", ".join(map(str, result.seeds))), ("Protocol", result.protocol)]
    last = [discovery.section(result.discovery, folder), parts.skipped(result)]
    last += [parts.method(result, [*audit, ("Detectors", text.listing(models))])]
    stats, note = _headline(result)
    sections = [*first, _categories(result, folder, categories), *last]
    return ui.Page.of(result, facts=facts, sections=sections, stats=stats, stats_note=note)


def _headline(result: AnomalyResult) -> tuple[list[ui.Stat], str]:
    """The figures of what the verdict is about."""
    about = result.verdict.about
    entry = next((e for e in result.entries if e.name == about.entry), None)
    model = about.entry if entry is None else entry.model
    mean, entries = result.mean[model], [e for e in result.entries if e.model == model]
    auroc = ui.Stat("AUROC", steps(mean, "auroc"), "Ranking of defects above good images; 0.50 is chance.")
    f1 = ui.Stat("F1", steps(mean, "f1"), f"Flagging every image would give {text.ratio(_trivial(entries))}.")
    fnr = ui.Stat("Defects missed (FNR)", steps(mean, "fnr"), "At the threshold chosen before deployment.")
    fpr = ui.Stat("False alarms (FPR)", steps(mean, "fpr"), "Share of the good images that are flagged.")
    stats, scope = [fnr, f1, fpr, auroc], "one category"
    if len(entries) > 1:
        scope = f"mean over {len(entries)} categories"
    if result.verdict.level in ("unfit", "too-few"):
        stats = [auroc, f1, fnr, fpr]
    if result.verdict.level == "provenance" and entry is not None:
        found = next(p for p in entry.provenance if p.column == about.column)
        stats = [*parts.provenance_stats(found, "the defect"), fnr, f1]
        scope += f", variance and AUROC those of {entry.category}" if len(entries) > 1 else ""
    which = "" if len(result.mean) == 1 else ", the detector of the verdict"
    return stats, f"Figures of {model}{which}; {scope}."


def _trivial(entries: Sequence[Entry]) -> float:
    return fmean(e.trivial_f1 for e in entries)


# --- results ---------------------------------------------------------------------------------------------


def _results(result: AnomalyResult) -> ui.Section:
    several = len(result.mean) > 1
    named: list[tuple[str, Scored]] = [(e.category, e) for e in result.entries]
    blocks: list[ui.Block] = []
    if several:
        named = list(result.mean.items())
        blocks += [_dots(named, "detector"), _means(result)]
        blocks += [b for b in (_scatter(result), _strongest(result)) if b]
    else:
        blocks.append(_dots(named, "category"))
    for index, (model, mean) in enumerate(result.mean.items()):
        found = _by_category(result, model)
        if several:
            stats = _glance(mean)
            blocks.append(ui.Details(model, [found], id=f"table-{index}", note="every category", stats=stats))
        else:
            blocks.append(found)
    lead = "The same fitted detector and the same threshold on images prepared in two ways"
    lead += ", and the mended detector on the deployed images." if result.mitigation else "."
    return ui.Section("results", "Results", blocks, lead)


def _means(result: AnomalyResult) -> ui.Table:
    groups = [group(m, mean, href=f"table-{i}") for i, (m, mean) in enumerate(result.mean.items())]
    return table(groups, "Mean over categories", "Mean over categories. ")


def _by_category(result: AnomalyResult, model: str) -> ui.Table:
    entries = [e for e in result.entries if e.model == model]
    groups = []
    if len(entries) > 1:
        note = f"flagging everything: F1 {text.ratio(_trivial(entries))}"
        groups.append(group("Mean", result.mean[model], note=note, strong=True))
    for e in entries:
        note = f"{e.n_train:,} train · {e.n_good:,} good and {e.n_defect:,} defective to test · "
        note += f"flagging everything: F1 {text.ratio(e.trivial_f1)}"
        groups.append(group(e.category, e, note=note, href=entry_id(e)))
    return table(groups, f"Results of {model} by category")


def _dots(named: Sequence[tuple[str, Scored]], what: str) -> ui.Figure:
    variants = [s.variant for s in shown(named[0][1])]

    def series(measure: str) -> dict[str, list[Interval | None]]:
        columns = zip(*(shown(scored) for _, scored in named), strict=True)
        return {
            parts.tone(v): [getattr(s, measure) for s in column]
            for v, column in zip(variants, columns, strict=True)
        }

    panels = [
        plots.Panel("F1", series("f1")),
        plots.Panel("Defects missed (FNR)", series("fnr"), percent=True),
        plots.Panel("False alarms (FPR)", series("fpr"), percent=True),
    ]
    caption = f"One row per {what}: how far each measure moves when the images are prepared as in deployment"
    caption += ", and how far mitigation brings it back" if len(variants) > 2 else ""
    caption += ". Bars are 95 % intervals." if named[0][1].original.f1.low is not None else "."
    rows = [name for name, _ in named]
    label = f"Dot plot of F1, FNR and FPR for each {what}, with 95 % intervals"
    return ui.Figure(
        title=f"What deployment costs, by {what}",
        picture=plots.dots(rows, panels, label),
        narrow=plots.dots(rows, panels, label, width=344),
        legend=[parts.key(parts.label(v), parts.tone(v)) for v in variants],
        caption=caption,
    )


def _scatter(result: AnomalyResult) -> ui.Figure | None:
    points: list[plots.Point] = []
    arrows: list[tuple[int, int]] = []
    for model, mean in result.mean.items():
        places = [
            plots.Point(model, s.clever_hans.value, s.auroc.value)
            for s in mean.scores
            if s.variant.condition == "original" and s.clever_hans is not None
        ]
        points += places
        arrows += [(len(points) - 2, len(points) - 1)] if len(places) == 2 else []
    if len({p.name for p in points}) < 2:
        return None
    label = "Scatter plot of AUROC against the Clever Hans score, one point per detector"
    axes = ("Clever Hans score  (lower is better)  →", "AUROC  →")
    return ui.Figure(
        title="Detecting well against detecting for the right reason",
        picture=plots.scatter(points, *axes, label=label, arrows=arrows, ceiling=1),
        narrow=plots.scatter(points, *axes, label=label, arrows=arrows, width=344, ceiling=1),
        legend=[parts.key("Original", "original"), *([parts.key("Mended", "mitigated")] if arrows else [])],
        caption="Means over categories, original images. Upper left is where a detector should be: it ranks "
        "well and its relevance lies on the defect. Far right: it ranks well for other reasons.",
    )


def _strongest(result: AnomalyResult) -> ui.Table | None:
    """The three categories of each detector in which it looks away from the defects most."""
    columns = [
        ui.words("Category", "", lambda hans, e: e.category),
        ui.Column("Clever Hans score", "", lambda hans, e: text.ratio(hans)),
        ui.Column("AUROC", "", lambda hans, e: text.ratio(e.original.auroc.value)),
    ]
    groups = []
    for model in result.mean:
        mine = [e for e in result.entries if e.model == model]
        found = [(hans.value, e) for e in mine if (hans := e.original.clever_hans) is not None]
        found.sort(key=lambda pair: -pair[0])
        groups += [ui.Rows.of(columns, found[:3], model)] if len(found) > 1 else []
    if not groups:
        return None
    return ui.Table(
        columns=columns,
        groups=groups,
        name="Highest Clever Hans scores of each detector",
        caption="The categories with the highest Clever Hans score of each detector, original images: it "
        "ranks well there while its relevance lies elsewhere than the change.",
    )


def _glance(scored: Scored) -> list[ui.Stat]:
    return [ui.Stat("F1", steps(scored, "f1")), ui.Stat("FNR", steps(scored, "fnr"))]


# --- provenance ------------------------------------------------------------------------------------------


def _provenance(result: AnomalyResult, folder: Path) -> ui.Section | None:
    found = [e for e in result.entries if e.provenance]
    if not found:
        return None
    blocks: list[ui.Block] = []
    if len(found) == 1:
        # With one finding that leads the verdict, the head of the page already shows its figures.
        said = len(found[0].provenance) == 1 and result.verdict.level == "provenance"
        blocks += provenance_blocks(found[0], folder, stats=not said)
    else:
        follow = [e for e in found if any(p.follows for p in e.provenance)]
        blocks += [_origin(e, folder, "follows", i < 2) for i, e in enumerate(follow)]
        others: list[ui.Block] = [_origin(e, folder, "does not follow") for e in found if e not in follow]
        if follow and len(others) > 1:
            note = "score does not follow the group"
            others = [ui.Details(f"{len(others)} others", others, note=note)]
        blocks += others
    return ui.Section(
        "provenance",
        "Where the images come from",
        blocks,
        lead="Does the score tell defects from good images, or one source of images from another?",
    )


def _origin(entry: Entry, folder: Path, does: str, opened: bool = False) -> ui.Details:
    name, note = f"{entry.category} · {entry.model}", f"score {does} the group"
    return ui.Details(name, provenance_blocks(entry, folder), note=note, open=opened)


# --- categories ------------------------------------------------------------------------------------------


def _categories(result: AnomalyResult, folder: Path, categories: Sequence[str]) -> ui.Section:
    count = sum(len(e.examples) for e in result.entries)
    side = next((side for most, side in _SIDES if count <= most), _SMALLEST)
    worst = max(result.entries, key=lambda e: e.fall).category
    blocks: list[ui.Block] = []
    links: list[tuple[str, str]] = []
    for number, category in enumerate(categories):
        entries = [e for e in result.entries if e.category == category]
        hardest = max(entries, key=lambda e: e.fall)
        name, note = entry_id(hardest), _kinds(hardest)
        inside = entry_blocks(hardest, folder, side)
        if len(entries) > 1:
            name, note = f"category-{number}", f"{note} · figures of {hardest.model}"
            inside = [_entry(e, folder, side, e is hardest) for e in entries]
        opened = len(categories) <= 2 or category == worst
        stats = _glance(hardest)
        blocks.append(ui.Details(category, inside, id=name, note=note, stats=stats, open=opened))
        links.append((name, category))
    lead = "Where the relevance lies, in the image and in frequency, and what is missed because of it."
    lead += f" Pictures are reduced to {side} px for this page." if max(sides(result.size)) > side else ""
    return ui.Section("categories", "Category by category", blocks, lead, links)


def _entry(entry: Entry, folder: Path, side: int, opened: bool) -> ui.Details:
    """One detector where a category has several."""
    blocks, stats = entry_blocks(entry, folder, side), _glance(entry)
    return ui.Details(entry.model, blocks, id=entry_id(entry), stats=stats, open=opened, level=4)


def _kinds(entry: Entry) -> str:
    kinds = [f"{name} {count}" for name, count in entry.kinds.items()]
    return f"{text.plural(entry.n_defect, 'defect')}: {', '.join(kinds)}"
