"""The page of a classifier audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfungst.audit.classifier.result import ClassEntry, ClassifierResult, Scores
from pfungst.audit.result import Interval
from pfungst.report import discovery, parts, plots, text
from pfungst.report import page as ui
from pfungst.report.classifier_gallery import Budget, class_id, class_note, component_gallery

_LINKED = 24  # classes named in the table of contents
_SEARCHED = 8  # classes up to which no search box is needed
_PLAIN = 40  # classes up to which nothing is held back until it is opened
_REFERENCE = {"mean": "the mean of the class", "absent": "the class's images without the feature"}
_RULE = {"alpha": "what they add to the logit", "npfv": "confidence of their visualisation"}
_CHOSEN = {
    "people": ", chosen by people",
    "rule": ", by a rule",
    "evidence": ", by interventions",
    "transfer": ", carried over",
    "nothing": "",
}


@ui.page_of(ClassifierResult)
def page(result: ClassifierResult, folder: Path) -> ui.Page:
    """The page of a classifier audit."""
    count = sum(len(e.fixed or e.transferred) for e in result.entries)
    off = f"{text.plural(count, 'component')}{_CHOSEN[result.chosen_by]}" if count else "nothing"
    return ui.Page.of(
        result,
        facts=[
            ("Model", result.model),
            ("Classes audited", f"{len(result.entries):,} of {result.n_classes:,}"),
            ("Components shown", f"{sum(len(e.components) for e in result.entries):,}"),
            ("Validation images", f"{result.n_validation:,}"),
            ("Switched off", off),
        ],
        sections=[
            _conditions(result),
            _classes(result),
            _components(result, folder),
            discovery.section(result.discovery, folder),
            parts.skipped(result),
            _method(result),
        ],
        stats=_headline(result),
        stats_note=_headline_note(result),
    )


# --- head ------------------------------------------------------------------------------------------------


def _steps(before: float, after: float | None = None, write: text.Writer = text.percent) -> list[ui.Step]:
    steps = [ui.Step("as it is", write(before), "original")]
    return steps if after is None else [*steps, ui.Step("with SpuFix", write(after), "mitigated")]


def _headline(result: ClassifierResult) -> list[ui.Stat]:
    stats = []

    def stat(name: str, note: str, of: Callable[[Scores], float | None], write: text.Writer, at: str) -> None:
        """A value as the model is and, where something was switched off, with SpuFix."""
        before, after = (of(result.under(at, mitigated)) for mitigated in (False, True))
        if before is not None:
            mended = None if result.chosen_by == "nothing" else after
            stats.append(ui.Stat(name, _steps(before, mended, write), note))

    only = "Images that show only the feature, mean over classes."
    stat("Taken for the class", only, lambda s: s.triggered, text.percent, "original")
    mauc: Callable[[Scores], float | None] = lambda s: s.mauc.value if s.mauc else None
    stat("Spurious score (mAUC)", "1 is no reliance; 0.50 is chance.", mauc, text.ratio, "original")
    stat("Accuracy", "On the validation images.", lambda s: s.accuracy.value, _fine, "original")
    if at := result.verdict.about.condition:
        stat(f"Accuracy under {at}", "On the same images.", lambda s: s.accuracy.value, _fine, at)
    judged = any(e.judged is not None for e in result.entries)
    counts = [len(e.judged if e.judged is not None else e.proven) for e in result.entries]
    suspects, classes = sum(counts), sum(map(bool, counts))
    note = f"In {text.plural(classes, 'class', 'classes')}."
    shown = sum(len(e.components) for e in result.entries)
    title = "Components judged spurious" if judged else "Components proven spurious"
    stats.append(ui.Stat(title, [ui.Step(f"of {shown:,} shown", f"{suspects:,}")], note))
    return stats


def _headline_note(result: ClassifierResult) -> str:
    first, second = result.under(), result.under(mitigated=True)
    if first.mauc is None:
        why = "No images with only a spurious feature were given (--spurious), so what triggers a class is "
        return f"{why}not measured."
    values = {"mAUC": first.mauc, "with SpuFix": second.mauc, "gain": result.mauc_gain}
    told = [f"{name} {text.between(value)}" for name, value in values.items() if value is not None]
    if first.published_map is not None and second.published_map is not None:
        change = f"{text.ratio(first.published_map)} → {text.ratio(second.published_map)}"
        told.append(f"published mAP (average precision) {change}")
    return f"{'; '.join(told)}. 95 % intervals."


def _fine(value: float) -> str:
    return f"{100 * value:.1f}{text.THIN}%"


# --- conditions ------------------------------------------------------------------------------------------


def _conditions(result: ClassifierResult) -> ui.Section | None:
    """What each condition costs, and which class takes over; None with the original condition only."""
    if len(result.conditions) < 2:
        return None
    groups = [
        ui.Rows([_condition_row(s, result) for s in result.scores if s.variant.condition == name])
        for name in result.conditions
    ]
    columns = [ui.words("Condition"), ui.Column("Accuracy"), ui.Column("Fall", "on the same images")]
    columns += [ui.words("Gains most"), ui.Column("Taken for it", "before → after")]
    columns += [ui.Column("Its probability", "median, times")]
    table = ui.Table(
        columns=columns,
        groups=groups,
        name="Accuracy by condition",
        caption="Small figures are 95 % intervals; of the fall Newcombe's for paired shares.",
    )
    facts = ui.Facts(title="Conditions", facts=list(result.conditions.items()))
    lead = "The validation images as the model's images are prepared, and with each condition added."
    return ui.Section("conditions", "Other conditions", [_condition_plot(result), table, facts], lead)


def _condition_row(scores: Scores, result: ClassifierResult) -> list[ui.Cell]:
    variant, colour = scores.variant, parts.tone(scores.variant)
    name = ui.Cell("with SpuFix", tone=colour) if variant.mitigated else ui.Cell(variant.condition)
    cells = [name, parts.cell(scores.accuracy, text.percent, tone=colour)]
    cells.append(parts.cell(scores.fall, text.percent, tone=colour, missing="the condition compared with"))
    if not scores.gains:
        return [*cells, ui.Cell("–", title="no class gains"), ui.Cell("–"), ui.Cell("–")]
    gain = scores.gains[0]
    shares = " → ".join(text.percent(n / result.n_validation) for n in gain.predicted)
    return [*cells, ui.Cell(gain.name), ui.Cell(shares), ui.Cell(f"× {text.number(gain.times)}")]


def _condition_plot(result: ClassifierResult) -> ui.Figure:
    first, *others = [result.under(name).accuracy for name in result.conditions]
    shown: dict[str, list[Interval | None]] = {
        "original": [first, *[None] * len(others)],
        "deployed": [None, *others],
    }
    keys = [parts.key("As its images are prepared", "original")]
    keys += [parts.key("Under a condition", "deployed")]
    if result.chosen_by != "nothing":
        shown["mitigated"] = [result.under(name, True).accuracy for name in result.conditions]
        keys.append(parts.key("With SpuFix", "mitigated"))
    panels = [plots.Panel("Accuracy", shown, percent=True)]
    label = "Dot plot of accuracy under each condition, with 95 % intervals"
    rows = [text.shorten(name) for name in result.conditions]
    return ui.Figure(
        title="What each condition costs",
        picture=plots.dots(rows, panels, label),
        narrow=plots.dots(rows, panels, label, width=344),
        legend=keys,
        caption="One row per condition, on the same validation images. Bars are 95 % intervals.",
    )


# --- classes ---------------------------------------------------------------------------------------------


def _ordered(result: ClassifierResult) -> list[ClassEntry]:
    return sorted(result.entries, key=lambda e: e.seriousness, reverse=True)


def _classes(result: ClassifierResult) -> ui.Section:
    scored = any(e.under().spurious for e in result.entries)
    columns = [ui.words("Class"), ui.Column("Carried elsewhere", "strongest component")]
    columns.append(ui.Column("Accuracy", "validation"))
    columns += [ui.Column("Accuracy", f"under {name}") for name in list(result.conditions)[1:]]
    caption = (
        "Proven spurious first. Small figures are 95 % intervals. Carried elsewhere: share of the class that "
        "what the component reads off the object takes into images of other classes."
    )
    if scored:
        columns += [ui.Column("Taken for the class", "spurious images")]
        columns += [ui.Column("AUC", "higher is better"), ui.Column("Average precision", "published score")]
        caption = (
            "Worst first. Small figures are 95 % intervals. A class without images that show only its "
            "feature has no spurious score."
        )
    order = _ordered(result)
    groups = [ui.Rows(_class_rows(e, list(result.conditions), scored)) for e in order]
    table = ui.Table(columns=columns, groups=groups, name="Results by class", caption=caption)
    lead = "What the model gets right, and what its classes take for themselves that only shows their "
    blocks = [*_finder(order, "#classes tbody"), table]
    return ui.Section("classes", "Class by class", blocks, f"{lead}spurious feature.")


def _finder(entries: list[ClassEntry], target: str, flag: str = "") -> list[ui.Block]:
    """A search box where there are many classes."""
    if len(entries) <= _SEARCHED:
        return []
    return [ui.Finder(label="Find a class", target=target, count=len(entries), noun="classes", flag=flag)]


def _class_rows(entry: ClassEntry, conditions: list[str], scored: bool) -> list[list[ui.Cell]]:
    """A class as it is and, where that changed anything, with SpuFix; a column per condition."""

    def measured(mitigated: bool) -> list[ui.Cell]:
        scores = entry.under(mitigated=mitigated)
        spurious, tone = scores.spurious, parts.tone(scores.variant) if mitigated else ""
        accuracies = [entry.under(name, mitigated).accuracy for name in conditions]
        cells = [parts.cell(a, text.percent, tone=tone, missing="no images") for a in accuracies]
        if scored:
            none = "no images with only its feature"
            triggered, auc = (spurious.triggered, spurious.auc) if spurious else (None, None)
            cells.append(parts.cell(triggered, text.percent, tone=tone, missing=none))
            cells.append(parts.cell(auc, tone=tone, missing=none))
            cells.append(ui.Cell(text.ratio(spurious.average_precision) if spurious else "–"))
        return cells

    name = ui.Cell(entry.name, class_note(entry, short=True), href=class_id(entry))
    tested = [c.tested for c in entry.components if c.tested is not None]
    first = max((t.sufficiency[0] for t in tested), key=lambda i: i.low or 0.0, default=None)
    rows = [[name, parts.cell(first, text.percent, missing="not tested"), *measured(False)]]
    if entry.mended or entry.under().accuracy != entry.under(mitigated=True).accuracy:
        numbers = entry.fixed or entry.transferred
        off = f"component{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} switched off"
        off += " (numbers of the model that they come from)" if entry.transferred else ""
        note = off if entry.mended else "components of other classes switched off"
        rows.append([ui.Cell("with SpuFix", note, tone="mitigated"), ui.Cell(""), *measured(True)])
    return rows


# --- components ------------------------------------------------------------------------------------------


def _components(result: ClassifierResult, folder: Path) -> ui.Section:
    budget = Budget.of(len(result.entries))
    order = _ordered(result)
    blocks: list[ui.Block] = [ui.Prose([result.npfv_note])] if result.npfv_note else []
    blocks += _finder(order, "#components > details", "with spurious components only")
    lazy = len(order) > _PLAIN
    blocks += [_class_details(e, folder, budget, lazy, first=e is order[0]) for e in order]
    lead = (
        "What each class was found to depend on, tested by intervention; nobody has looked at it. Each row "
        "shows how α, what the component adds to the logit of the class, is spread over the class's training "
        "images, and the images where it is highest, below them with the region outlined that it comes from."
    )
    if result.faithfulness is not None:
        found = result.faithfulness
        lead += f" Of these maps, on {found.images} images: {found.words}."
        lead += "" if found.beats_random else " They explain nothing."
    if any(len(e.components) > budget.components for e in result.entries):
        lead += (
            f" This page shows {budget.components} per class; all of them, in full size, are in images/ and "
            "in label-task.json, for pfungst label."
        )
    links = [(class_id(e), e.name) for e in order] if len(order) <= _LINKED else []
    return ui.Section("components", "Components", blocks, lead, links)


def _class_details(entry: ClassEntry, folder: Path, budget: Budget, lazy: bool, first: bool) -> ui.Details:
    inside: list[ui.Block] = [component_gallery(entry, folder, budget)]
    if entry.notes:
        inside.append(ui.Prose(entry.notes, bullets=True))
    count = ui.Step(f"of {text.plural(len(entry.components), 'component')}", f"{len(entry.proven)}")
    stats = [ui.Stat("proven spurious", [count])]
    before, after = entry.under().spurious, entry.under(mitigated=True).spurious
    if before is not None:
        value = after.triggered.value if entry.mended and after else None
        stats.insert(0, ui.Stat("taken for the class", _steps(before.triggered.value, value)))
    return ui.Details(
        entry.name,
        [ui.Lazy(inside)] if lazy else inside,
        id=class_id(entry),
        note=class_note(entry),
        stats=stats,
        open=first and not lazy,
    )


# --- end -------------------------------------------------------------------------------------------------


def _method(result: ClassifierResult) -> ui.Section:
    facts = [("Weights", result.weights), ("Classes", result.named_by)]
    facts.append(("Head", f"{result.layer}, {result.fingerprint.get('features', '?')} features"))
    if result.chosen_by != "nothing":
        facts.append(("SpuFix measured from", _REFERENCE[result.reference]))
        facts += [("SpuFix carried over from", result.transferred_from)] if result.transferred_from else []
    facts.append(("Components chosen by", _RULE[result.rule]))
    facts.append(("Other models asked", ", ".join(result.witnesses) or "none"))
    if result.faithfulness is not None:
        facts.append(("Maps of components", result.faithfulness.words))
    facts.append(("Head's SHA-256", str(result.fingerprint.get("head_sha256", ""))[:16]))
    return parts.method(
        result,
        facts,
        beside=[ui.Facts(title="Images", facts=text.flatten(result.preprocessing))],
        heading="Value",
        caption="pfungst check compares them with limits; of classes or conditions they are the worst.",
    )
