"""An audit's result on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pfungst.audit.anomaly.result import AnomalyResult, Scored
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.result import Interval, Result
from pfungst.audit.similarity.result import SimilarityResult, named
from pfungst.audit.whatnext import commands

COLOURS = {
    "too-few": "yellow",
    "unfit": "red",
    "provenance": "red",
    "clever-hans": "red",
    "fragile": "yellow",
    "not-established": "yellow",
    "sound": "green",
}


def print_summary(result: Result, console: Console | None = None) -> None:
    """The verdict, and the table of figures of the audits that have one."""
    console = console or Console(highlight=False, emoji=False, markup=False)
    verdict = result.verdict
    console.print()
    if isinstance(result, AnomalyResult):
        console.print(_anomaly_table(result))
    if isinstance(result, SimilarityResult):
        console.print(_texts_table(result) if result.modality == "texts" else _similarity_table(result))
    if isinstance(result, ClassifierResult):
        console.print(_classifier_table(result))
    console.print(verdict.level, style=f"bold {COLOURS[verdict.level]}", end="  ")
    console.print(verdict.headline, style="bold")
    for sentence in verdict.shown:
        console.print(f"  {sentence}")
    if verdict.folded:
        console.print(f"  … and {len(verdict.folded)} more in the report.")
    if count := len(result.skipped):
        said = "1 image was skipped." if count == 1 else f"{count} images were skipped."
        console.print(f"  {said}", style="yellow")
    console.print("What next:")
    for command in commands(result):
        console.print(f"  {command}", soft_wrap=True)


def _anomaly_table(result: AnomalyResult) -> Table:
    several = len(result.mean) > 1
    title = f"{result.original} → {result.deployed}"
    title = title if several else f"{next(iter(result.mean))}: {title}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("category", overflow="fold")
    if several:
        table.add_column("detector", overflow="fold")
    table.add_column("images", no_wrap=True)
    for name in ("AUROC", "F1", "FNR", "FPR", "CH score"):
        table.add_column(name, justify="right", no_wrap=True)
    rows: list[tuple[str, str, Scored]] = [(entry.category, entry.model, entry) for entry in result.entries]
    if len({category for category, *_ in rows}) > 1:
        rows += [("mean", model, mean) for model, mean in result.mean.items()]
    for category, model, scored in rows:
        names = [category, model] if several else [category]
        shown = [s for s in (scored.original, scored.deployed, scored.mended) if s is not None]
        for s in shown:
            cells = [
                str(s.variant),
                _plain(s.auroc),
                f"{_plain(s.f1)} {s.mark:<2}",
                _rate(s.fnr),
                _rate(s.fpr),
            ]
            cells.append(_plain(s.clever_hans) if s.clever_hans else "–")
            table.add_row(*names, *cells, end_section=s is shown[-1])
            names = [""] * len(names)
    return table


def _similarity_table(result: SimilarityResult) -> Table:
    """Accuracies of the probe: a row per group, a column per variant; a group's mark is that of its fall."""
    table = Table(title=f"{result.encoder}: class-balanced accuracy of the probe", title_justify="left")
    table.add_column("images")
    table.add_column("n", justify="right")
    for variant in result.variants:
        table.add_column(str(variant), justify="right")
    binary = any(s.fpr is not None for s in result.scores)
    if binary:
        table.add_column("FPR", justify="right")
    places = list(dict.fromkeys((s.column, s.group) for s in result.scores))
    marks = {
        (g.column, g.group): (g.falls[0].mark if g.falls else "") if g.whole else "?"
        for g in result.subgroups
    }
    for number, (column, group) in enumerate(places):
        found = {s.variant: s for s in result.scores if (s.column, s.group) == (column, group)}
        first = found[result.variants[0]]
        shown = [found[v].mark if v != first.variant else marks.get((column, group), "") for v in found]
        cells = [f"{_plain(s.accuracy)} {mark:<2}" for s, mark in zip(found.values(), shown, strict=True)]
        if binary:
            cells.append(_rate(first.fpr) if first.fpr else "–")
        last = number + 1 == len(places) or places[number + 1][0] != column
        table.add_row(named(column, group) or "all", str(first.n), *cells, end_section=last)
    if marks:
        told = "↓ of a group: of a class or class-balanced, against the other images"
        table.caption = f"{told}; ?: too few to compare"
    return table


def _texts_table(result: SimilarityResult) -> Table:
    table = Table(title=f"{result.encoder}: sentence pairs", title_justify="left")
    table.add_column("relation")
    for name in ("pairs", "similarity", "on equal words", "on markers", "biases"):
        table.add_column(name, justify="right")
    for r in result.relations:
        shares = [f"{v:.0%}" for v in (r.shared_tokens, r.special_tokens, r.bias_share)]
        table.add_row(r.name, str(r.n), _plain(r.similarity), *shares)
    return table


def _classifier_table(result: ClassifierResult, most: int = 12) -> Table:
    """The classes that matter most, those with spurious images first; and conditions."""
    order = sorted(result.entries, key=lambda e: e.seriousness, reverse=True)
    more = f", {len(order) - most} more in the report" if len(order) > most else ""
    fixed = result.chosen_by != "nothing"
    change = ": as it is → with SpuFix" if fixed else ""
    table = Table(title=f"{result.model}{change}{more}", title_justify="left")
    table.add_column("class", overflow="fold")
    table.add_column("first component", overflow="fold")
    table.add_column("accuracy", justify="right", no_wrap=True)
    scored = any(e.under().spurious for e in result.entries)
    for name in ("triggered", "AUC") if scored else ():
        table.add_column(name, justify="right", no_wrap=True)
    for entry in order[:most]:
        top = entry.components[0] if entry.components else None
        first, second = entry.under(), entry.under(mitigated=True)
        one, two = first.spurious, second.spurious
        cells = [
            entry.name,
            f"{top.component}: {top.tested.word if top.tested else 'not tested'}" if top else "–",
        ]
        cells.append(_arrow(first.accuracy, second.accuracy if fixed else None, _rate))
        if scored:
            cells.append(_arrow(one.triggered if one else None, two.triggered if two else None, _rate))
            cells.append(_arrow(one.auc if one else None, two.auc if two else None, _plain))
        table.add_row(*cells, end_section=entry is order[:most][-1])
    for name in list(result.conditions)[1:]:
        before, after = result.under(name), result.under(name, mitigated=True)
        gain = before.gains[0].name if before.gains else "–"
        table.add_row(
            f"all, {name}", f"→ {gain}", _arrow(before.accuracy, after.accuracy if fixed else None, _rate)
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
