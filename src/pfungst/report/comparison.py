"""The page of a comparison: what got worse, what got better, and the images that changed."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.compare import Changed, ComparisonResult, Flips
from pfungst.audit.result import Result
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
    expect,
)

_TONES: dict[str, Tone] = {"better": "good", "worse": "bad"}


def page(result: Result, folder: Path) -> Page:
    """The page of a comparison.

    Args:
        result: a :class:`ComparisonResult`. folder: not read.

    Raises:
        DataError: it is another kind of result.
    """
    result = expect(result, ComparisonResult)
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
        stats_note="",
    )


def _turned(f: Flips) -> Stat:
    steps = [Step("right → wrong", str(f.lost)), Step("wrong → right", str(f.gained))]
    return Stat("Images answered differently", steps, f"{f.entry}, {f.variant}: of {f.n}.")


def _changes(result: ComparisonResult) -> Section:
    places = dict.fromkeys((c.entry, c.variant) for c in result.changes)
    groups = [
        Rows(
            [_row(c) for c in result.changes if (c.entry, c.variant) == place],
            label=f"{place[0]}, {place[1]}",
        )
        for place in places
    ]
    table = Table(
        columns=[
            Column("Measure", numeric=False),
            Column("Before"),
            Column("After"),
            Column("Change", "95 % interval"),
            Column("", numeric=False),
        ],
        groups=groups,
        name="Measures before and after",
        caption="Better and worse: an interval corrected for all measures compared leaves out zero.",
    )
    return Section(id="changes", title="What changed", blocks=[table])


def _row(c: Changed) -> list[Cell]:
    low, high = c.change.low, c.change.high
    ends = "" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    return [
        Cell(c.words, f"{c.better} is better"),
        Cell(f"{c.before:.3f}"),
        Cell(f"{c.after:.3f}"),
        Cell("0" if not c.change.value else _signed(c.change.value), ends),
        Cell(c.word, tone=_TONES.get(c.word, "")),
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _flips(result: ComparisonResult) -> Section | None:
    if not result.flips:
        return None
    rows = [
        [
            Cell(f"{f.entry}, {f.variant}"),
            Cell(str(f.n)),
            Cell(str(f.lost)),
            Cell(str(f.gained)),
            Cell(f"{f.corrected:.2g}"),
        ]
        for f in result.flips
    ]
    heads = [
        Column("Where", numeric=False),
        Column("Images"),
        Column("Right → wrong"),
        Column("Wrong → right"),
    ]
    table = Table(
        columns=[*heads, Column("p", "McNemar, exact; corrected (Holm)")],
        groups=[Rows(rows)],
        name="Images answered differently",
        caption="Images that both audits saw, of the first repetition of each.",
    )
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
    rows = [
        [Cell(name), Cell(f"{a:.3f}"), Cell(f"{b:.3f}"), Cell(_signed(b - a))]
        for name, (a, b) in result.others.items()
    ]
    table = Table(
        columns=[Column("Gate", numeric=False), Column("Before"), Column("After"), Column("Difference")],
        groups=[Rows(rows)],
        name="Worst values of both audits",
        caption="Without a test: the worst place of each audit may be another one.",
    )
    return Section(id="others", title="All other numbers", blocks=[table])
