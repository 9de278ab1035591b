"""The page of a classifier audit."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.classifier.result import ClassEntry, ClassifierResult, SpuriousScores
from pfungst.audit.result import Interval, Result
from pfungst.report import closing, text
from pfungst.report.classifier_gallery import Budget, class_id, class_note, component_gallery
from pfungst.report.page import (
    Block,
    Cell,
    Column,
    Columns,
    Details,
    Facts,
    Finder,
    Lazy,
    Page,
    Prose,
    Rows,
    Section,
    Stat,
    Step,
    Table,
    Tone,
    expect,
)

_LINKED = 24  # classes named in the table of contents
_REFERENCE = {"mean": "the mean of the class", "absent": "the class's images without the feature"}
_PLAIN = 40  # classes up to which nothing is held back until it is opened


def page(result: Result, folder: Path) -> Page:
    """The page of a classifier audit.

    Args:
        result: a :class:`ClassifierResult`.
        folder: where its images are.

    Raises:
        DataError: images are missing or damaged, or it is another kind of result.
    """
    result = expect(result, ClassifierResult)
    components = sum(len(e.components) for e in result.entries)
    facts = [("Model", result.model), ("Classes audited", f"{len(result.entries):,} of {result.n_classes:,}")]
    facts += [("Components shown", f"{components:,}"), ("Validation images", f"{result.n_validation:,}")]
    facts += [("Switched off", _chosen(result))]
    return Page.of(
        result,
        facts=facts,
        sections=[_classes(result), _components(result, folder), closing.skipped(result), _method(result)],
        stats=_headline(result),
        stats_note=_headline_note(result),
    )


# --- head ------------------------------------------------------------------------------------------------


def _chosen(result: ClassifierResult) -> str:
    count = sum(len(e.fixed) for e in result.entries)
    who = {"people": "chosen by people", "ranking": "chosen by the blind ranking", "nothing": ""}[
        result.chosen_by
    ]
    return f"{text.plural(count, 'component')}{', ' if who else ''}{who}" if count else "nothing"


def _steps(before: float, after: float | None, write: object = text.percent) -> list[Step]:
    assert callable(write)
    steps = [Step("as it is", write(before), "original")]
    return steps if after is None else [*steps, Step("with SpuFix", write(after), "mitigated")]


def _headline(result: ClassifierResult) -> list[Stat]:
    fixed = result.chosen_by != "nothing"
    stats = []
    if result.triggered is not None and result.mauc is not None:
        after = result.triggered_fixed if fixed else None
        note = "Images that show only the feature, mean over classes."
        stats.append(Stat("Taken for the class", _steps(result.triggered, after), note))
        after = result.mauc_fixed.value if fixed and result.mauc_fixed else None
        stats.append(
            Stat(
                "Spurious score (mAUC)",
                _steps(result.mauc.value, after, text.ratio),
                "1 is no reliance; 0.50 is chance.",
            )
        )
    after = result.accuracy_fixed.value if fixed else None
    stats.append(Stat("Accuracy", _steps(result.accuracy.value, after, _fine), "On the validation images."))
    suspects = sum(c.suspect for e in result.entries for c in e.components)
    classes = sum(any(c.suspect for c in e.components) for e in result.entries)
    note = f"In {text.plural(classes, 'class', 'classes')}, ranked blind."
    stats.append(Stat("Components that look spurious", [Step("of those shown", f"{suspects:,}")], note))
    return stats


def _headline_note(result: ClassifierResult) -> str:
    if result.mauc is None:
        return "No images with only a spurious feature were given (--spurious), so what triggers a class is not measured."
    words = []
    for name, value in (
        ("mAUC", result.mauc),
        ("with SpuFix", result.mauc_fixed),
        ("gain", result.mauc_gain),
    ):
        if value is not None:
            words.append(
                f"{name} {text.ratio(value.value)} ({text.interval(value.low, value.high, text.ratio)})"
            )
    if result.published_map is not None and result.published_map_fixed is not None:
        words.append(
            f"published mAP (average precision) {text.ratio(result.published_map)} → {text.ratio(result.published_map_fixed)}"
        )
    return f"{'; '.join(words)}. 95 % intervals."


def _fine(value: float) -> str:
    return f"{100 * value:.1f}{text.THIN}%"


# --- classes ---------------------------------------------------------------------------------------------


def _classes(result: ClassifierResult) -> Section:
    scored = any(e.scores for e in result.entries)
    columns = [
        Column("Class", numeric=False),
        Column("Harm", "most suspicious"),
        Column("Accuracy", "validation"),
    ]
    if scored:
        columns += [
            Column("Taken for the class", "spurious images"),
            Column("AUC", "higher is better"),
            Column("Average precision", "published score"),
        ]
    order = sorted(result.entries, key=_seriousness, reverse=True)
    groups = [Rows(_rows(e, scored)) for e in order]
    table = Table(
        columns=columns,
        groups=groups,
        name="Results by class",
        caption="Worst first. Small figures are 95 % intervals. A class without images that show only its feature has no "
        "spurious score." if scored else "Most suspicious first. Small figures are 95 % intervals.",
    )  # fmt: skip
    blocks: list[Block] = [table]
    if len(order) > 8:
        blocks.insert(
            0, Finder(label="Find a class", target="#classes tbody", count=len(order), noun="classes")
        )
    lead = "What the model gets right, and what its classes take for themselves that only shows their spurious feature."
    return Section(id="classes", title="Class by class", lead=lead, blocks=blocks)


def _seriousness(entry: ClassEntry) -> tuple[float, float]:
    return (entry.scores.triggered.value if entry.scores else -1.0, _harm(entry))


def _harm(entry: ClassEntry) -> float:
    return max((c.harm for c in entry.components), default=0.0)


def _rows(entry: ClassEntry, scored: bool) -> list[list[Cell]]:
    """A class as it is and, where that changed anything, with SpuFix."""

    def measured(accuracy: Interval | None, scores: SpuriousScores | None, tone: Tone = "") -> list[Cell]:
        cells = [_share(accuracy)]
        if scored:
            cells += [_share(scores.triggered if scores else None, tone)]
            cells += [_ratio(scores.auc if scores else None, tone)]
            cells += [Cell(text.ratio(scores.average_precision) if scores else "–")]
        return cells

    name = Cell(entry.name, f"class {entry.index}", href=class_id(entry))
    rows = [[name, Cell(text.ratio(_harm(entry))), *measured(entry.accuracy, entry.scores)]]
    if entry.fixed or entry.accuracy != entry.accuracy_fixed:
        numbers = ", ".join(map(str, entry.fixed))
        off = f"component{'s' if len(entry.fixed) > 1 else ''} {numbers} switched off"
        note = off if entry.fixed else "components of other classes switched off"
        after = measured(entry.accuracy_fixed, entry.scores_fixed, "mitigated")
        rows.append([Cell("with SpuFix", note, tone="mitigated"), Cell(""), *after])
    return rows


def _share(value: Interval | None, tone: Tone = "") -> Cell:
    if value is None:
        return Cell("–", title="no images")
    return Cell(text.percent(value.value), text.interval(value.low, value.high, text.percent), tone=tone)


def _ratio(value: Interval | None, tone: Tone = "") -> Cell:
    if value is None:
        return Cell("–", title="no images with only its feature")
    return Cell(text.ratio(value.value), text.interval(value.low, value.high, text.ratio), tone=tone)


# --- components ------------------------------------------------------------------------------------------


def _components(result: ClassifierResult, folder: Path) -> Section:
    budget = Budget.of(len(result.entries))
    order = sorted(result.entries, key=_seriousness, reverse=True)
    lazy = len(order) > _PLAIN
    blocks: list[Block] = []
    if result.npfv_note:
        blocks.append(Prose(paragraphs=[result.npfv_note]))
    if len(order) > 8:
        blocks.append(
            Finder(
                label="Find a class",
                target="#components > details",
                count=len(order),
                noun="classes",
                flag="with suspicious components only",
            )
        )
    for number, entry in enumerate(order):
        inside: list[Block] = [component_gallery(entry, folder, budget)]
        if entry.notes:
            inside.append(Prose(paragraphs=entry.notes, bullets=True))
        stats = [Stat("harm", [Step("most suspicious component", text.ratio(_harm(entry)))])]
        if entry.scores is not None:
            after = entry.scores_fixed.triggered.value if entry.fixed and entry.scores_fixed else None
            stats.insert(0, Stat("taken for the class", _steps(entry.scores.triggered.value, after)))
        blocks.append(
            Details(
                title=entry.name,
                id=class_id(entry),
                note=class_note(entry),
                stats=stats,
                blocks=[Lazy(blocks=inside)] if lazy else inside,
                open=number == 0 and not lazy,
            )
        )
    lead = (
        "Components are ranked blind: nobody has looked at them. Each row shows how α, what the component adds to the logit of "
        "the class, is spread over the class's training images, the five images where it is highest, and where in them it "
        "comes from."
    )
    if any(len(e.components) > budget.components for e in result.entries):
        lead += (
            f" This page shows {budget.components} per class; all of them, in full size, are in images/ and in label-task.json, "
            "for pfungst label."
        )
    links = [(class_id(e), e.name) for e in order] if len(order) <= _LINKED else []
    return Section(id="components", title="Components", lead=lead, blocks=blocks, links=links)


# --- end -------------------------------------------------------------------------------------------------


def _method(result: ClassifierResult) -> Section:
    audit = [("Pfungst", result.version), ("Created", result.created), ("Machine", result.machine)]
    audit += [("Computed in", text.duration(result.seconds)), ("Weights", result.weights)]
    audit += [("Head", f"{result.layer}, {result.fingerprint.get('features', '?')} features")]
    if result.chosen_by != "nothing":
        audit += [("SpuFix measured from", _REFERENCE[result.reference])]
    audit += [("Heatmaps", result.heat_layer or "none")]
    audit += [("Head's SHA-256", str(result.fingerprint.get("head_sha256", ""))[:16])]
    blocks: list[Block] = [Prose(paragraphs=result.notes, bullets=True)]
    blocks.append(
        Columns(
            blocks=[
                Facts(title="This audit", facts=audit),
                Facts(title="Images", facts=text.flatten(result.preprocessing)),
            ]
        )
    )
    blocks.append(Facts(title="Configuration", facts=text.flatten(result.config)))
    caption = "pfungst check compares them with limits; those of single classes are the worst of all classes."
    blocks += [table for table in (closing.gates(result, "Value", caption),) if table is not None]
    return Section(id="method", title="How every number was made", blocks=blocks)
