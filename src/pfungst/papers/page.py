"""The page of a reproduction."""

from __future__ import annotations

from pfungst import __version__
from pfungst.papers.made import Made, Number, Numbers, Wish
from pfungst.report import text
from pfungst.report.page import Block, Cell, Column, Page, Prose, Rows, Section, Table

_LEAD = (
    "Ours in large figures with the 95 % interval; below it what the paper prints, and ours less that. A "
    "dash: only "
    "the paper has it."
)


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
    write = text.percent if numbers.unit == "percent" else text.ratio
    rows = [
        [Cell(row), *(_cell(numbers.at(row, column), write) for column in numbers.columns)]
        for row in numbers.rows
    ]
    return Table(
        columns=[Column("", numeric=False), *(Column(c) for c in numbers.columns)],
        groups=[Rows(rows)],
        name=numbers.title,
        caption=numbers.caption or numbers.title,
    )


def _cell(number: Number | None, write: text.Writer) -> Cell:
    if number is None:
        return Cell("")
    ours = "–" if number.ours is None else write(number.ours.value)
    notes = []
    if number.ours is not None and (between := text.interval(number.ours.low, number.ours.high, write)):
        notes.append(between)
    if number.paper is not None:
        notes.append(f"paper {write(number.paper)}")
    if (d := number.difference) is not None:
        between = text.interval(d.low, d.high, write)
        notes.append(f"difference {write(d.value)}" + (f" ({between})" if between else ""))
    return Cell(ours, " · ".join(notes))
