"""An audit's result on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pfungst.audit.result import AnomalyResult, Interval, Result, Scores

COLOURS = {"unfit": "red", "provenance": "red", "clever-hans": "red", "fragile": "yellow", "sound": "green"}
VARIANTS = {"original": "original", "deployed": "deployed", "mitigated": "mended, deployed"}


def print_summary(result: Result, console: Console | None = None) -> None:
    """The verdict, and the table of figures of the audits that have one."""
    console = console or Console(highlight=False)
    verdict = result.verdict
    console.print()
    if isinstance(result, AnomalyResult):
        console.print(_anomaly_table(result))
    console.print(f"[bold {COLOURS[verdict.level]}]{verdict.level}[/]", end="  ")
    console.print(verdict.headline, style="bold", markup=False)
    for sentence in verdict.sentences:
        console.print(f"  {sentence}", markup=False)
    if result.skipped:
        console.print(f"  {len(result.skipped)} images were skipped.", style="yellow")


def _anomaly_table(result: AnomalyResult) -> Table:
    table = Table(title=f"{result.original} → {result.deployed}", title_justify="left")
    table.add_column("category")
    table.add_column("detector")
    table.add_column("condition")
    for name in ("AUROC", "F1", "F1 balanced", "FNR", "FPR", "Clever Hans"):
        table.add_column(name, justify="right")
    for entry in result.entries:
        _rows(table, entry.category, entry.model, entry.variants)
    if len({entry.category for entry in result.entries}) > 1:
        for model, variants in result.mean.items():
            _rows(table, "mean", model, variants)
    return table


def _rows(table: Table, category: str, model: str, variants: dict[str, Scores]) -> None:
    for name, title in VARIANTS.items():
        if name not in variants:
            continue
        s = variants[name]
        first = name == "original"
        cells = [
            _plain(s.auroc),
            f"{_plain(s.f1)} {s.mark:<2}".rstrip(),
            _plain(s.f1_balanced),
            _rate(s.fnr),
            _rate(s.fpr),
        ]
        hans = _plain(s.clever_hans) if s.clever_hans else "–"
        table.add_row(
            category if first else "",
            model if first else "",
            title,
            *cells,
            hans,
            end_section=name == list(variants)[-1],
        )


def _plain(interval: Interval) -> str:
    return f"{interval.value:.2f}"


def _rate(interval: Interval) -> str:
    return f"{interval.value:.0%}"
