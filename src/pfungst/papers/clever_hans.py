"""Detectors against their explanations: 004 figures 2, 3, 4 and 6, and the choice that the papers ask for."""

from __future__ import annotations

from pathlib import Path

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.result import AnomalyResult
from pfungst.audit.result import Interval
from pfungst.datasets.digits import CORRUPTIONS
from pfungst.papers import stand_ins
from pfungst.papers.made import Made, Numbers, Wish, mean_of
from pfungst.report import parts, plots, text
from pfungst.report.anomaly_entry import entry_blocks
from pfungst.report.page import Block, Cell, Column, Details, Figure, Rows, Table, words

_TOP = 3


def audit(wish: Wish) -> tuple[AnomalyResult, Path, dict[str, str]]:
    """KDE, autoencoder, deep one-class and their bag on images as they are; also the specification of
    each."""
    from pfungst.audit.anomaly.run import run

    data = stand_ins.digits(wish) if wish.stand_in else wish.given()
    small = wish.stand_in or not any((Path(data) / c).is_dir() for c in ("bottle", "wood"))
    deep = "one-class:backbone=letters" if small else wish.models or "one-class:backbone=vgg16"
    if small and "letters" in wish.more:
        deep += f",checkpoint={stand_ins.letters(wish)}"
    auto, size, seeds = "autoencoder", 28 if small else 224, wish.seeds or 1
    if wish.tiny:
        deep, auto = "one-class:backbone=small:2", "autoencoder:epochs=1"
    named = {"KDE": "kde", "autoencoder": auto, "deep one-class": deep, "bag": f"bag:kde+{auto}+{deep}"}
    return (
        *wish.audited(
            AnomalyConfig,
            run,
            "clever-hans",
            data=data,
            category=list(wish.classes),
            model=list(named.values()),
            original="opencv-nearest",
            deployed="pillow-bilinear",
            mitigate="none",
            protocol="published",
            groups=["none"],
            size=size,
            seeds=seeds,
        ),
        named,
    )


def _table(wish: Wish, result: AnomalyResult, named: dict[str, str], measure: str) -> Numbers:
    ours: dict[str, dict[str, Interval]] = {}
    for name, spec in named.items():
        for e in result.entries:
            value = getattr(e.original, measure)
            if e.model == spec and value is not None:
                ours.setdefault(e.category, {})[name] = value
    digits = set(ours) <= set(CORRUPTIONS)
    paper = {k: v for k, v in wish.piece.numbers.items() if k in ours and (k in CORRUPTIONS) == digits}
    for name in named:
        known = [row[name] for row in ours.values() if name in row]
        if len(known) > 1:
            ours.setdefault("mean", {})[name] = mean_of(known)
    title = {"auroc": "AUROC", "clever_hans": "Clever Hans score"}[measure]
    return Numbers.of(title, ours, paper)


def _picture(table: Numbers, axis: str) -> Figure:
    """A row a class, a panel a detector, the paper's value beside ours."""
    rows = [row for row in table.rows if row != "mean"]
    known = [
        v for c in table.cells if c.ours is not None for v in (c.ours.value, c.ours.low) if v is not None
    ]
    span = (min([0.0, *known]), 1.0)

    def panel(name: str) -> plots.Panel:
        cells = [table.at(row, name) for row in rows]
        theirs = [None if c is None or c.paper is None else Interval(value=c.paper) for c in cells]
        return plots.Panel(
            name, {"original": [None if c is None else c.ours for c in cells], "deployed": theirs}, span=span
        )

    panels, label = [panel(name) for name in table.columns], f"{axis} by class and detector"
    return Figure(
        title=label,
        picture=plots.dots(rows, panels, label),
        narrow=plots.dots(rows, panels, label, width=344),
        legend=[parts.key("ours", "original"), parts.key("the paper's", "deployed")],
        caption=f"Horizontal: {axis}. Lines: 95 % intervals of ours.",
    )


def roc(wish: Wish) -> Made:
    """AUROC by class and detector."""
    result, folder, named = audit(wish)
    table = _table(wish, result, named, "auroc")
    return Made([table], [_picture(table, "AUROC")], _notes(wish), [folder])


def top(wish: Wish) -> Made:
    """The classes of highest Clever Hans score, by detector."""
    result, folder, named = audit(wish)
    table = _table(wish, result, named, "clever_hans")
    groups = []
    for name in named:
        cells = [c for c in table.cells if c.column == name and c.row != "mean"]
        ours = sorted(((c.row, c.ours) for c in cells if c.ours is not None), key=lambda of: -of[1].value)
        theirs = sorted(
            ((c.row, Interval(value=c.paper)) for c in cells if c.paper is not None),
            key=lambda of: -of[1].value,
        )
        lines = [[Cell(by), *_ranked(found)] for by, found in (("ours", ours), ("paper", theirs)) if found]
        groups.append(Rows(lines, name))
    best = Table(
        columns=[Column("", numeric=False), *(words(label) for label in ("highest", "second", "third"))],
        groups=groups,
        name="The three highest",
        caption="The classes of highest Clever Hans score of each detector, among those measured here.",
    )
    return Made([table], [best, _picture(table, "Clever Hans score")], _notes(wish), [folder])


def _ranked(found: list[tuple[str, Interval]]) -> list[Cell]:
    shown = [
        Cell(
            row, text.ratio(v.value) + f" ({text.interval(v.low, v.high, text.ratio)})" * (v.low is not None)
        )
        for row, v in found[:_TOP]
    ]
    return shown + [Cell("")] * (_TOP - len(shown))


def examples(wish: Wish) -> Made:
    """An image of one of these classes for each detector: image, mask, heatmap."""
    result, folder, named = audit(wish)
    blocks: list[Block] = []
    for name, spec in named.items():
        entries = [e for e in result.entries if e.model == spec and e.original.clever_hans is not None]
        if entries:
            worst = max(
                entries, key=lambda e: e.original.clever_hans.value if e.original.clever_hans else 0.0
            )
            blocks.append(
                Details(
                    title=f"{name}: {worst.category}",
                    blocks=entry_blocks(worst, folder, 224),
                    open=not blocks,
                )
            )
    return Made([_table(wish, result, named, "clever_hans")], blocks, _notes(wish), [folder])


def bag(wish: Wish) -> Made:
    """AUROC against Clever Hans score, means over the classes; and which detector to take for both."""
    from pfungst.measure.choice import choose_detector

    result, folder, named = audit(wish)
    points, ours, both = [], {}, {}
    for name, spec in named.items():
        entries = [e for e in result.entries if e.model == spec]
        auroc = mean_of([e.original.auroc for e in entries])
        hans = mean_of([e.original.clever_hans for e in entries if e.original.clever_hans is not None])
        lost = sum(e.exposure.lost_in_deployment for e in entries if e.exposure) / len(entries)
        both[name] = (auroc.value, max(hans.value, 0.0), lost)
        ours[name] = {"AUROC": auroc, "Clever Hans score": hans, "lost in deployment": Interval(value=lost)}
        points.append(plots.Point(name, hans.value, auroc.value))
    choice = choose_detector(both)
    for name, (value, rank) in choice.items():
        ours[name] |= {"criterion": Interval(value=value), "rank": Interval(value=float(rank))}
    axes = ("Clever Hans score  (lower is better)  →", "AUROC  →")
    figure = Figure(
        title="Detecting well against detecting for the right reason",
        picture=plots.scatter(points, *axes, label="AUROC against the Clever Hans score", ceiling=1),
        caption="Means over the classes. Upper left is where a detector should be.",
    )
    caption = (
        "Criterion: AUROC less half of the exposure, the larger of Clever Hans score and share lost in "
        "deployment; the highest is taken. See pfungst.measure.choice."
    )
    return Made(
        [Numbers.of("Means over classes", ours, {}, caption=caption, counts=["rank"])],
        [figure],
        _notes(wish),
        [folder],
    )


def _notes(wish: Wish) -> list[str]:
    if not wish.stand_in:
        return []
    return [
        "The corruptions have the names and kinds of MNIST-C's; their strengths are ours, so that AUROC and "
        "Clever Hans score of one corruption need not agree with the paper's."
    ]
