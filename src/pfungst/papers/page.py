"""The page of a reproduction."""

from __future__ import annotations

import math

from pfungst import __version__
from pfungst.papers.made import Made, Number, Numbers, Wish
from pfungst.report import parts, text
from pfungst.report.page import Block, Cell, Column, Page, Prose, Rows, Section, Table


def page(wish: Wish, made: Made) -> Page:
    """The page of what was made."""
    piece = wish.piece
    sections = [
        Section(
            id=f"numbers-{i}",
            title=numbers.title,
            lead=_lead(numbers) if i == 1 else "",
            blocks=[_table(numbers)],
        )
        for i, numbers in enumerate(made.numbers, 1)
    ]
    if made.blocks:
        sections.append(Section(id="pictures", title="The pictures", blocks=list(made.blocks)))
    notes = [f"Source: {piece.paper}", *([piece.note] if piece.note else []), *made.notes]
    notes += [f"Audit: {folder}" for folder in made.audits]
    notes = [
        f"{note if note[1:2].isupper() else note[:1].upper() + note[1:]}".rstrip(".") + "." for note in notes
    ]
    blocks: list[Block] = [Prose(paragraphs=notes, bullets=True)]
    sections.append(Section(id="method", title="How it was made", blocks=blocks))
    facts = [("Needs", piece.needs or "nothing"), ("Made from", made_from(wish))]
    return Page(
        kicker="Reproduction",
        title=f"{piece.id}: {piece.title}",
        verdict=None,
        headline=_headline(wish),
        sections=sections,
        facts=facts,
        version=__version__,
    )


def made_from(wish: Wish) -> str:
    """The data in words."""
    if not wish.stand_in:
        return str(wish.data or "no data")
    what = str(wish.data) if wish.data else wish.piece.stand_in.partition("; or --data")[0]
    return f"stand-in: {what}" + (", as small as it runs" if wish.tiny else "")


def _headline(wish: Wish) -> str:
    if wish.piece.needs == "nothing":
        return "It shows no data: the example is computed."
    if not wish.stand_in:
        return "Made from the data that the paper names."
    return (
        "Stand-in: the data are not the paper's, so its numbers stand beside ours for orientation; the "
        "differences test nothing."
    )


def _lead(numbers: Numbers) -> str:
    said = []
    if any(c.ours is not None and c.ours.low is not None for c in numbers.cells):
        said.append("Small figures are 95 % intervals of ours.")
    if any(c.difference is not None for c in numbers.cells):
        said.append(
            "The difference is ours less the paper's; its interval is ours too, as the paper prints none."
        )
    elif all(c.paper is None for c in numbers.cells):
        said.append("The paper prints no numbers here.")
    return " ".join(said)


def _table(numbers: Numbers) -> Table:
    """A row of ours; where the paper prints numbers of it, its own and the difference below. Rows that only
    the paper has come last."""
    compared = any(cell.paper is not None for cell in numbers.cells)
    groups, plain, printed = [], [], []
    for row in numbers.rows:
        cells = [numbers.at(row, column) for column in numbers.columns]
        theirs = [Cell("" if c is None or c.paper is None else _write(numbers, c)(c.paper)) for c in cells]
        if all(c is None or c.ours is None for c in cells):
            printed.append([Cell(row), *theirs])
            continue
        ours = [Cell("") if c is None else _ours(numbers, c) for c in cells]
        if not any(c is not None and c.paper is not None for c in cells):
            plain.append([Cell(row), *ours])
            continue
        lines = [[Cell("ours"), *ours], [Cell("paper"), *theirs]]
        if any(c is not None and c.difference is not None for c in cells):
            lines.append([Cell("difference"), *(_less(numbers, c) for c in cells)])
        groups.append(Rows(lines, row))
    if plain:
        groups.append(Rows(plain, "ours" if compared else ""))
    if printed:
        groups.append(Rows(printed, "the paper's, not measured here"))
    return Table(
        columns=[Column("", numeric=False), *(Column(c) for c in numbers.columns)],
        groups=groups,
        name=numbers.title,
        caption=numbers.caption,
    )


def _write(numbers: Numbers, cell: Number, sign: str = "") -> text.Writer:
    """As many digits as the paper prints, at least two and at most three; counts as whole numbers."""
    if numbers.unit == "percent":
        return text.percent
    printed = [len(str(c.paper).partition(".")[2]) for c in numbers.cells if c.paper is not None]
    digits = 0 if cell.column in numbers.counts else min(max([2, *printed]), 3)

    def write(value: float) -> str:
        if not math.isfinite(value):
            return "–"
        return f"{round(value, digits) + 0.0:{sign if round(value, digits) else ''}.{digits}f}".replace(
            "-", "−"
        )

    return write


def _ours(numbers: Numbers, cell: Number) -> Cell:
    return parts.cell(cell.ours, _write(numbers, cell), missing="not measured here")


def _less(numbers: Numbers, cell: Number | None) -> Cell:
    found = None if cell is None else cell.difference
    if found is None or cell is None:
        return Cell("")
    ends = text.interval(found.low, found.high, _write(numbers, cell))
    return Cell(_write(numbers, cell, "+")(found.value), ends)
