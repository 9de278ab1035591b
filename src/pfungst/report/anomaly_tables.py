"""How the scores of an anomaly audit are written, in tables and in figures of one line."""

from __future__ import annotations

from pfungst.audit.anomaly.result import Scored, Scores
from pfungst.report import parts, text
from pfungst.report.page import Cell, Column, Rows, Step, Table

MARKS = parts.marks("F1")
# Measures of the tables: attribute, name, how it is written, direction.
MEASURES = (
    ("f1", "F1", text.ratio, "higher is better"),
    ("f1_balanced", "Balanced F1", text.ratio, "higher is better"),
    ("auroc", "AUROC", text.ratio, "higher is better"),
    ("fnr", "FNR", text.percent, "defects missed"),
    ("fpr", "FPR", text.percent, "false alarms"),
    ("clever_hans", "Clever Hans score", text.ratio, "lower is better"),
)
HEADS = [Column("Images", numeric=False), *[Column(name, hint) for _, name, _, hint in MEASURES]]


def shown(scored: Scored) -> list[Scores]:
    """Original, deployed and mended, as far as there are."""
    return [s for s in (scored.original, scored.deployed, scored.mended) if s is not None]


def row(scores: Scores) -> list[Cell]:
    """One row of a table of results: the variant, then its measures."""
    cells = [Cell(parts.label(scores.variant), tone=parts.tone(scores.variant))]
    for measure, _, write, _ in MEASURES:
        mark = scores.mark if measure == "f1" else ""
        missing = "needs masks of the defects"
        cells.append(parts.cell(getattr(scores, measure), write, mark, MARKS, missing=missing))
    return cells


def group(label: str, scored: Scored, note: str = "", href: str = "", strong: bool = False) -> Rows:
    """The rows of one detector or category."""
    return Rows([row(s) for s in shown(scored)], label, note, href, strong)


def table(groups: list[Rows], name: str, lead: str = "") -> Table:
    """The table of results, with what its marks say."""
    return Table(columns=HEADS, groups=groups, name=name, caption=lead + parts.legend(MARKS))


def steps(scored: Scored, measure: str) -> list[Step]:
    """original → deployed → mended of one measure."""
    write = text.percent if measure in ("fnr", "fpr") else text.ratio
    found = []
    for s in shown(scored):
        mark, name = s.mark if measure == "f1" else "", "mended" if s.variant.mitigated else ""
        found.append(parts.step(s.variant, getattr(s, measure), write, mark, MARKS, name))
    return found
