"""The page of a classifier audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfungst.audit.classifier.result import ClassEntry, ClassifierResult, Scores
from pfungst.audit.result import Interval
from pfungst.report import discovery, parts, plots, text
from pfungst.report.classifier_gallery import Budget, class_id, class_note, component_gallery
from pfungst.report.page import (
    Block,
    Cell,
    Column,
    Details,
    Facts,
    Figure,
    Finder,
    Lazy,
    Page,
    Prose,
    Rows,
    Section,
    Stat,
    Step,
    Table,
    page_of,
    words,
)

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


@page_of(ClassifierResult)
def page(result: ClassifierResult, folder: Path) -> Page:
    """The page of a classifier audit."""
    fixed = sum(len(e.fixed or e.transferred) for e in result.entries)
    return Page.of(
        result,
        facts=[
            ("Model", result.model),
            ("Classes audited", f"{len(result.entries):,} of {result.n_classes:,}"),
            ("Components shown", f"{sum(len(e.components) for e in result.entries):,}"),
            ("Validation images", f"{result.n_validation:,}"),
            (
                "Switched off",
                f"{text.plural(fixed, 'component')}{_CHOSEN[result.chosen_by]}" if fixed else "nothing",
            ),
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


def _steps(before: float, after: float | None, write: Callable[[float], str] = text.percent) -> list[Step]:
    steps = [Step("as it is", write(before), "original")]
    return steps if after is None else [*steps, Step("with SpuFix", write(after), "mitigated")]


def _headline(result: ClassifierResult) -> list[Stat]:
    first = result.under()
    second = result.under(mitigated=True) if result.chosen_by != "nothing" else None
    stats = []
    if first.triggered is not None and first.mauc is not None:
        note = "Images that show only the feature, mean over classes."
        after = second.triggered if second else None
        stats.append(Stat("Taken for the class", _steps(first.triggered, after), note))
        after = second.mauc.value if second and second.mauc else None
        note = "1 is no reliance; 0.50 is chance."
        stats.append(Stat("Spurious score (mAUC)", _steps(first.mauc.value, after, text.ratio), note))
    after = second.accuracy.value if second else None
    stats.append(Stat("Accuracy", _steps(first.accuracy.value, after, _fine), "On the validation images."))
    condition = result.verdict.about.condition
    if condition:
        after = result.under(condition, mitigated=True).accuracy.value if second else None
        value = result.under(condition).accuracy.value
        stats.append(Stat(f"Accuracy under {condition}", _steps(value, after, _fine), "On the same images."))
    judged = any(e.judged is not None for e in result.entries)
    counts = [len(e.judged if e.judged is not None else e.proven) for e in result.entries]
    suspects, classes = sum(counts), sum(map(bool, counts))
    note = f"In {text.plural(classes, 'class', 'classes')}."
    shown = sum(len(e.components) for e in result.entries)
    title = "Components judged spurious" if judged else "Components proven spurious"
    stats.append(Stat(title, [Step(f"of {shown:,} shown", f"{suspects:,}")], note))
    return stats


def _headline_note(result: ClassifierResult) -> str:
    first, second = result.under(), result.under(mitigated=True)
    if first.mauc is None:
        return (
            "No images with only a spurious feature were given (--spurious), so what triggers a class is not "
            "measured."
        )
    values = {"mAUC": first.mauc, "with SpuFix": second.mauc, "gain": result.mauc_gain}
    words = [
        f"{name} {text.ratio(value.value)} ({text.interval(value.low, value.high, text.ratio)})"
        for name, value in values.items()
        if value is not None
    ]
    if first.published_map is not None and second.published_map is not None:
        change = f"{text.ratio(first.published_map)} → {text.ratio(second.published_map)}"
        words.append(f"published mAP (average precision) {change}")
    return f"{'; '.join(words)}. 95 % intervals."


def _fine(value: float) -> str:
    return f"{100 * value:.1f}{text.THIN}%"


# --- conditions ------------------------------------------------------------------------------------------


def _conditions(result: ClassifierResult) -> Section | None:
    """What each condition costs, and which class takes over; None with the original condition only."""
    if len(result.conditions) < 2:
        return None
    groups = [
        Rows([_condition_row(s, result) for s in result.scores if s.variant.condition == name])
        for name in result.conditions
    ]
    columns = [words("Condition"), Column("Accuracy"), Column("Fall", "on the same images")]
    columns += [words("Gains most"), Column("Taken for it", "before → after")]
    columns += [Column("Its probability", "median, times")]
    table = Table(
        columns=columns,
        groups=groups,
        name="Accuracy by condition",
        caption="Small figures are 95 % intervals; of the fall Newcombe's for paired shares.",
    )
    facts = Facts(title="Conditions", facts=list(result.conditions.items()))
    lead = "The validation images as the model's images are prepared, and with each condition added."
    return Section(
        id="conditions", title="Other conditions", lead=lead, blocks=[_condition_plot(result), table, facts]
    )


def _condition_row(scores: Scores, result: ClassifierResult) -> list[Cell]:
    variant, colour = scores.variant, parts.tone(scores.variant)
    name = Cell("with SpuFix", tone=colour) if variant.mitigated else Cell(variant.condition)
    cells = [name, parts.cell(scores.accuracy, text.percent, tone=colour)]
    cells.append(parts.cell(scores.fall, text.percent, tone=colour, missing="the condition compared with"))
    if not scores.gains:
        return [*cells, Cell("–", title="no class gains"), Cell("–"), Cell("–")]
    gain = scores.gains[0]
    shares = " → ".join(text.percent(n / result.n_validation) for n in gain.predicted)
    return [*cells, Cell(gain.name), Cell(shares), Cell(f"× {text.number(gain.times)}")]


def _condition_plot(result: ClassifierResult) -> Figure:
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
    return Figure(
        title="What each condition costs",
        picture=plots.dots(rows, panels, label),
        narrow=plots.dots(rows, panels, label, width=344),
        legend=keys,
        caption="One row per condition, on the same validation images. Bars are 95 % intervals.",
    )


# --- classes ---------------------------------------------------------------------------------------------


def _ordered(result: ClassifierResult) -> list[ClassEntry]:
    return sorted(result.entries, key=lambda e: e.seriousness, reverse=True)


def _classes(result: ClassifierResult) -> Section:
    scored = any(e.under().spurious for e in result.entries)
    columns = [words("Class"), Column("Carried elsewhere", "strongest component")]
    columns.append(Column("Accuracy", "validation"))
    columns += [Column("Accuracy", f"under {name}") for name in list(result.conditions)[1:]]
    caption = (
        "Proven spurious first. Small figures are 95 % intervals. Carried elsewhere: share of the class that "
        "what the component reads off the object takes into images of other classes."
    )
    if scored:
        columns.append(Column("Taken for the class", "spurious images"))
        columns.append(Column("AUC", "higher is better"))
        columns.append(Column("Average precision", "published score"))
        caption = (
            "Worst first. Small figures are 95 % intervals. A class without images that show only its "
            "feature has no spurious score."
        )
    order = _ordered(result)
    groups = [Rows(_class_rows(e, list(result.conditions), scored)) for e in order]
    blocks: list[Block] = [Table(columns=columns, groups=groups, name="Results by class", caption=caption)]
    if len(order) > _SEARCHED:
        finder = Finder(label="Find a class", target="#classes tbody", count=len(order), noun="classes")
        blocks.insert(0, finder)
    lead = (
        "What the model gets right, and what its classes take for themselves that only shows their spurious "
        "feature."
    )
    return Section(id="classes", title="Class by class", lead=lead, blocks=blocks)


def _class_rows(entry: ClassEntry, conditions: list[str], scored: bool) -> list[list[Cell]]:
    """A class as it is and, where that changed anything, with SpuFix; a column per condition."""

    def measured(mitigated: bool) -> list[Cell]:
        scores = entry.under(mitigated=mitigated)
        spurious, tone = scores.spurious, parts.tone(scores.variant) if mitigated else ""
        accuracies = [entry.under(name, mitigated).accuracy for name in conditions]
        cells = [parts.cell(a, text.percent, tone=tone, missing="no images") for a in accuracies]
        if scored:
            none = "no images with only its feature"
            triggered, auc = (spurious.triggered, spurious.auc) if spurious else (None, None)
            cells.append(parts.cell(triggered, text.percent, tone=tone, missing=none))
            cells.append(parts.cell(auc, tone=tone, missing=none))
            cells.append(Cell(text.ratio(spurious.average_precision) if spurious else "–"))
        return cells

    name = Cell(entry.name, class_note(entry, short=True), href=class_id(entry))
    tested = [c.tested for c in entry.components if c.tested is not None]
    first = max((t.sufficiency[0] for t in tested), key=lambda i: i.low or 0.0, default=None)
    rows = [[name, parts.cell(first, text.percent, missing="not tested"), *measured(False)]]
    if entry.mended or entry.under().accuracy != entry.under(mitigated=True).accuracy:
        numbers = entry.fixed or entry.transferred
        off = f"component{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} switched off"
        off += " (numbers of the model that they come from)" if entry.transferred else ""
        note = off if entry.mended else "components of other classes switched off"
        rows.append([Cell("with SpuFix", note, tone="mitigated"), Cell(""), *measured(True)])
    return rows


# --- components ------------------------------------------------------------------------------------------


def _components(result: ClassifierResult, folder: Path) -> Section:
    budget = Budget.of(len(result.entries))
    order = _ordered(result)
    blocks: list[Block] = [Prose(paragraphs=[result.npfv_note])] if result.npfv_note else []
    if len(order) > _SEARCHED:
        blocks.append(
            Finder(
                label="Find a class",
                target="#components > details",
                count=len(order),
                noun="classes",
                flag="with spurious components only",
            )
        )
    lazy = len(order) > _PLAIN
    blocks += [_class_details(e, folder, budget, lazy, first=e is order[0]) for e in order]
    lead = (
        "What each class was found to depend on, tested by intervention; nobody has looked at it. Each row "
        "shows "
        "how α, what the component adds to the logit of the class, is spread over the class's training "
        "images, "
        "and the images where it is highest, below them with the region outlined that it comes from."
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
    return Section(id="components", title="Components", lead=lead, blocks=blocks, links=links)


def _class_details(entry: ClassEntry, folder: Path, budget: Budget, lazy: bool, first: bool) -> Details:
    inside: list[Block] = [component_gallery(entry, folder, budget)]
    if entry.notes:
        inside.append(Prose(paragraphs=entry.notes, bullets=True))
    stats = [
        Stat(
            "proven spurious",
            [Step(f"of {text.plural(len(entry.components), 'component')}", f"{len(entry.proven)}")],
        )
    ]
    before, after = entry.under().spurious, entry.under(mitigated=True).spurious
    if before is not None:
        value = after.triggered.value if entry.mended and after else None
        stats.insert(0, Stat("taken for the class", _steps(before.triggered.value, value)))
    return Details(
        title=entry.name,
        id=class_id(entry),
        note=class_note(entry),
        stats=stats,
        blocks=[Lazy(blocks=inside)] if lazy else inside,
        open=first and not lazy,
    )


# --- end -------------------------------------------------------------------------------------------------


def _method(result: ClassifierResult) -> Section:
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
        beside=[Facts(title="Images", facts=text.flatten(result.preprocessing))],
        heading="Value",
        caption="pfungst check compares them with limits; of classes or conditions they are the worst.",
    )
