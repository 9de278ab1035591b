"""An audit's result on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from pfungst.audit.classifier_result import ClassifierResult
from pfungst.audit.result import AnomalyResult, Interval, Result

COLOURS = {"unfit": "red", "provenance": "red", "clever-hans": "red", "fragile": "yellow", "sound": "green"}
VARIANTS = {"original": "original", "deployed": "deployed", "mitigated": "deployed, mended"}


def print_summary(result: Result, console: Console | None = None) -> None:
    """The verdict, and the table of figures of the audits that have one."""
    console = console or Console(highlight=False)
    verdict = result.verdict
    console.print()
    if isinstance(result, AnomalyResult):
        console.print(_anomaly_table(result))
    if isinstance(result, ClassifierResult):
        console.print(_classifier_table(result))
    console.print(f"[bold {COLOURS[verdict.level]}]{verdict.level}[/]", end="  ")
    console.print(verdict.headline, style="bold", markup=False)
    for sentence in verdict.sentences:
        console.print(f"  {sentence}", markup=False)
    if result.skipped:
        console.print(f"  {len(result.skipped)} images were skipped.", style="yellow")


def _anomaly_table(result: AnomalyResult) -> Table:
    several = len(result.mean) > 1
    title = f"{result.original} → {result.deployed}"
    table = Table(title=title if several else f"{next(iter(result.mean))}: {title}", title_justify="left")
    table.add_column("category", no_wrap=True)
    if several:
        table.add_column("detector", no_wrap=True)
    table.add_column("images", no_wrap=True)
    for name in ("AUROC", "F1", "FNR", "FPR", "CH score"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(entry.category, entry.model, entry.variants) for entry in result.entries]
    if len({category for category, *_ in rows}) > 1:
        rows += [("mean", model, variants) for model, variants in result.mean.items()]
    for category, model, variants in rows:
        shown = [name for name in VARIANTS if name in variants]
        for name in shown:
            s = variants[name]
            names = (
                ([category, model] if several else [category]) if name == shown[0] else [""] * (1 + several)
            )
            hans = _plain(s.clever_hans) if s.clever_hans else "–"
            f1 = f"{_plain(s.f1)} {s.mark:<2}"
            cells = [VARIANTS[name], _plain(s.auroc), f1, _rate(s.fnr), _rate(s.fpr), hans]
            table.add_row(*names, *cells, end_section=name == shown[-1])
    return table


def _classifier_table(result: ClassifierResult, most: int = 12) -> Table:
    """The classes that matter most: those with spurious images first, then the most suspicious."""
    order = sorted(
        result.entries,
        key=lambda e: (
            e.scores.triggered.value if e.scores else -1.0,
            max((c.harm for c in e.components), default=0),
        ),
        reverse=True,
    )
    more = f", {len(order) - most} more in the report" if len(order) > most else ""
    table = Table(title=f"{result.model}: as it is → with SpuFix{more}", title_justify="left")
    table.add_column("class", no_wrap=True)
    table.add_column("component (harm)", no_wrap=True)
    for name in ("accuracy", "triggered", "AUC"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in order[:most]:
        top = entry.components[0] if entry.components else None
        first, second = entry.scores, entry.scores_fixed
        table.add_row(
            f"{entry.index} {entry.name}",
            f"{top.component} ({top.harm:.2f})" if top else "–",
            _arrow(entry.accuracy, entry.accuracy_fixed, _rate),
            _arrow(first.triggered if first else None, second.triggered if second else None, _rate),
            _arrow(first.auc if first else None, second.auc if second else None, _plain),
        )
    return table


def _arrow(before: Interval | None, after: Interval | None, write: Callable[[Interval], str]) -> str:
    if before is None:
        return "–"
    return write(before) if after is None else f"{write(before)} → {write(after)}"


def _plain(interval: Interval) -> str:
    return f"{interval.value:.2f}"


def _rate(interval: Interval) -> str:
    return f"{interval.value:.0%}"
