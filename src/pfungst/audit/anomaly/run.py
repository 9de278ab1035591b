"""The anomaly audit: explain, measure, mend, for every category and detector."""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from pfungst import measure
from pfungst.audit.anomaly import verdict
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.examples import choose, examples, pictures
from pfungst.audit.anomaly.explain import explain
from pfungst.audit.anomaly.forecast import estimate
from pfungst.audit.anomaly.leave import write_detector
from pfungst.audit.anomaly.measure import (
    DEPLOYED,
    MENDED,
    ORIGINAL,
    Run,
    mean_scores,
    provenance,
    repeat,
    scores,
)
from pfungst.audit.anomaly.mend import mitigation
from pfungst.audit.anomaly.prepare import Study, check, decode_all, open_sets
from pfungst.audit.anomaly.result import AnomalyResult, Entry
from pfungst.audit.findings.result import Discovered, DiscoveryEntry
from pfungst.audit.machine import circumstances
from pfungst.audit.mended import FOLDER
from pfungst.audit.recognised import forecast
from pfungst.audit.result import Skipped, save
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace, data_state, refuse_old_result, resumed_result, slug
from pfungst.conditions import Condition
from pfungst.data import ImageSet
from pfungst.data.roles import same_training
from pfungst.errors import DataError, PfungstWarning
from pfungst.features.engine import shards
from pfungst.progress import progress_bar

if TYPE_CHECKING:
    from pfungst.anomaly import Detector
    from pfungst.audit.anomaly.fitted import FittedDetectors


def run(
    config: AnomalyConfig,
    *,
    sets: list[ImageSet] | None = None,
    detectors: Mapping[str, Detector] | None = None,
) -> AnomalyResult:
    """Run the audit and write ``result.json`` and the arrays into ``config.out``.

    Args:
        sets: images in memory instead of ``config.data``.
        detectors: unfitted detectors by the names that ``config.model`` has for them.

    Everything that can be wrong with the input is found before anything is computed. Finished categories
    survive an interruption; the same configuration with ``resume`` goes on from there.

    Returns:
        The result, as written.

    Raises:
        ConfigError, DataError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    refuse_old_result(config)
    given = dict(detectors or {})
    conditions = check(config, sets, given)
    sets = open_sets(config, sets)
    for images in sets:
        group_columns(images.items, config.groups)
    state = data_state(item for images in sets for item in images.items)
    if not given and (done := resumed_result(config, state)) is not None:
        from pfungst.audit.findings.section import answered  # with scikit-learn

        return answered(done, config)
    workspace = Workspace(config, state)
    if not config.resume:
        shutil.rmtree(workspace.folder / FOLDER, ignore_errors=True)
    entries = _entries(config, conditions, sets, workspace, given)
    found = _concluded(entries, config, workspace) if config.discover else None
    entries = [e.model_copy(update={"discovered": []}) for e in entries]
    notes = [f"{images.name}: {note}" for images in sets for note in images.notes]
    if workspace.resumed:
        notes.append(f"{workspace.resumed} finished parts were taken over from an interrupted run")
    skipped = {f"{e.category}: {s.id}": s.reason for e in entries for s in e.skipped}
    mean = mean_scores(entries)
    result = AnomalyResult(
        title=f"{', '.join(config.model)} on {Path(config.data).resolve().name}",
        **circumstances(config, started, workspace.fingerprint),
        verdict=verdict.judge(entries, mean, config),
        metrics=verdict.metrics(entries),
        skipped=[Skipped(id=id_, reason=reason) for id_, reason in skipped.items()],
        notes=notes + verdict.explain_numbers(config),
        original=config.original,
        deployed=config.deployed,
        mitigation=None if config.mitigate == "none" else config.mitigate,
        protocol=config.protocol,
        size=config.size,
        seeds=[config.seed + i for i in range(config.seeds)],
        entries=entries,
        mean=mean,
        discovery=found,
    )
    save(result, workspace.folder)
    workspace.finish({entry.arrays for entry in entries} | (found.arrays() if found else set()))
    return result


def dry_run(config: AnomalyConfig) -> str:
    """What the data are recognised as, and the time and memory of the audit; nothing is written."""
    conditions = check(config)
    sets = open_sets(config)
    return forecast(sets, config.groups, lambda: estimate(sets, conditions, config))


def _entries(
    config: AnomalyConfig,
    conditions: tuple[Condition, Condition],
    sets: list[ImageSet],
    workspace: Workspace,
    given: Mapping[str, Detector],
) -> list[Entry]:
    """Every category with every detector; what an interrupted run has finished is taken over."""
    apart = config.ray is not None or config.workers not in (0, "auto")
    names = [{m: f"{images.name} {m} {data_state(images.items)}" for m in config.model} for images in sets]
    found: dict[str, Entry] = {}
    with progress_bar("checking images", len(sets) * (1 + len(config.model))) as bar:
        if not config.skip_bad and isinstance(config.data, Path):
            decode_all(sets)
        for part in (part for of in names for part in of.values()):
            if (entry := workspace.load_part(part, Entry)) is not None:
                found[part] = entry
        bar.advance(len(sets) + len(found))
        left = [{m: part for m, part in of.items() if part not in found} for of in names]
        todo = {id(images): parts for images, parts in zip(sets, left, strict=True)}
        blocks = [
            [(images, {m: todo[id(images)][m] for m in models if m in todo[id(images)]}) for images in group]
            for group in (same_training(sets) if apart else [[images] for images in sets])
            for models in ([[m] for m in config.model] if apart else [config.model])
        ]
        blocks = [block for block in blocks if any(parts for _, parts in block)]
        work = _Evaluation(config, conditions, sets, workspace, given, blocks)
        workers = config.workers if apart else 0
        threads = torch.get_num_threads()
        if workers and workers != "auto" and config.ray is None:
            threads = max(1, threads // workers)
        for done in shards(work, range(len(blocks)), workers, config.device, threads, config.ray):
            for part, entry in cast("dict[str, Entry]", done).items():
                _require_written(workspace, entry)
                found[part] = entry
                bar.advance()
    return [found[part] for of in names for part in of.values()]


def _require_written(workspace: Workspace, entry: Entry) -> None:
    if not (workspace.folder / entry.arrays).is_file():
        raise DataError(
            f"{workspace.folder} lacks {entry.arrays}, which another machine of the cluster has written",
            "all machines must see the results under the same path",
        )


_Block = list[tuple[ImageSet, dict[str, str]]]  # categories, and their parts to do by detector


@dataclass(frozen=True)
class _Evaluation:
    """Evaluates blocks of categories and detectors by their number, on a device, in any process."""

    config: AnomalyConfig
    conditions: tuple[Condition, Condition]
    sets: list[ImageSet]
    workspace: Workspace
    given: Mapping[str, Detector]
    blocks: list[_Block]

    def __call__(self, device: str) -> Callable[[int], dict[str, Entry]]:
        from pfungst.audit.anomaly.fitted import FittedDetectors

        return partial(self._block, FittedDetectors(device, self.sets, self.given))

    def _block(self, detectors: FittedDetectors, number: int) -> dict[str, Entry]:
        config = self.config.model_copy(update={"device": detectors.device})
        found: dict[str, Entry] = {}
        for images, parts in self.blocks[number]:
            study = cache(partial(Study.prepare, images, self.conditions, config, detectors))
            for model, part in parts.items():
                found[part] = evaluate(study(), model, self.workspace)
                self.workspace.save_part(part, found[part])
        return found


def evaluate(study: Study, model: str, workspace: Workspace) -> Entry:
    """Fit, score, explain and mend one detector on one category, and write its arrays.

    Args:
        model: the detector, see :func:`pfungst.anomaly.detector_from_spec`.
    """
    config, test, labels = study.config, study.test, study.labels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PfungstWarning)
        runs = repeat(study, model)
        mended = mitigation(config, runs[ORIGINAL].detector, study.train)
        if mended is not None:
            runs |= repeat(study, model, mended)
        explained = explain(study, runs)
    notes = _notes(study) + [str(w.message) for w in caught if issubclass(w.category, PfungstWarning)]
    if mended is not None:
        place = workspace.folder / FOLDER / slug(f"{test.name} {model}")
        notes.append(write_detector(study, model, runs[MENDED], mended, place))
    original = runs[ORIGINAL]
    chosen = choose(labels, original, runs[DEPLOYED], config.examples)
    kinds = np.array([kind or "" for kind in test.classes])
    arrays = {
        "labels": labels.astype(np.uint8),
        "kinds": kinds,
        "ids": np.array(test.ids),
        **{f"scores_{variant.key}": run.scores for variant, run in runs.items()},
        **{f"threshold_{variant.key}": np.array(run.threshold) for variant, run in runs.items()},
        **{f"group_{column}": values for column, values in study.columns.items()},
        **pictures(study, runs, explained.heat, chosen),
    }
    return Entry(
        category=test.name,
        model=model,
        n_train=len(study.train),
        n_good=int((labels == 0).sum()),
        n_defect=int((labels == 1).sum()),
        kinds=dict(Counter(kinds[labels == 1].tolist())),
        scores=scores(study, runs, explained.heat),
        trivial_f1=measure.trivial_f1(labels),
        threshold=original.threshold,
        spectrum=explained.spectrum,
        exposure=explained.exposure,
        faithfulness=explained.faithfulness,
        provenance=provenance(study, original.scores),
        examples=examples(study, runs, chosen, explained.bands),
        arrays=workspace.save_arrays(f"{test.name} {model}", arrays),
        discovered=_discovered(study, model, original, workspace) if config.discover else [],
        notes=notes,
        skipped=[Skipped(id=id_, reason=reason) for id_, reason in test.skipped],
    )


def _discovered(study: Study, model: str, run: Run, workspace: Workspace) -> list[DiscoveryEntry]:
    from pfungst.audit.findings.section import of_detector  # with scikit-learn

    return of_detector(study, model, run, workspace)


def _concluded(entries: Sequence[Entry], config: AnomalyConfig, workspace: Workspace) -> Discovered:
    from pfungst.audit.findings.section import concluded

    return concluded([d for e in entries for d in e.discovered], config, workspace)


def _notes(study: Study) -> list[str]:
    without = int(study.labels.sum() - study.masked.sum())
    note = f"{without} defective test images have no mask; the Clever Hans score leaves them out"
    return [note] if without else []
