"""Encoders side by side: 001 table 1 and figure 3; 002 tables 1 and 2, figures 1 to 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.audit.compare_models import ModelsResult, run_models
from pfungst.audit.config import listed
from pfungst.audit.result import Interval, Result, Variant
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.result import ProbeScores, SimilarityResult
from pfungst.data.imagenet_classes import plain, wnid_of
from pfungst.errors import ConfigError
from pfungst.papers import stand_ins
from pfungst.papers.made import Made, Numbers, Wish, singles
from pfungst.report import write
from pfungst.report.page import Block, Cell, Details, Table
from pfungst.report.write import build
from pfungst.suggest import suggest

SWEEP = (1, 2, 5, 10, 20)
MENDED = 5  # maps that the table prunes
MOST_HUMANS = ("barracouta", "coho", "tench", "sturgeon", "gar", "stingray")  # 002, note B
PRUNED, BOTTOM = "relu3", "rows=90-"  # of CLIP's ResNet-50, as published: where the logo is
_ORIGINAL = Variant(condition="original")
# What an encoder is called in the paper, by what its name contains; the first that fits.
_NAMES = {
    "pubmedclip": "PubMedCLIP",
    "clip": "CLIP",
    "rn50": "CLIP",
    "simclr": "SimCLR",
    "vissl": "SimCLR",
    "barlow": "Barlow Twins",
    "resnet": "Supervised",
}


def name_of(model: str) -> str:
    """The paper's name of an encoder, or its own."""
    return next((name for part, name in _NAMES.items() if part in model.lower()), model)


def called(models: Sequence[str]) -> list[str]:
    """The paper's names of encoders; two that it would call alike keep their own."""
    names = [name_of(model) for model in models]
    return [name if names.count(name) == 1 else own for name, own in zip(names, models, strict=True)]


def _encoders(result: Result, folder: Path) -> list[tuple[str, SimilarityResult]]:
    """The encoders of an audit by the paper's names, with their results."""
    found = singles(result, folder, SimilarityResult, "encoder")
    return list(zip(called([name for name, *_ in found]), (own for _, own, _ in found), strict=True))


def _options(wish: Wish, task: str) -> dict[str, Any]:
    """What is audited for one task: COVID-19, truck, fish, or the stand-in's digits."""
    seeds = 1 if wish.tiny else wish.seeds or 5
    if wish.stand_in and wish.data is None:
        models, tag = stand_ins.encoders(wish)
        options: dict[str, Any] = {
            "images": "synthetic",
            "condition": [f"logo:{tag},width=0.4,margin=1"],
            "groups": ["source"],
        }
        return (
            options
            | {"encoder": wish.models or models, "seeds": seeds, "seed": stand_ins.SEED}
            | ({"limit": 120, "explain": 6, "pairs": 1, "patches": 8} if wish.tiny else {})
        )
    root = wish.given() if not wish.stand_in else wish.data
    assert root is not None
    if wish.models is None:
        raise ConfigError(
            f"{wish.piece.id} needs encoders",
            "give --models, such as pubmedclip:FILE,vissl:FILE,barlowtwins:FILE or efficientnet-lite0",
        )
    common = {"encoder": wish.models, "seeds": seeds, "groups": ["none"], "size": wish.size}
    if task == "COVID-19":
        place = root / "covid" if (root / "covid").is_dir() else root
        groups = ["source", "view"] if wish.stand_in else ["source"]
        more = {"probe": "svm", "positive": "COVID-19", "keep_together": "patient", "groups": groups}
        return common | more | {"images": place}
    place = root / "imagenet" if (root / "imagenet").is_dir() else root
    common |= {"images": place, "category": task}
    if task == "truck" and "logo" in wish.more:
        common |= {"condition": [f"logo:{wish.more['logo']},width=0.4,margin=10"]}
    if task == "fish" and "people" in wish.more:
        common |= {"groups_file": wish.more["people"], "groups": ["human"]}
    return common


def tasks(wish: Wish) -> list[str]:
    """The tasks for which there are data."""
    if wish.stand_in:
        return ["digits"] if wish.data is None else ["COVID-19"]
    root = wish.given()
    found = ["COVID-19"] if (root / "covid").is_dir() else []
    found += ["truck", "fish"] if (root / "imagenet").is_dir() else []
    if not found:
        raise ConfigError(f"{root} holds neither covid nor imagenet", f"needed: {wish.piece.needs}")
    return found


def audit(wish: Wish, task: str, name: str = "", **options: Any) -> tuple[Result, Path]:
    """The audit of all encoders on one task."""
    folder = f"encoders-{task.lower()}{name}"
    return wish.audited(
        SimilarityConfig, partial(run_models, write=write), folder, **_options(wish, task) | options
    )


def blocks_of(folder: Path, result: Result, sections: Sequence[str]) -> list[Block]:
    """The blocks of some sections of an audit's own page; what its tables link to lies below its folder."""
    found = [block for s in build(folder, result).sections if s.id in sections for block in s.blocks]
    return [_linked(block, f"audits/{folder.name}") if isinstance(block, Table) else block for block in found]


def _linked(table: Table, place: str) -> Table:
    def moved(cell: Cell) -> Cell:
        return replace(cell, href=f"{place}/{cell.href}") if "/" in cell.href else cell

    groups = [
        replace(group, rows=[[moved(cell) for cell in row] for row in group.rows]) for group in table.groups
    ]
    return replace(table, groups=groups)


def _values(result: SimilarityResult, task: str) -> dict[str, Interval]:
    """Accuracy by subgroup under the names of the paper's columns; of groups rebalanced, as published."""
    before = "" if task == "digits" else f"{task} "
    found: dict[str, Interval] = {}

    def put(name: str, scores: ProbeScores) -> None:
        found[f"{before}{name}"] = scores.rebalanced if scores.column else scores.accuracy
        if scores.fpr is not None:
            found[f"{before}{name}, FPR"] = scores.fpr

    for s in result.scores:
        condition = str(s.variant).partition(":")[0]
        if s.column and s.variant == _ORIGINAL:
            put(s.group, s)
        elif not s.column:
            put(condition, s)
    return found


def _paper(wish: Wish, task_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The paper's numbers of these tasks; beside a stand-in those of the truck task, under its columns."""
    if "digits" not in task_names:
        keep = {
            row: {c: v for c, v in values.items() if c.startswith(tuple(task_names))}
            for row, values in wish.piece.numbers.items()
        }
        return {row: values for row, values in keep.items() if values}
    found: dict[str, dict[str, float]] = {}
    for row, values in wish.piece.numbers.items():
        truck = {c.removeprefix("truck "): v for c, v in values.items() if c.startswith("truck ")}
        found |= {row: truck} if truck else {}
    return found


def table1(wish: Wish) -> Made:
    """Accuracy by encoder and subgroup."""
    ours: dict[str, dict[str, Interval]] = {}
    blocks: list[Block] = []
    folders = []
    for task in tasks(wish):
        result, folder = audit(wish, task)
        folders.append(folder)
        for name, own in _encoders(result, folder):
            ours.setdefault(name, {}).update(_values(own, task))
        if isinstance(result, ModelsResult):
            blocks += blocks_of(folder, result, ["models"])
        if wish.piece.id == "001-table1":
            row, pruned = _pruned(wish, task, 2 if wish.tiny else MENDED)
            if pruned is not None:
                ours["CLIP, mended"] = row
                folders.append(pruned)
    return Made([Numbers.of("Accuracy", ours, _paper(wish, tasks(wish)))], blocks, audits=folders)


def sources(wish: Wish) -> Made:
    """Accuracy and false positives by the source of the images."""
    task = tasks(wish)[0]
    result, folder = audit(wish, task)
    _, own, _ = singles(result, folder, SimilarityResult, "encoder")[0]
    ours: dict[str, dict[str, Interval]] = {"accuracy": {}, "FPR": {}}
    for s in own.scores:
        if s.variant == _ORIGINAL:
            ours["accuracy"][s.group or "original"] = s.rebalanced if s.column else s.accuracy
            if s.fpr is not None:
                ours["FPR"][s.group or "original"] = s.fpr
    return Made([Numbers.of("Accuracy by source", ours, wish.piece.numbers)], audits=[folder])


def sweep(wish: Wish) -> Made:
    """Accuracy on test images for every number of pruned maps, and on every subset."""
    made = table1(wish)
    ours: dict[str, dict[str, Interval]] = {}
    for cell in made.numbers[0].cells:
        if cell.ours is not None:
            ours.setdefault(cell.row, {})[cell.column] = cell.ours
    folders = list(made.audits)
    for task in tasks(wish):
        for k in SWEEP[:2] if wish.tiny else SWEEP:
            row, folder = _pruned(wish, task, k)
            ours |= {f"CLIP, {k} pruned": row} if row else {}
            folders += [folder] if folder else []
    return Made([Numbers.of("Accuracy", ours, _paper(wish, tasks(wish)))], made.blocks, audits=folders)


def _pruned(wish: Wish, task: str, k: int) -> tuple[dict[str, Interval], Path | None]:
    """Accuracy of the first encoder without the k maps that a logo moves most, by condition."""
    options = _options(wish, task)
    if not options.get("condition"):
        return {}, None
    first = listed(options["encoder"])[0]  # with its checkpoint
    wanted = f"prune:stage1.relu1:{k}" if task == "digits" else f"prune:{PRUNED}:{k}:{BOTTOM}"
    result, folder = audit(wish, task, f"-pruned-{k}", encoder=first, mitigate=wanted, sweep=[k])
    assert isinstance(result, SimilarityResult)
    before = "" if task == "digits" else f"{task} "
    scores = [s for s in result.scores if s.variant.mitigated and not s.column]
    return {before + s.variant.condition.partition(":")[0]: s.accuracy for s in scores}, folder


def _pictures(wish: Wish, ids: Sequence[str], whole: Sequence[str] = ()) -> Made:
    """Sections of the pages: of every encoder, or of all together."""
    blocks: list[Block] = []
    folders = []
    for task in tasks(wish):
        result, folder = audit(wish, task)
        folders.append(folder)
        if whole and isinstance(result, ModelsResult):
            blocks += blocks_of(folder, result, whole)
            continue
        for name, own, place in singles(result, folder, SimilarityResult, "encoder"):
            found = blocks_of(place, own, ids)
            if found:
                blocks.append(Details(title=f"{task}: {name}", blocks=found, open=len(blocks) < 2))
    return Made(blocks=blocks, audits=folders)


def pairs(wish: Wish) -> Made:
    """The same pairs explained by BiLRP in every encoder."""
    return _pictures(wish, ["pairs"], ["pairs"])


def maps(wish: Wish) -> Made:
    """t-SNE of the representations by label and group."""
    return _pictures(wish, ["map"])


def pairs_and_maps(wish: Wish) -> Made:
    """BiLRP of pairs, and t-SNE of the representations."""
    return _pictures(wish, ["pairs", "map"])


def share_into(matrix: Sequence[Sequence[int]], classes: Sequence[str], named: Sequence[str]) -> float:
    """Share of the errors of a confusion matrix (true, predicted) that fall into the named classes.

    Raises:
        ConfigError: one of them does not exist.
    """
    index = _indices(classes)
    if missing := [name for name in named if plain(name) not in index]:
        raise ConfigError(f"no class is called {missing[0]!r}", suggest(missing[0], classes, "classes"))
    wrong = np.array(matrix)
    np.fill_diagonal(wrong, 0)
    return float(wrong[:, sorted({index[plain(name)] for name in named})].sum() / wrong.sum())


def _indices(classes: Sequence[str]) -> dict[str, int]:
    """Where classes stand, by their names with and without the WordNet id before them."""
    bare = [name.partition(" ")[2] if wnid_of(name) else name for name in classes]
    return {plain(name): i for names in (bare, classes) for i, name in enumerate(names)}


def errors(wish: Wish) -> Made:
    """Confusion matrices; shares of the errors into one class and into those with most humans."""
    made = _pictures(wish, ["errors"])
    ours: dict[str, dict[str, float]] = {}
    for task in tasks(wish):
        for name, own in _encoders(*audit(wish, task)):
            row = ours.setdefault(f"{name}, {task}", {})
            wanted, known = wish.classes or MOST_HUMANS, _indices(own.classes)
            named = list(wanted) if any(plain(name) in known for name in wanted) else []
            for variant in own.variants:
                c = own.confusion[variant.key]
                under = variant.condition.partition(":")[0] + ", mended" * variant.mitigated
                if c.errors:
                    row[f"into one class, {under}"] = c.share
                    if named:
                        row[f"into the named classes, {under}"] = share_into(c.matrix, own.classes, named)
    return Made([Numbers.of("Share of errors", ours, wish.piece.numbers)], made.blocks, audits=made.audits)


def heatmaps(wish: Wish) -> Made:
    """What the probe on every encoder reads in its images: relevance per image, and the mean over each
    subgroup."""
    from pfungst.papers.probe_maps import probe_maps

    blocks: list[Block] = []
    folders = []
    for task in tasks(wish):
        result, folder = audit(wish, task)
        folders.append(folder)
        for name, own, _ in singles(result, folder, SimilarityResult, "encoder"):
            title = f"{task}: {name}"
            blocks.append(Details(title=title, blocks=[probe_maps(own, title, wish.tiny)], open=not blocks))
    return Made(blocks=blocks, audits=folders)
