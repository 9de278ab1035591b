"""The page of a comparison: what got worse, what got better, and the images that changed."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.compare import Changed, ComparisonResult, Flips
from pfungst.audit.result import Interval
from pfungst.report import parts, text
from pfungst.report.page import (
    Cell,
    Column,
    Details,
    Page,
    Prose,
    Rows,
    Section,
    Stat,
    Step,
    Table,
    Tone,
    page_of,
    words,
)

_TONES: dict[str, Tone] = {"better": "good", "worse": "bad"}


@page_of(ComparisonResult)
def page(result: ComparisonResult, folder: Path) -> Page:
    """The page of a comparison."""
    return Page.of(
        result,
        facts=[
            ("Before", result.first),
            ("After", result.second),
            ("Images", "the same" if result.paired else "not the same in both"),
        ],
        sections=[_changes(result), _flips(result), _others(result), parts.method(result)],
        stats=[
            Stat(
                "Measures compared",
                [
                    Step(word, str(len(result.words(word))))
                    for word in ("worse", "better", "no difference shown")
                ],
                "For certain: the interval, corrected for all measures, leaves out zero.",
            ),
            *[_turned(f) for f in sorted(result.flips, key=lambda f: -f.lost - f.gained)[:1]],
        ],
    )


def _turned(f: Flips) -> Stat:
    steps = [Step("right → wrong", str(f.lost)), Step("wrong → right", str(f.gained))]
    return Stat("Images answered differently", steps, f"{f.entry}, {f.variant}: of {f.n}.")


def _changes(result: ComparisonResult) -> Section:
    columns = [
        words("Measure", "", lambda c: (c.words, f"{c.better} is better")),
        Column("Before", "", lambda c: f"{c.before:.3f}"),
        Column("After", "", lambda c: f"{c.after:.3f}"),
        Column(
            "Change",
            "95 % interval",
            lambda c: ("0" if not c.change.value else _signed(c.change.value), _ends(c.change)),
        ),
        words("", "", lambda c: Cell(c.word, tone=_TONES.get(c.word, ""))),
    ]
    places: dict[str, list[Changed]] = {}
    for change in result.changes:
        places.setdefault(f"{change.entry}, {change.variant}", []).append(change)
    table = Table(
        columns=columns,
        groups=[Rows.of(columns, changes, place) for place, changes in places.items()],
        name="Measures before and after",
        caption="Better and worse: an interval corrected for all measures compared leaves out zero.",
    )
    return Section(id="changes", title="What changed", blocks=[table])


def _ends(change: Interval) -> str:
    if change.low is None or change.high is None:
        return ""
    return f"{_signed(change.low)} to {_signed(change.high)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _flips(result: ComparisonResult) -> Section | None:
    if not result.flips:
        return None
    columns = [
        words("Where", "", lambda f: f"{f.entry}, {f.variant}"),
        Column("Images", "", lambda f: str(f.n)),
        Column("Right → wrong", "", lambda f: str(f.lost)),
        Column("Wrong → right", "", lambda f: str(f.gained)),
        Column("p", "McNemar, exact; corrected (Holm)", lambda f: f"{f.corrected:.2g}"),
    ]
    caption = "Images that both audits saw, of the first repetition of each."
    table = Table.of(columns, result.flips, "Images answered differently", caption)
    lists = [
        Details(
            title=f"{f.entry}, {f.variant}: {text.plural(count, 'image')} {word}",
            blocks=[Prose(paragraphs=ids, bullets=True)],
            note="" if count <= len(ids) else f"The first {len(ids)}.",
        )
        for f in result.flips
        for word, count, ids in (
            ("right → wrong", f.lost, f.lost_ids),
            ("wrong → right", f.gained, f.gained_ids),
        )
        if ids
    ]
    return Section(id="images", title="Which images", blocks=[table, *lists])


def _others(result: ComparisonResult) -> Section | None:
    if not result.others:
        return None
    columns = [
        words("Gate", "", lambda name, _: name),
        Column("Before", "", lambda _, ends: f"{ends[0]:.3f}"),
        Column("After", "", lambda _, ends: f"{ends[1]:.3f}"),
        Column("Difference", "", lambda _, ends: _signed(ends[1] - ends[0])),
    ]
    caption = "Without a test: the worst place of each audit may be another one."
    table = Table.of(columns, result.others.items(), "Worst values of both audits", caption)
    return Section(id="others", title="All other numbers", blocks=[table])
