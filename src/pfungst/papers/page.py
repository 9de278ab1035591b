"""The page of a reproduction."""

from __future__ import annotations

from pfungst import __version__
from pfungst.papers.made import Made, Number, Numbers, Wish
from pfungst.report import parts, text
from pfungst.report.page import Block, Cell, Column, Page, Prose, Rows, Section, Table

_LEAD = "Small figures are 95 % intervals of ours; the difference is ours less what the paper prints."
_FITTING = 2  # columns of numbers that a telephone shows beside the names


def page(wish: Wish, made: Made) -> Page:
    """The page of what was made."""
    piece = wish.piece
    sections = []
    if made.numbers:
        sections.append(
            Section(id="numbers", title="The numbers", lead=_LEAD, blocks=[_table(n) for n in made.numbers])
        )
    if made.blocks:
        sections.append(Section(id="pictures", title="The pictures", blocks=list(made.blocks)))
    notes = [f"Source: {piece.paper}.", *([piece.note] if piece.note else []), *made.notes]
    notes += [f"Audit: {folder}" for folder in made.audits]
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
    what = str(wish.data) if wish.data else wish.piece.stand_in
    return f"stand-in: {what}" + (", as small as it runs" if wish.tiny else "")


def _headline(wish: Wish) -> str:
    if not wish.stand_in:
        return "Made from the data that the paper names."
    return (
        "Stand-in: the data are not the paper's, so its numbers stand beside ours for orientation; the "
        "differences "
        "test nothing."
    )


def _table(numbers: Numbers) -> Table:
    """A row of ours; where the paper prints numbers, rows of its own and of the difference below it."""
    write = text.percent if numbers.unit == "percent" else text.ratio
    compared = any(cell.paper is not None for cell in numbers.cells)
    groups = []
    for row in numbers.rows:
        cells = [numbers.at(row, column) for column in numbers.columns]
        lines = [[Cell("ours" if compared else row), *(_ours(c, write) for c in cells)]]
        if any(c is not None and c.paper is not None for c in cells):
            printed = [Cell("" if c is None or c.paper is None else write(c.paper)) for c in cells]
            lines += [[Cell("paper"), *printed], [Cell("difference"), *(_less(c, write) for c in cells)]]
        groups.append(Rows(lines, row if compared else ""))
    aside = " On narrow screens the table scrolls sideways." * (len(numbers.columns) > _FITTING)
    return Table(
        columns=[Column("", numeric=False), *(Column(c) for c in numbers.columns)],
        groups=groups if compared else [Rows([line for g in groups for line in g.rows])],
        name=numbers.title,
        caption=f"{(numbers.caption or numbers.title).rstrip('.')}.{aside}",
    )


def _ours(number: Number | None, write: text.Writer) -> Cell:
    if number is None:
        return Cell("")
    return parts.cell(number.ours, write, missing="not measured here")


def _less(number: Number | None, write: text.Writer) -> Cell:
    return Cell("") if number is None or number.difference is None else parts.cell(number.difference, write)
