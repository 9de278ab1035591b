"""The page of an audit of several models: one table, figures, and the same pairs in every model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pfungst.audit.compare_models import ModelsResult, Row
from pfungst.audit.result import Interval
from pfungst.files import read
from pfungst.report import page as ui
from pfungst.report import parts, plots, text
from pfungst.report.pairs import caption_of, image_pair

_LEGEND = [parts.key("as it is", "original"), parts.key("with SpuFix", "mitigated")]
_CLASSES = 40  # rows of a dot plot


@ui.page_of(ModelsResult)
def page(result: ModelsResult, folder: Path) -> ui.Page:
    """The page of an audit of several models."""
    return ui.Page.of(
        result,
        facts=[("Models", str(len(result.rows)))],
        sections=[
            ui.Section("models", "The models side by side", _tables(result)),
            _by_class(result),
            _grid(result, folder),
            parts.skipped(result),
            parts.method(result, heading="Worst model"),
        ],
        stats=[_best(result, column) for column in result.columns[:2]],
    )


def _best(result: ModelsResult, column: str) -> ui.Stat:
    known = [(row.name, row.values[column].value) for row in result.rows if column in row.values]
    ordered = sorted(known, key=lambda pair: pair[1])
    steps = [ui.Step(name, text.ratio(value)) for name, value in (ordered[0], ordered[-1])]
    return ui.Stat(_heading(column), steps, "Lowest and highest.")


def _heading(column: str) -> str:
    return column if column[1:2].isupper() else column[:1].upper() + column[1:]  # mAUC


def _tables(result: ModelsResult) -> list[ui.Block]:
    meanings = parts.marks("accuracy", "pruning")

    def measured(row: Row, column: str) -> ui.Cell:
        value, mark = row.values.get(column), row.marks.get(column, "")
        return parts.cell(value, mark=mark, meanings=meanings, missing="not measured for this model")

    model = lambda row: ui.Cell(row.name, row.level, title=row.headline, href=f"{row.folder}/report.html")
    columns = [ui.words("Model", "", model)]
    columns += [ui.Column(_heading(c), "", partial(measured, column=c)) for c in result.columns]
    caption = "The word below a model is its verdict. "
    if result.of == "similarity":
        caption += (
            "Class-balanced accuracy of the probe; of groups with the weight of each class capped at 10. "
        )
        caption += parts.legend(meanings)
    blocks: list[ui.Block] = [ui.Table.of(columns, result.rows, "Models side by side", caption)]
    if result.of == "classifier" and all({"accuracy", "mAUC"} <= set(row.values) for row in result.rows):
        blocks.append(_scatter(result))
    return blocks


def _scatter(result: ModelsResult) -> ui.Figure:
    points, arrows = [], []
    for row in result.rows:
        v = row.values
        points.append(plots.Point(row.name, v["accuracy"].value, v["mAUC"].value))
        if {"accuracy, SpuFix", "mAUC, SpuFix"} <= set(v):
            points.append(plots.Point("", v["accuracy, SpuFix"].value, v["mAUC, SpuFix"].value))
            arrows.append((len(points) - 2, len(points) - 1))
    return ui.Figure(
        title="Spurious score against accuracy",
        picture=plots.scatter(
            points, "accuracy →", "mAUC →", "mAUC against accuracy of every model", arrows, ceiling=1.0
        ),
        legend=_LEGEND,
        caption="Higher mAUC: spurious features alone are taken for the class less often.",
    )


def _by_class(result: ModelsResult) -> ui.Section | None:
    if not result.classes:
        return None
    shown = sorted(result.classes, key=lambda c: min(i.value for i in c.auc.values()))[:_CLASSES]

    def series(name: str) -> dict[str, list[Interval | None]]:
        of = {"original": [c.auc.get(name) for c in shown], "mitigated": [c.fixed.get(name) for c in shown]}
        return {k: list(v) for k, v in of.items()}

    panels = [plots.Panel(text.shorten(row.name, 30), series(row.name)) for row in result.rows]
    label = "Spurious score of every class and model"
    figure = ui.Figure(
        title="Spurious score by class",
        picture=plots.dots([c.name for c in shown], panels, label),
        narrow=plots.dots([c.name for c in shown], panels, label, width=400),
        legend=_LEGEND,
        caption=f"ROC AUC of the class's probability, its images against images with only the feature. Of "
        f"{text.plural(len(result.classes), 'class', 'classes')} the {len(shown)} lowest.",
    )
    return ui.Section("classes", "Class by class", [figure])


def _grid(result: ModelsResult, folder: Path) -> ui.Section | None:
    if not result.pairs:
        return None
    arrays: dict[str, np.ndarray] = read(folder / result.arrays, "run the audit again")
    blocks: list[ui.Block] = []
    metric = result.config.get("metric", "cosine")
    for row in result.rows:
        pictures = [
            image_pair(
                arrays[pair.arrays[row.name]],
                (arrays[f"picture_{i}_0"], arrays[f"picture_{i}_1"]),
                pair.grids[row.name],
                pair.similarity[row.name],
                title=f"{row.name}: {pair.title}",
                sides=pair.ids,
                note=caption_of(pair.similarity[row.name], pair.bias_share[row.name], metric),
            )
            for i, pair in enumerate(result.pairs)
        ]
        blocks.append(ui.Details(row.name, [ui.Columns(pictures)], open=True, note=row.headline))
    lead = (
        "The pairs that the first model finds most alike within a class, explained for every model. Red "
        "lines join parts that raise the similarity, blue ones lower it."
    )
    return ui.Section("pairs", "The same pairs in every model", blocks, lead)
