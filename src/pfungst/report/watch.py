"""The page of a watch: what has shifted since the audit, and by how much."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.result import Result
from pfungst.audit.watch import Quantity, WatchResult
from pfungst.report import parts, text
from pfungst.report.page import Cell, Column, Page, Rows, Section, Stat, Step, Table, expect

_KINDS = {
    "answer": "What the model says",
    "relevance": "Where its relevance lies",
    "file": "What the files tell",
}


def page(result: Result, folder: Path) -> Page:
    """The page of a watch.

    Args:
        result: a :class:`WatchResult`. folder: not read.

    Raises:
        DataError: it is another kind of result.
    """
    result = expect(result, WatchResult)
    stats = [
        Stat("Quantities that shifted", [Step(f"of {len(result.quantities)}", str(len(result.shifted)))])
    ]
    if result.abnormal is not None:
        share, low, high = result.abnormal.value, result.abnormal.low or 0.0, result.abnormal.high or 0.0
        note = f"Above the audit's threshold; {text.percent(low)} to {text.percent(high)}."
        stats.append(Stat("New images taken for abnormal", [Step("share", text.percent(share))], note))
    return Page.of(
        result,
        facts=[
            ("Model", result.model),
            ("Mended", result.mended),
            ("Reference", f"{result.reference:,} images of the audit"),
            ("New images", f"{result.n:,}"),
        ],
        sections=[_table(result), parts.skipped(result), parts.method(result)],
        stats=stats,
        stats_note="",
    )


def _table(result: WatchResult) -> Section:
    groups = []
    for kind, label in _KINDS.items():
        rows = [_row(q) for q in sorted(result.quantities, key=lambda q: -q.distance) if q.kind == kind]
        if rows:
            groups.append(Rows(rows, label=label))
    table = Table(
        columns=[
            Column("Quantity", numeric=False),
            Column("Reference", "median, or a share"),
            Column("New"),
            Column("Distance", "of the distributions, 0 to 1"),
            Column("p", "corrected (Holm)"),
            Column("", numeric=False),
        ],
        groups=groups,
        name="Quantities watched",
        caption="Distance: the largest difference of the distribution functions; of words half the summed "
        "difference of their shares.",
    )
    return Section(id="quantities", title="What has shifted", blocks=[table])


def _row(q: Quantity) -> list[Cell]:
    note = ""
    if q.before is not None and q.after is not None:
        before, after = f"{q.before:.4g}", f"{q.after:.4g}"
    else:
        note, (a, b) = max(q.shares.items(), key=lambda kv: abs(kv[1][1] - kv[1][0]))
        before, after = text.percent(a), text.percent(b)
    return [
        Cell(q.name, note),
        Cell(before),
        Cell(after),
        Cell(f"{q.distance:.2f}"),
        Cell(f"{q.p:.2g}"),
        Cell("shifted", tone="bad") if q.shifted else Cell("no shift shown"),
    ]
