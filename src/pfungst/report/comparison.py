"""The page of a comparison: what got worse, what got better, and the images that changed."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.compare import Changed, ComparisonResult, Flips
from pfungst.audit.result import Interval
from pfungst.report import page as ui
from pfungst.report import parts, text

_TONES: dict[str, ui.Tone] = {"better": "good", "worse": "bad"}


@ui.page_of(ComparisonResult)
def page(result: ComparisonResult, folder: Path) -> ui.Page:
    """The page of a comparison."""
    return ui.Page.of(
        result,
        facts=[
            ("Before", result.first),
            ("After", result.second),
            ("Images", "the same" if result.paired else "not the same in both"),
        ],
        sections=[_changes(result), _flips(result), _others(result), parts.method(result)],
        stats=[
            ui.Stat(
                "Measures compared",
                [
                    ui.Step(word, str(len(result.words(word))))
                    for word in ("worse", "better", "no difference shown")
                ],
                "For certain: the interval, corrected for all measures, leaves out zero.",
            ),
            *[_turned(f) for f in sorted(result.flips, key=lambda f: -f.lost - f.gained)[:1]],
        ],
    )


def _turned(f: Flips) -> ui.Stat:
    steps = [ui.Step("right → wrong", str(f.lost)), ui.Step("wrong → right", str(f.gained))]
    return ui.Stat("Images answered differently", steps, f"{f.entry}, {f.variant}: of {f.n}.")


def _changes(result: ComparisonResult) -> ui.Section:
    columns = [
        ui.words("Measure", "", lambda c: (c.words, f"{c.better} is better")),
        ui.Column("Before", "", lambda c: f"{c.before:.3f}"),
        ui.Column("After", "", lambda c: f"{c.after:.3f}"),
        ui.Column("Change", "95 % interval", lambda c: _difference(c.change)),
        ui.words("", "", lambda c: ui.Cell(c.word, tone=_TONES.get(c.word, ""))),
    ]
    places: dict[str, list[Changed]] = {}
    for change in result.changes:
        places.setdefault(f"{change.entry}, {change.variant}", []).append(change)
    caption = "Better and worse: an interval corrected for all measures compared leaves out zero."
    table = ui.Table.grouped(columns, places, "Measures before and after", caption)
    return ui.Section("changes", "What changed", [table])


def _difference(change: Interval) -> tuple[str, str]:
    value, ends = text.signed(change.value) if change.value else "0", [change.low, change.high]
    return value, " to ".join(text.signed(v) for v in ends if v is not None)


def _flips(result: ComparisonResult) -> ui.Section | None:
    if not result.flips:
        return None
    columns = [
        ui.words("Where", "", lambda f: f"{f.entry}, {f.variant}"),
        ui.Column("Images", "", lambda f: str(f.n)),
        ui.Column("Right → wrong", "", lambda f: str(f.lost)),
        ui.Column("Wrong → right", "", lambda f: str(f.gained)),
        ui.Column("p", "McNemar, exact; corrected (Holm)", lambda f: f"{f.corrected:.2g}"),
    ]
    caption = "Images that both audits saw, of the first repetition of each."
    table = ui.Table.of(columns, result.flips, "Images answered differently", caption)
    lists = [
        ui.Details(
            f"{f.entry}, {f.variant}: {text.plural(count, 'image')} {word}",
            [ui.Prose(ids, bullets=True)],
            note="" if count <= len(ids) else f"The first {len(ids)}.",
        )
        for f in result.flips
        for word, count, ids in (
            ("right → wrong", f.lost, f.lost_ids),
            ("wrong → right", f.gained, f.gained_ids),
        )
        if ids
    ]
    return ui.Section("images", "Which images", [table, *lists])


def _others(result: ComparisonResult) -> ui.Section | None:
    if not result.others:
        return None
    columns = [
        ui.words("Gate", "", lambda name, _: name),
        ui.Column("Before", "", lambda _, ends: f"{ends[0]:.3f}"),
        ui.Column("After", "", lambda _, ends: f"{ends[1]:.3f}"),
        ui.Column("Difference", "", lambda _, ends: text.signed(ends[1] - ends[0])),
    ]
    caption = "Without a test: the worst place of each audit may be another one."
    table = ui.Table.of(columns, result.others.items(), "Worst values of both audits", caption)
    return ui.Section("others", "All other numbers", [table])
