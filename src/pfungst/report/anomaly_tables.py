"""How the scores of an anomaly audit are named and written, in tables and in figures of one line."""

from __future__ import annotations

from pfungst.audit.anomaly.result import Scores
from pfungst.audit.result import Interval
from pfungst.report import text
from pfungst.report.page import Cell, Step

VARIANT_KEYS = {
    "original": "Original",
    "deployed": "Deployed",
    "mitigated_original": "Mitigated, original",
    "mitigated": "Mitigated",
}
MARK_MEANINGS = {
    "↓": "↓ F1 fell by 0.03 or more",
    "↓↓": "↓↓ by 0.06 or more",
    "↑": "↑ mitigation raised it by 0.03 or more",
}

# Measures of the tables: attribute, name, unit written, direction.
MEASURES = (
    ("f1", "F1", text.ratio, "higher is better"),
    ("f1_balanced", "Balanced F1", text.ratio, "higher is better"),
    ("auroc", "AUROC", text.ratio, "higher is better"),
    ("fnr", "FNR", text.percent, "defects missed"),
    ("fpr", "FPR", text.percent, "false alarms"),
    ("clever_hans", "Clever Hans score", text.ratio, "lower is better"),
)


def row(name: str, scores: Scores) -> list[Cell]:
    """One row of a table of results: the variant, then its measures."""
    tone = name.split("_")[0]
    cells = [Cell(VARIANT_KEYS[name], tone=tone)]  # type: ignore[arg-type]
    for measure, _, write, _ in MEASURES:
        cell: Interval | None = getattr(scores, measure)
        if cell is None:
            cells.append(Cell("–", title="needs masks of the defects"))
            continue
        mark = scores.mark if measure == "f1" else ""
        cells.append(
            Cell(
                write(cell.value),
                text.interval(cell.low, cell.high, write),
                mark,
                MARK_MEANINGS.get(mark, ""),
                tone="mitigated" if mark == "↑" else "",
            )
        )
    return cells


def steps(variants: dict[str, Scores], measure: str) -> list[Step]:
    """original → deployed → mitigated of one measure."""
    write = text.percent if measure in ("fnr", "fpr") else text.ratio
    found = []
    for name in ("original", "deployed", "mitigated"):
        cell = getattr(variants[name], measure) if name in variants else None
        if cell is not None:
            mark = variants[name].mark if measure == "f1" else ""
            meaning = MARK_MEANINGS.get(mark, "")
            found.append(Step(VARIANT_KEYS[name].lower(), write(cell.value), name, mark, meaning))
    return found
