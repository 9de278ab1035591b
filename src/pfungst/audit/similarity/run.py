"""The similarity audit: what makes two inputs alike to an encoder, and what a probe on it relies on."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import numpy as np

from pfungst.audit.conditions import conditions_for
from pfungst.audit.config import check_file
from pfungst.audit.findings.section import answered, of_encoder
from pfungst.audit.machine import circumstances
from pfungst.audit.mended import FOLDER
from pfungst.audit.recognised import forecast
from pfungst.audit.result import Skipped, save
from pfungst.audit.similarity import gates, texts, verdict
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.explain import CLASSES, draw_map, explain
from pfungst.audit.similarity.forecast import estimate
from pfungst.audit.similarity.measure import confusion, erased, follow, score, subgroups
from pfungst.audit.similarity.mend import Wish, mitigate, recovered
from pfungst.audit.similarity.prepare import Study, open_labelled
from pfungst.audit.similarity.result import Findings, SimilarityResult
from pfungst.audit.workspace import Workspace, data_state, refuse_old_result, resumed_result
from pfungst.data import ImageSet
from pfungst.device import choose_device
from pfungst.encoders import Encoder
from pfungst.encoders.edits import resolve_layer
from pfungst.encoders.specification import parse
from pfungst.errors import ConfigError
from pfungst.progress import Bar, progress_bar
from pfungst.relevance import composite as named_composite


def run(
    config: SimilarityConfig, *, encoder: Encoder | None = None, images: ImageSet | None = None
) -> SimilarityResult:
    """Run the audit and write ``result.json`` and the arrays into ``config.out``.

    Args:
        encoder, images: in memory, instead of what ``config`` names.

    Embeddings stay in the output folder and are found again by content; the sweep and the explanations of an
    interrupted run are taken over with ``resume``.

    Raises:
        ConfigError, DataError, InputError, CheckpointError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    given, wish = check(config, images)
    state = data_state(given.items if isinstance(given, ImageSet) else ())
    if encoder is None and (done := resumed_result(config, state)) is not None:
        return answered(done, config)
    encoder = encoder or config.open_encoder()
    _reads(config, texts=not isinstance(encoder, Encoder))
    notes: tuple[str, ...] = ()
    skipped: list[Skipped] = []
    if isinstance(given, ImageSet):
        _fits(encoder, wish, config)
        workspace = Workspace(config, state)
        shutil.rmtree(workspace.folder / FOLDER, ignore_errors=True)
        with progress_bar("checking images") as bar:
            study = Study.of(encoder, given, config, workspace, bar)
            found, arrays, notes = _findings(study, wish, bar)
        name = given.name
        skipped = [Skipped(id=i, reason=r) for i, r in study.source.skipped]
    else:
        workspace = Workspace(config, state)
        found, arrays = texts.audit(encoder, given, config)
        name = config.texts.name if config.texts else ""
    result = SimilarityResult(
        **dict(found),
        **circumstances(config, started, workspace.fingerprint),
        title=f"{encoder.name} on {name}",
        verdict=verdict.judge(found),
        metrics=gates.metrics(found),
        skipped=skipped,
        notes=[*notes, *gates.explain_numbers(found, config)],
        arrays=workspace.save_arrays("similarity", arrays),
    )
    save(result, workspace.folder)
    workspace.finish({result.arrays, *(result.discovery.arrays() if result.discovery else ())})
    return result


def dry_run(config: SimilarityConfig) -> str:
    """What the data are recognised as, and what the audit would cost; nothing is written."""
    given, wish = check(config)
    if not isinstance(given, ImageSet):
        return f"{config.texts}: {len(given)} pairs of sentences"
    return forecast([given], config.groups, lambda: estimate(config, given, wish))


def check(
    config: SimilarityConfig, images: ImageSet | None = None
) -> tuple[ImageSet | list[texts.Sentences], Wish | None]:
    """Find all that can be wrong with the arguments without the encoder.

    Returns:
        The pairs of sentences, or the labelled images, and what is to be pruned.

    Raises:
        ConfigError, DataError: see :mod:`pfungst.errors`.
    """
    refuse_old_result(config)
    choose_device(config.device)
    check_file(config.checkpoint, "--checkpoint")
    check_file(config.groups_file, "--groups-file")
    if config.composite != "auto":
        named_composite(config.composite)
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
    return open_labelled(config, images), wish


def _reads(config: SimilarityConfig, texts: bool) -> None:
    if texts != (config.texts is not None):
        raise ConfigError(
            f"the encoder {config.encoder} reads {'texts' if texts else 'images'}",
            "give --texts FILE" if texts else "give --images DATA",
        )


def _fits(encoder: Encoder, wish: Wish | None, config: SimilarityConfig) -> None:
    """Raise where conditions, patches or layers do not fit the encoder."""
    conditions_for(encoder.preprocessing.condition, config.condition, encoder.size)
    if config.patches is not None and config.patches > encoder.size:
        raise ConfigError(
            f"patches of {config.patches} px are larger than the images of {encoder.size} px",
            "lower --patches",
        )
    if wish is not None and wish.layer is not None:
        resolve_layer(encoder, wish.layer)


def _findings(
    study: Study, wish: Wish | None, bar: Bar
) -> tuple[Findings, dict[str, np.ndarray], tuple[str, ...]]:
    """All that is measured and explained, the arrays, and notes."""
    mitigation = None
    if wish is not None:
        bar.turn("pruning")
        mitigation, study = mitigate(study, wish)
    provenance = sorted(follow(study), key=lambda p: (not p.follows, p.eta2_label - p.eta2_group))
    study = replace(study, columns={p.column: study.columns[p.column] for p in provenance})
    scores = score(study)
    if mitigation is not None:
        mitigation = mitigation.model_copy(update={"recovered": recovered(scores)})
    errors = {v.key: confusion(study, v) for v in study.found.predicted}
    groups = subgroups(study)
    bar.turn("explaining similarities")
    explained, arrays = explain(study, errors, [g for g in groups if g.falls])
    bar.turn("drawing the map")
    found = Findings(
        encoder=study.encoder.name,
        trained=study.encoder.trained,
        width=study.original.shape[1],
        modality="images",
        n=len(study.source.items),
        classes=study.plan.classes,
        columns=list(study.columns),
        split=study.plan.split,
        kept_together=study.unit,
        variants=list(study.found.predicted),
        seeds=[study.config.seed + i for i in range(study.config.seeds)],
        scores=scores,
        subgroups=groups,
        confusion=errors,
        provenance=provenance,
        erased=erased(study),
        mitigation=mitigation,
        discovery=of_encoder(study, study.workspace) if study.config.discover else None,
        basis=f"patches of {study.config.patch(study.encoder.size)} px",
        **explained,
    )
    notes = study.notes
    if (n := len(found.classes)) > CLASSES:
        notes += (f"pairs are shown of the first {CLASSES} of {n} classes; name others with --classes",)
    return found, arrays | draw_map(study), notes
