"""The page of a watch: what has shifted since the audit, and by how much."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.watch import Quantity, WatchResult
from pfungst.report import parts, text
from pfungst.report.page import Cell, Column, Page, Section, Stat, Step, Table, page_of, words

_KINDS = {
    "answer": "What the model says",
    "relevance": "Where its relevance lies",
    "file": "What the files tell",
}


@page_of(WatchResult)
def page(result: WatchResult, folder: Path) -> Page:
    """The page of a watch."""
    shifted = Step(f"of {len(result.quantities)}", str(len(result.shifted)))
    stats = [Stat("Quantities that shifted", [shifted])]
    if (share := result.abnormal) is not None:
        note = f"Above the audit's threshold; {text.percent(share.low)} to {text.percent(share.high)}."
        stats.append(Stat("New images taken for abnormal", [Step("share", text.percent(share.value))], note))
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
    )


def _table(result: WatchResult) -> Section:
    columns = [
        words("Quantity", "", lambda q: (q.name, _told(q)[2])),
        Column("Reference", "median, or a share", lambda q: _told(q)[0]),
        Column("New", "", lambda q: _told(q)[1]),
        Column("Distance", "of the distributions, 0 to 1", lambda q: f"{q.distance:.2f}"),
        Column("p", "corrected (Holm)", lambda q: f"{q.p:.2g}"),
        words("", "", lambda q: Cell("shifted", tone="bad") if q.shifted else "no shift shown"),
    ]
    ordered = sorted(result.quantities, key=lambda q: -q.distance)
    groups = {name: [q for q in ordered if q.kind == kind] for kind, name in _KINDS.items()}
    caption = (
        "Distance: the largest difference of the distribution functions; of words half the summed "
        "difference of their shares."
    )
    shown = {name: found for name, found in groups.items() if found}
    table = Table.grouped(columns, shown, "Quantities watched", caption)
    return Section("quantities", "What has shifted", [table])


def _told(q: Quantity) -> tuple[str, str, str]:
    """What it was, what it is, and, of words, which one."""
    if q.before is not None and q.after is not None:
        return f"{q.before:.4g}", f"{q.after:.4g}", ""
    word, (a, b) = max(q.shares.items(), key=lambda kv: abs(kv[1][1] - kv[1][0]))
    return text.percent(a), text.percent(b), word
