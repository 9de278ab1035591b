"""The classifier audit: find spurious components, measure what they do, switch them off."""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path
from typing import Any

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.explain import Explainer, Part, finished, n_images
from pfungst.audit.classifier.forecast import estimate
from pfungst.audit.classifier.measure import Measured, answers_of, entry, measure
from pfungst.audit.classifier.mend import chosen, mend, write_classifier
from pfungst.audit.classifier.prepare import Given, Study, extract, load_audited
from pfungst.audit.classifier.result import ChosenBy, ClassEntry, ClassifierResult, Explained, Faithful
from pfungst.audit.classifier.task import write_label_task
from pfungst.audit.classifier.transfer import Transfer
from pfungst.audit.classifier.verdict import Judge, explain_numbers, metrics
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.findings.section import answered, of_classifier
from pfungst.audit.machine import circumstances
from pfungst.audit.mended import FOLDER
from pfungst.audit.pictures import PictureFolder
from pfungst.audit.recognised import forecast
from pfungst.audit.result import Skipped, save
from pfungst.audit.workspace import Workspace, data_state, resumed_result
from pfungst.data import ImageSet
from pfungst.encoders import Classifier
from pfungst.errors import PfungstWarning, few
from pfungst.features import combined, model_key
from pfungst.progress import progress_bar
from pfungst.spurious import FeatureStore, NeuralPCA, components_chosen_by
from pfungst.spurious.visualise import NOTE


def run(
    config: ClassifierConfig,
    *,
    model: Classifier | None = None,
    train: ImageSet | None = None,
    val: ImageSet | None = None,
    names: list[str] | None = None,
) -> ClassifierResult:
    """Run the audit; writes ``result.json``, ``images/`` and ``label-task.json`` into ``config.out``.

    Classes, files and components are checked before the model is loaded; unreadable images are all named by
    the pass over the images. Finished features and classes survive an interruption.

    Args:
        model, train, val, names: in memory, instead of what ``config`` names.

    Returns:
        The result, as written.

    Raises:
        ConfigError, DataError, InputError, CheckpointError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    other = Transfer.read(config)
    given = Given.check(config, train, val, names)
    state = data_state([*given.train.items, *given.val.items], config.spurious, config.masks)
    state = state if other is None else combined(state, other.state())
    if model is None and (done := resumed_result(config, state)) is not None:
        return answered(done, config, config.witness)
    study = given.study(model or load_audited(config))
    workspace = Workspace(config, state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PfungstWarning)
        stores = extract(study, workspace)
        tests = config.shown * len(set(study.train.labels))
        count = n_images(tests)
        device = str(study.head.device)
        npca = NeuralPCA(config.n_components, n_images=count, seed=config.seed, device=device)
        npca.fit(study.head, stores["train"])
        classes, faithful = explain(study, workspace, Explainer(study, npca, stores, tests))
        if other is None:
            components = chosen(study, classes)
            fixed = mend(study, npca, components)
        else:
            fixed, components = other.to(study, workspace, stores["train"])
    shutil.rmtree(workspace.folder / FOLDER, ignore_errors=True)
    said = [str(w.message) for w in caught if issubclass(w.category, PfungstWarning)]
    notes = list(dict.fromkeys([*given.train.notes, *given.val.notes, *said]))
    if untested := [e.name for e in classes if not any(c.tested for c in e.components)]:
        notes.append(
            f"{len(untested)} classes have too few images, or there are none of others, for interventions: "
            f"{few(untested)}"
        )
    if workspace.resumed:
        notes.append(f"{workspace.resumed} finished classes were taken over from an interrupted run")
    if fixed is not None:
        notes.append(write_classifier(study, fixed, stores[ORIGINAL], workspace.folder / FOLDER))
    measured = measure(study, stores, fixed, [e.index for e in classes])
    entries = [entry(e, measured, study.judged, components, other is not None) for e in classes]
    found = of_classifier(study, workspace) if config.discover else None
    about = circumstances(config, started, workspace.fingerprint)
    result = _result(study, measured, entries, stores, notes, faithful, about, other)
    result.discovery = found
    result.arrays = workspace.save_arrays("answers", answers_of(study, stores, fixed))
    npca.save(workspace.folder / "npca")
    write_label_task(workspace.folder, result.title, study.fingerprint, entries)
    save(result, workspace.folder)
    PictureFolder(workspace.folder).tidy(_files(entries) | (found.files() if found else set()))
    workspace.finish({result.arrays} | (found.arrays() if found else set()))
    return result


def dry_run(config: ClassifierConfig) -> str:
    """What the data are recognised as, and what the audit would cost; nothing is written."""
    given = Given.check(config)
    return forecast([given.train, given.val], [], lambda: estimate(given))


def explain(
    study: Study, workspace: Workspace, explainer: Explainer
) -> tuple[list[Explained], Faithful | None]:
    """The components of every class, and how faithful their maps are; finished classes are taken over."""
    npca = explainer.npca
    others = [(other.name, model_key(other.model)) for other in study.witnesses]
    images = study.train.state(study.config.masks), study.val.state(None)
    state = combined(npca.model_fingerprint_, *images, study.judged, others)
    parts = []
    with progress_bar("classes", len(npca.classes_)) as bar:
        for k in npca.classes_:
            bar.say(study.names[k])
            part = workspace.load_part(f"class {k} {state}", Part)
            if part is None:
                part = explainer(k)
                workspace.save_part(f"class {k} {state}", part)
            parts.append(part)
            bar.advance()
    classes = finished(parts)
    return classes, explainer.faithfulness(classes)


def _result(
    study: Study,
    measured: Measured,
    entries: list[ClassEntry],
    stores: dict[str, FeatureStore],
    notes: list[str],
    faithful: Faithful | None,
    about: dict[str, Any],
    other: Transfer | None,
) -> ClassifierResult:
    config, name = study.config, study.fingerprint["name"]
    chosen_by: ChosenBy = "evidence" if config.components is None else components_chosen_by(config.components)
    if not any(e.fixed for e in entries):
        chosen_by = "nothing" if other is None else "transfer"
    skipped = {
        f"{'val' if part == ORIGINAL else part}: {id_}": reason
        for part, store in stores.items()
        for id_, reason in store.meta["skipped"]
        if part in (ORIGINAL, "train", "spurious")
    }
    return ClassifierResult(
        title=f"{name} on {Path(config.train).resolve().name}",
        **about,
        verdict=Judge(study, measured, entries, chosen_by, faithful)(),
        metrics=metrics(measured, entries, faithful),
        skipped=[Skipped(id=id_, reason=reason) for id_, reason in skipped.items()],
        notes=notes + explain_numbers(study, measured, chosen_by, faithful),
        model=name,
        fingerprint=study.fingerprint,
        layer=study.head.layer,
        weights=study.classifier.weights,
        preprocessing=study.classifier.preprocessing.to_dict(),
        named_by=study.outputs.order,
        conditions={n: c.describe() for n, c in study.conditions.items()},
        chosen_by=chosen_by,
        transferred_from="" if other is None else other.result.model,
        reference=config.reference,
        n_classes=study.head.linear.n_classes,
        n_validation=len(stores[ORIGINAL]),
        entries=entries,
        scores=list(measured.scores.values()),
        accuracy_loss=measured.loss,
        mauc_gain=measured.gain,
        npfv_note=NOTE if config.visual_steps else "",
        rule=config.rule,
        witnesses=[other.name for other in study.witnesses],
        faithfulness=faithful,
    )


def _files(entries: list[ClassEntry]) -> set[str]:
    shown = [s for e in entries for c in e.components for s in (*c.images, c.visual) if s is not None]
    return {file for s in shown for file in (s.file, s.region) if file is not None}
