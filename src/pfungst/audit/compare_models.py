"""Several models in one audit: each in a folder of its own, and one result with all side by side.

This is the form of the papers' main tables (Kauffmann et al. 2025, table 1; Neuhaus et al. 2023, tables 1
and 2).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.config import check_file, listed, with_checkpoint
from pfungst.audit.images import colour, to_uint8
from pfungst.audit.machine import circumstances
from pfungst.audit.result import FILE, Interval, Level, Metric, Model, Result, Verdict, load, save
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.result import SimilarityResult, named
from pfungst.audit.workspace import Workspace, refuse_old_result, slug
from pfungst.encoders.specification import STORED, parse, short_name
from pfungst.errors import ConfigError
from pfungst.features import combined

Config = SimilarityConfig | ClassifierConfig
_GROUPS = 8  # columns of groups


class Row(Model):
    """One model: what its own audit says, and its values by column."""

    name: str
    spec: str
    folder: str = Field(description="of its own audit, relative to the result")
    level: Level
    headline: str
    values: dict[str, Interval]
    marks: dict[str, str] = Field({})


class ClassRow(Model):
    """One class: the spurious score (ROC AUC) of each model, as it is and with SpuFix."""

    name: str
    auc: dict[str, Interval]
    fixed: dict[str, Interval]


class GridPair(Model):
    """One pair of images as every model sees it; `arrays` names the matrix (P, Q) of each model."""

    title: str
    ids: tuple[str, str]
    arrays: dict[str, str]
    similarity: dict[str, float]
    bias_share: dict[str, float]
    grids: dict[str, tuple[list[int], list[int]]]


class ModelsResult(Result):
    """What an audit of several models writes. Arrays (npz): ``pair_I_M`` (P, Q) and ``picture_I_S`` (S, S, 3)
    uint8, I a pair, M a model, S a side."""

    kind: Literal["models"] = "models"
    of: Literal["similarity", "classifier"]
    columns: list[str]
    rows: list[Row]
    classes: list[ClassRow] = Field([])
    pairs: list[GridPair] = Field([])
    arrays: str = ""


def run_models(config: Config, write: Callable[[Path, Any], object]) -> Result:
    """Run an audit of one model, or of several after each other.

    Args:
        config: whose encoder or model may name several: ``A,B`` or ``A,checkpoint=FILE,B,checkpoint=FILE``,
            in TOML a list. With ``resume`` the models that are finished are taken over; with ``overwrite``
            as well, those that are of other options, data or weights by now, and only they, are computed
            again.
        write: writes the page of a model's result, from its folder.

    Returns:
        The audit's result for one model, a :class:`ModelsResult` for several.

    Raises:
        ConfigError, DataError, InputError, CheckpointError: see :mod:`pfungst.errors`.
    """
    field, run = _kind(config)
    models = named_models(config, field)
    if len(models) == 1:
        return run(models[0][1])
    refuse_old_result(config)
    old = load(config.out) if config.resume and (config.out / FILE).is_file() else None
    if old is not None and not (config.overwrite or isinstance(old, ModelsResult)):
        raise ConfigError(
            f"{config.out} holds the result of one model", "choose another --out, or pass --overwrite"
        )
    started = time.monotonic()
    results: list[Any] = []
    for i, (_, own) in enumerate(models):
        if isinstance(own, ClassifierConfig) and own.transfer == "first":
            own = own.model_copy(update=_given_by(models[0][1].out, results))
            models[i] = (models[i][0], own)
        before = _written(own.out)
        results.append(_taken_over(own, run) or run(own))
        if before is None or before != _written(own.out):
            write(own.out, results[-1])
        gc.collect()
    inputs = combined([r.inputs for r in results])
    if isinstance(old, ModelsResult) and old.inputs == inputs:
        return old
    names = [name for name, _ in models]
    found = dict(zip(names, results, strict=True))
    pairs, arrays = _grid(models, found) if field == "encoder" else ([], {})
    workspace = Workspace(config.model_copy(update={"overwrite": True}))
    rows = [
        Row(
            name=name,
            spec=str(getattr(own, field)),
            folder=own.out.name,
            level=found[name].verdict.level,
            headline=found[name].verdict.headline,
            **_values(found[name]),
        )
        for name, own in models
    ]
    columns = list(dict.fromkeys(c for row in rows for c in row.values))
    data = getattr(config, "images", None) or getattr(config, "val", None) or ""
    result = ModelsResult(
        **circumstances(config, started, inputs),
        of="similarity" if field == "encoder" else "classifier",
        title=f"{len(rows)} models on {Path(data).resolve().name}",
        verdict=_verdict(rows),
        metrics=_metrics(found),
        notes=list(dict.fromkeys(note for r in results for note in r.notes)),
        columns=columns,
        rows=rows,
        classes=_classes(found),
        pairs=pairs,
        arrays=workspace.save_arrays("models", arrays) if arrays else "",
    )
    save(result, workspace.folder)
    workspace.finish({result.arrays})
    return result


def _taken_over(own: Config, run: Callable[[Any], Result]) -> Result | None:
    """With ``resume`` and ``overwrite`` the finished result of a model, None where it is to be replaced."""
    if not (own.resume and own.overwrite and (own.out / FILE).is_file()):
        return None
    with suppress(ConfigError):  # what else is wrong is said again by the run that replaces it
        return run(own.model_copy(update={"overwrite": False}))
    return None


def _written(folder: Path) -> int | None:
    """When a result was written that has its page; None where one of the two is missing."""
    both = [folder / FILE, folder / "report.html"]
    return both[0].stat().st_mtime_ns if all(f.is_file() for f in both) else None


def _given_by(folder: Path, results: list[Any]) -> dict[str, Any]:
    """What ``--transfer first`` means for the next model: for the first nothing, else its components."""
    if not results:
        return {"transfer": None}
    nothing = not any(e.fixed for e in results[0].entries)
    return {"components": None, "transfer": None if nothing else folder} | ({"fix": 0} if nothing else {})


def _kind(config: Config) -> tuple[str, Callable[[Any], Result]]:
    if isinstance(config, SimilarityConfig):
        from pfungst.audit.similarity.run import run

        return "encoder", run
    from pfungst.audit.classifier.run import run as run_classifier

    return "model", run_classifier


def named_models(config: Config, field: str) -> list[tuple[str, Config]]:
    """The name and configuration of each model of ``SPEC[,checkpoint=FILE][,size=PIXELS]``; wrong ones are
    found before anything is computed."""
    option = f"--{field}"
    texts = [_sized(text, option) for text in listed(getattr(config, field))]
    specs = [(*with_checkpoint(text, option), size) for text, size in texts]
    if not specs:
        raise ConfigError(f"{option} names no model", f"write {option} NAME")
    if len(specs) == 1 and specs[0][1:] == (None, None):
        return [("", config)]
    if config.checkpoint is not None:
        raise ConfigError(
            f"--checkpoint {config.checkpoint} for {len(specs)} models", f"write {option} A,checkpoint=FILE,B"
        )
    found: dict[str, Config] = {}
    for spec, checkpoint, size in specs:
        scheme, rest = parse(spec, "encoder" if field == "encoder" else "classifier")
        check_file(checkpoint, option)
        name = Path(rest).name if scheme in STORED - {"package"} else short_name(spec)
        name += f" {checkpoint.stem}" if checkpoint else ""
        if name in found:
            raise ConfigError(f"{option} names {name} twice", "leave one of them out")
        own = {field: spec, "checkpoint": checkpoint, "size": size or config.size}
        out = {"out": config.out / slug(name)} if len(specs) > 1 else {}
        found[name] = config.model_copy(update=own | out)
    return list(found.items())


def _sized(text: str, option: str) -> tuple[str, int | None]:
    """A specification without its ``size=PIXELS``, and that size."""
    spec, *rest = text.split(",")
    sizes = [part.removeprefix("size=") for part in rest if part.startswith("size=")]
    if len(sizes) > 1 or any(not s.isdecimal() or not 8 <= int(s) <= 2048 for s in sizes):
        raise ConfigError(f"{option} {text!r}", "write one size from 8 to 2048, such as size=128")
    others = [part for part in rest if not part.startswith("size=")]
    return ",".join([spec, *others]), int(sizes[0]) if sizes else None


def _values(result: Result) -> dict[str, Any]:
    """Values and marks of one model by column."""
    values: dict[str, Interval] = {}
    marks: dict[str, str] = {}
    if isinstance(result, SimilarityResult):
        groups = list(dict.fromkeys((s.column, s.group) for s in result.scores if s.column))[:_GROUPS]
        for s in result.scores:
            if s.column and (s.variant != result.variants[0] or (s.column, s.group) not in groups):
                continue
            name = named(s.column, s.group) if s.column else str(s.variant)
            values[name], marks[name] = (s.rebalanced if s.column else s.accuracy), s.mark
            if s.fpr is not None and s.variant == result.variants[0]:
                values[f"FPR, {name}"] = s.fpr
        for group in result.falling:
            if str(group) in values:
                marks[str(group)] = group.falls[0].mark
    if isinstance(result, ClassifierResult):
        for scores in result.scores:
            after = (", SpuFix" if scores.variant.mitigated else "") + (
                f", {scores.variant.condition}" if scores.variant.condition != "original" else ""
            )
            values[f"accuracy{after}"] = scores.accuracy
            if scores.mauc is not None:
                values[f"mAUC{after}"] = scores.mauc
            if scores.triggered is not None:
                values[f"triggered{after}"] = Interval(value=scores.triggered)
    return {"values": values, "marks": {k: v for k, v in marks.items() if v}}


def _classes(found: dict[str, Result]) -> list[ClassRow]:
    rows: dict[str, ClassRow] = {}
    for name, result in found.items():
        for entry in result.entries if isinstance(result, ClassifierResult) else ():
            row = rows.setdefault(entry.name, ClassRow(name=entry.name, auc={}, fixed={}))
            for of, mitigated in ((row.auc, False), (row.fixed, True)):
                spurious = entry.under("original", mitigated).spurious
                if spurious is not None:
                    of[name] = spurious.auc
    return [row for row in rows.values() if row.auc]


def _metrics(found: dict[str, Result]) -> dict[str, Metric]:
    """The gateable metrics, each the worst over the models."""
    by: dict[str, dict[str, Metric]] = {}
    for name, result in found.items():
        for key, metric in result.metrics.items():
            by.setdefault(key, {})[name] = metric
    made = {}
    for key, metrics in by.items():
        first = next(iter(metrics.values()))
        worst = Metric.worst({m: metric.value for m, metric in metrics.items()}, first.better, first.meaning)
        made[key] = worst.model_copy(update={"where": f"{worst.where}: {metrics[worst.where].where}"})
    return made


def _verdict(rows: list[Row]) -> Verdict:
    """The most serious of the models' verdicts."""
    order = get_args(Level)
    worst = min(rows, key=lambda row: order.index(row.level))
    bad = [row for row in rows if row.level != "sound"]
    headline = f"All {len(rows)} models are sound."
    if bad:
        headline = f"{len(bad)} of {len(rows)} models are not sound; the most serious is {worst.name}."
    return Verdict(
        level=worst.level,
        headline=headline,
        sentences=[f"{row.name}: {row.headline}" for row in rows],
    )


def _grid(
    models: list[tuple[str, Config]], found: dict[str, Result]
) -> tuple[list[GridPair], dict[str, np.ndarray]]:
    """The pairs that the first model finds most alike, explained for every model, one encoder at a time."""
    from pfungst.audit.similarity.prepare import open_labelled
    from pfungst.data import ImageSet
    from pfungst.relevance import Patches
    from pfungst.similarity import SimilarityExplainer

    first = found[models[0][0]]
    assert isinstance(first, SimilarityResult)
    if first.modality != "images":
        return [], {}
    shown: dict[str, tuple[str, str]] = {}
    for known in first.pairs:
        if known.title in first.classes:
            shown.setdefault(known.title, (known.first, known.second))
    pairs = [
        GridPair(title=title, ids=ids, arrays={}, similarity={}, bias_share={}, grids={})
        for title, ids in shown.items()
    ]
    arrays: dict[str, np.ndarray] = {}
    for m, (name, config) in enumerate(models):
        assert isinstance(config, SimilarityConfig)
        items = {item.id: item for item in open_labelled(config).items}
        encoder = config.open_encoder()
        basis = Patches(config.patch(encoder.size))
        explainer = SimilarityExplainer(
            encoder, basis=basis, metric=config.metric, composite=config.composite
        )
        for i, pair in enumerate(pairs):
            both = ImageSet("pair", [items[k] for k in pair.ids])
            images = colour(both.prepare(encoder.preprocessing.condition, encoder.size).images)
            factors = explainer.factor(images)
            r = explainer.pair((factors, 0), (factors, 1))
            pair.arrays[name] = f"pair_{i}_{m}"
            arrays[f"pair_{i}_{m}"] = r.values[0].numpy().astype(np.float32)
            pair.similarity[name], pair.bias_share[name] = float(r.score[0]), r.bias_share
            pair.grids[name] = (list(r.grids[0]), list(r.grids[1]))
            if m == 0:
                arrays |= {f"picture_{i}_{side}": to_uint8(x) for side, x in enumerate(images)}
        del encoder, explainer
        gc.collect()
    return pairs, arrays
