"""How the scores of an anomaly audit are written, in tables and in figures of one line."""

from __future__ import annotations

from pfungst.audit.anomaly.result import Scored, Scores
from pfungst.report import parts, text
from pfungst.report.page import Cell, Column, Rows, Step, Table, words

MARKS = parts.marks("F1")


def _column(measure: str, name: str, hint: str, write: text.Writer = text.ratio) -> Column:
    """Of one measure; the mark is that of F1."""
    missing = "needs masks of the defects"

    def cell(scores: Scores) -> Cell:
        mark = scores.mark if measure == "f1" else ""
        return parts.cell(getattr(scores, measure), write, mark, MARKS, missing=missing)

    return Column(name, hint, cell)


COLUMNS = [
    words("Images", "", lambda s: Cell(parts.label(s.variant), tone=parts.tone(s.variant))),
    _column("f1", "F1", "higher is better"),
    _column("f1_balanced", "Balanced F1", "higher is better"),
    _column("auroc", "AUROC", "higher is better"),
    _column("fnr", "FNR", "defects missed", text.percent),
    _column("fpr", "FPR", "false alarms", text.percent),
    _column("clever_hans", "Clever Hans score", "lower is better"),
]


def shown(scored: Scored) -> list[Scores]:
    """Original, deployed and mended, as far as there are."""
    return [s for s in (scored.original, scored.deployed, scored.mended) if s is not None]


def group(label: str, scored: Scored, note: str = "", href: str = "", strong: bool = False) -> Rows:
    """The rows of one detector or category."""
    return Rows.of(COLUMNS, shown(scored), label, note=note, href=href, strong=strong)


def table(groups: list[Rows], name: str, lead: str = "") -> Table:
    """The table of results, with what its marks say."""
    return Table(columns=COLUMNS, groups=groups, name=name, caption=lead + parts.legend(MARKS))


def steps(scored: Scored, measure: str) -> list[Step]:
    """original → deployed → mended of one measure."""
    write = text.percent if measure in ("fnr", "fpr") else text.ratio
    found = []
    for s in shown(scored):
        mark, name = s.mark if measure == "f1" else "", "mended" if s.variant.mitigated else ""
        found.append(parts.step(s.variant, getattr(s, measure), write, mark, MARKS, name))
    return found
