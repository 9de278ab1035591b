"""Sections that close the page of every audit: what was left out, and what gates can hold to a limit."""

from __future__ import annotations

from pfungst.audit.result import Result
from pfungst.report import text
from pfungst.report.page import Cell, Column, Rows, Section, Table


def skipped(result: Result) -> Section | None:
    """Inputs that were left out, with the reason; None where there are none."""
    if not result.skipped:
        return None
    table = Table(
        columns=[Column("Image", numeric=False), Column("Why", numeric=False)],
        groups=[Rows([[Cell(s.id), Cell(s.reason)] for s in result.skipped])],
        name="Images left out",
        caption=f"{text.plural(len(result.skipped), 'image')} could not be used and count nowhere on this page.",
    )
    return Section(id="skipped", title="Images left out", blocks=[table])


WORST = "Each gate takes the worst value over all that was audited; pfungst check compares it with a limit."


def gates(result: Result, heading: str = "Worst value", caption: str = WORST) -> Table | None:
    """The metrics of ``pfungst check``; None where there are none."""
    if not result.metrics:
        return None
    rows = [
        [
            Cell(name, f"{metric.better} is better"),
            Cell(f"{metric.value:.3f}".replace("-", "−")),
            Cell(metric.where),
            Cell(metric.meaning),
        ]
        for name, metric in result.metrics.items()
    ]
    heads = [Column("Gate", numeric=False), Column(heading)]
    heads += [Column("Where", numeric=False), Column("Meaning", numeric=False)]
    return Table(
        columns=heads,
        groups=[Rows(rows)],
        name="Values that pfungst check can hold to a limit",
        caption=caption,
    )
