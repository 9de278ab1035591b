"""The similarity audit: what makes two inputs alike to an encoder, and what a probe on it relies on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pfungst.audit.config import check_file
from pfungst.audit.machine import circumstances
from pfungst.audit.result import Skipped, save
from pfungst.audit.similarity import texts, verdict
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import ORIGINAL, Source, conditions_for, embed, open_set
from pfungst.audit.similarity.likeness import explain, patch_size
from pfungst.audit.similarity.mending import Wish, mitigate
from pfungst.audit.similarity.probing import (
    Plan,
    confusion,
    follow,
    make_plan,
    predict,
    score,
    usable,
)
from pfungst.audit.similarity.result import SimilarityResult
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace, refuse_old_result
from pfungst.data import ImageSet
from pfungst.device import choose_device
from pfungst.encoders import Encoder, load
from pfungst.encoders.edits import resolve_layer
from pfungst.encoders.specification import parse
from pfungst.errors import ConfigError
from pfungst.progress import progress_bar

_SHOWN = 2000  # points of the map


def run(config: SimilarityConfig) -> SimilarityResult:
    """Run the audit and write ``result.json`` and the arrays into ``config.out``.

    Embeddings stay in the output folder and are found again by content; the sweep and the explanations of an
    interrupted run are taken over with ``resume``.

    Raises:
        ConfigError, DataError, InputError, CheckpointError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    given, wish = check(config)
    encoder = load(
        config.encoder,
        checkpoint=config.checkpoint,
        trust_checkpoint=config.trust_checkpoint,
        size=config.size,
    )
    _reads(config, texts=not isinstance(encoder, Encoder))
    if isinstance(given, ImageSet):
        parts = _images(encoder, given, wish, config)
    else:
        parts = texts.audit(encoder, given, config)
    workspace, fields, arrays, notes = parts
    result = SimilarityResult(
        **circumstances(config, started),
        verdict={"level": "sound", "headline": ""},
        encoder=encoder.name,
        trained=encoder.trained,
        seeds=[config.seed + i for i in range(config.seeds)],
        arrays=workspace.save_arrays("similarity", arrays),
        notes=notes,
        **fields,
    )
    result.verdict = verdict.judge(result)
    result.metrics = verdict.metrics(result)
    result.notes += verdict.explain_numbers(result, config)
    save(result, workspace.folder)
    workspace.finish({result.arrays})
    shutil.rmtree(workspace.folder / ".factors", ignore_errors=True)
    return result


def check(config: SimilarityConfig) -> tuple[ImageSet | list[texts.Sentences], Wish | None]:
    """Find all that can be wrong with the arguments without the encoder.

    Returns:
        The pairs of sentences, or the labelled images, and what is to be pruned.

    Raises:
        ConfigError, DataError: see :mod:`pfungst.errors`.
    """
    refuse_old_result(config)
    choose_device(config.device)
    check_file(config.checkpoint, "--checkpoint")
    scheme, _ = parse(config.encoder)
    if scheme != "function":
        _reads(config, texts=scheme == "sentence-transformers")
    if config.texts is not None:
        return texts.read_pairs(config.texts, config.positive), None
    conditions = list(conditions_for("pillow-bilinear", config.condition, config.size).values())
    wish = None if config.mitigate == "none" else Wish.parse(config.mitigate)
    if wish is not None and wish.pasted and conditions[1].logo is None:
        raise ConfigError(
            "the first condition pastes no logo, so there is no region to prune in", "give rows= and cols="
        )
    images = open_set(config)
    items, notes = usable(images.items, config)
    group_columns(items, config.groups)
    make_plan(items, config)
    return ImageSet(images.name, items, [*images.notes, *notes]), wish


def _reads(config: SimilarityConfig, texts: bool) -> None:
    if texts != (config.texts is not None):
        raise ConfigError(
            f"the encoder {config.encoder} reads {'texts' if texts else 'images'}",
            "give --texts FILE" if texts else "give --images DATA",
        )


def _images(
    encoder: Encoder, images: ImageSet, wish: Wish | None, config: SimilarityConfig
) -> tuple[Workspace, dict[str, Any], dict[str, np.ndarray], list[str]]:
    conditions = conditions_for(encoder.preprocessing.condition, config.condition, encoder.size)
    if config.patches is not None and config.patches > encoder.size:
        raise ConfigError(
            f"patches of {config.patches} px are larger than the images of {encoder.size} px",
            "lower --patches",
        )
    if wish is not None and wish.layer is not None:
        resolve_layer(encoder, wish.layer)
    notes = list(images.notes)
    workspace = Workspace(config)
    cache = config.cache or workspace.folder / "embeddings"
    with progress_bar("checking images") as bar:
        if not config.skip_bad and config.images != "synthetic":
            images.check()
        source = Source.open(images, conditions, encoder.size, config.skip_bad)
        source.workers, source.ray = config.workers, config.ray
        if source.skipped:
            source.items, more = usable(source.items, config)
            notes += more
        plan = make_plan(source.items, config)
        unit = plan.kept_together
        columns = {}
        tested = np.unique(np.concatenate([test for _, test in plan.rounds[0]]))
        for name, values in group_columns(source.items, config.groups).items():
            if len(set(values[tested].tolist())) < 2:
                notes.append(f"the column {name!r} has one value only in the tested images and was left out")
            elif name not in (unit, config.labels):
                columns[name] = np.array([v or "(none)" for v in values.tolist()])
        bar.turn(f"embedding with {encoder.name}", len(source.items))
        embeddings = embed(encoder, source, cache, config.device, bar.advance)
        bar.turn("probing")
        found = predict(plan, embeddings, ORIGINAL, config.probe)
        compared = {name: ORIGINAL for name in conditions if name != ORIGINAL}
        mitigation = None
        if wish is not None:
            bar.turn("pruning")
            mitigation, mended = mitigate(encoder, source, plan, wish, config, cache, workspace)
            also = predict(plan, mended, f"mitigated {ORIGINAL}", config.probe)
            found.predicted |= also.predicted
            found.scores |= also.scores
            compared |= {f"mitigated {name}": name for name in conditions}
        scores = score(plan, found, columns, compared)
        if mitigation is not None:
            pooled = {s.variant: s.accuracy.value for s in scores if not s.column}
            for name in conditions:
                fall = pooled[ORIGINAL] - pooled[name]
                gain = pooled[f"mitigated {name}"] - pooled[name]
                if name != ORIGINAL:
                    mitigation.recovered[name] = gain / fall if fall >= verdict.FALL else None
        provenance = follow(plan, found, embeddings[ORIGINAL], columns, config)
        bar.turn("explaining similarities")
        likeness = explain(
            encoder,
            source,
            plan,
            found,
            embeddings[ORIGINAL],
            columns,
            config,
            workspace.folder / ".factors",
        )
        bar.turn("drawing the map")
        arrays = likeness.arrays | _map(
            embeddings[ORIGINAL], found.predicted[ORIGINAL][0], plan, columns, source, config
        )
    fields = {
        "title": f"{encoder.name} on {images.name}",
        "width": embeddings[ORIGINAL].shape[1],
        "modality": "images",
        "n": len(source.items),
        "classes": plan.classes,
        "columns": list(columns),
        "split": plan.split,
        "kept_together": unit,
        "variants": list(found.predicted),
        "scores": scores,
        "confusion": {
            name: confusion(plan, p, found.predicted[ORIGINAL]) for name, p in found.predicted.items()
        },
        "provenance": provenance,
        "artefacts": likeness.artefacts,
        "regions": likeness.regions,
        "summaries": likeness.summaries,
        "mitigation": mitigation,
        "pairs": likeness.pairs,
        "basis": f"patches of {patch_size(config, encoder.size)} px",
        "composite": likeness.composite,
        "conservation": likeness.conservation,
        "skipped": [Skipped(id=i, reason=r) for i, r in source.skipped],
    }
    return workspace, fields, arrays, notes + plan.notes


# --- map -------------------------------------------------------------------------------------------------


def _map(
    embeddings: np.ndarray,
    predicted: np.ndarray,
    plan: Plan,
    columns: Mapping[str, np.ndarray],
    source: Source,
    config: SimilarityConfig,
) -> dict[str, np.ndarray]:
    """t-SNE of the representations, at most 2,000 points."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    index = np.arange(len(embeddings))
    if len(index) > _SHOWN:
        index = np.sort(np.random.default_rng(config.seed).choice(len(index), _SHOWN, replace=False))
    x = embeddings[index].astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    if len(x) >= 4:
        width = min(50, *x.shape)
        x = PCA(width, random_state=config.seed).fit_transform(x)
        perplexity = min(30.0, (len(x) - 1) / 3)
        # Distances are scaled by the data's spread: representations of random networks differ little.
        x = x / max(float(x[:, 0].std()), 1e-12)
        x = TSNE(perplexity=perplexity, init="pca", random_state=config.seed).fit_transform(x)
    return {
        "embedding": x[:, :2].astype(np.float32),
        "ids": np.array([source.items[i].id for i in index]),
        "labels": plan.labels[index],
        "predicted": predicted[index],
        **{f"group_{name}": values[index] for name, values in columns.items()},
    }
