"""``pfungst reproduce``: one table or figure, its page and its numbers as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pfungst import __version__
from pfungst.files import write as write_text
from pfungst.papers.made import Made, Reproduction, Wish
from pfungst.papers.page import made_from, page
from pfungst.report.page import render


def reproduce(wish: Wish) -> tuple[Reproduction, Path]:
    """Make a table or figure.

    Returns:
        Its numbers, and the page; both are written into the output folder, as ID.json and ID.html.

    Raises:
        ConfigError: it cannot be made, or its data are not given.
    """
    made: Made = wish.piece.make()(wish)
    made = Made(made.numbers, made.blocks, made.notes, [Path(a).relative_to(wish.out) for a in made.audits])
    found = Reproduction(
        id=wish.piece.id,
        paper=wish.piece.paper,
        title=wish.piece.title,
        stand_in=made_from(wish) if wish.stand_in else "",
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        numbers=list(made.numbers),
        notes=list(made.notes),
    )
    wish.out.mkdir(parents=True, exist_ok=True)
    write_text(wish.out / f"{found.id}.json", found.model_dump_json(indent=1))
    target = wish.out / f"{found.id}.html"
    write_text(target, render(page(wish, made)))
    return found, target
