"""The classifier audit: find spurious components, measure what they do, switch them off."""

from __future__ import annotations

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfungst.audit.classifier import verdict
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.data import Labelled
from pfungst.audit.classifier.entry import Settings, rank_class
from pfungst.audit.classifier.models import Classifier, load_classifier, short_name
from pfungst.audit.classifier.pictures import Heatmaps, PictureFolder
from pfungst.audit.classifier.prepare import Given
from pfungst.audit.classifier.result import ClassEntry, ClassifierResult
from pfungst.audit.classifier.scores import Answers, answer, interval, loss, rate, spurious
from pfungst.audit.classifier.task import write_label_task
from pfungst.audit.machine import circumstances
from pfungst.audit.result import Skipped, Verdict, save
from pfungst.audit.workspace import Workspace
from pfungst.device import choose_device
from pfungst.errors import DataError, InputError, PfungstWarning
from pfungst.features import combined
from pfungst.progress import progress_bar
from pfungst.spurious import (
    FeatureHead,
    FeatureStore,
    NeuralPCA,
    SpuFix,
    SpuriousFolder,
    extract_features,
)
from pfungst.spurious.visualise import NOTE


def run(config: ClassifierConfig) -> ClassifierResult:
    """Run the audit; writes ``result.json``, ``images/`` and ``label-task.json`` into ``config.out``.

    Classes, files and components are checked before the model is loaded; unreadable images are all named by the pass
    over the images. Finished features and classes survive an interruption.

    Returns:
        The result, as written.

    Raises:
        ConfigError, DataError, InputError, CheckpointError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    given = Given.check(config)
    classifier = load_classifier(
        config.model,
        config.checkpoint,
        trust_checkpoint=config.trust_checkpoint,
        size=config.size,
        condition=config.condition,
    )
    head = find_head(classifier, config)
    name = short_name(config.model)
    fingerprint = {**head.fingerprint(), "name": name}
    matched = given.match(config, head.linear.n_classes, fingerprint)
    names, judged, shown = matched.names, matched.judged, matched.spurious
    train = Labelled(*matched.train, classifier.preprocessing)
    val = Labelled(*matched.val, classifier.preprocessing)
    if shown is not None:
        shown.transform = partial(train.condition, size=train.size, key="spurious")
    workspace = Workspace(config)

    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PfungstWarning)
        stores = _extract(config, workspace, head, train, val, shown)
        npca = NeuralPCA(config.n_components, n_images=10, seed=config.seed).fit(head, stores["train"])
        entries, layer = _entries(config, workspace, npca, stores["train"], train, names, judged)
        chosen = choose_fix(entries, judged, config.fix)
        fixed = SpuFix(head, npca, chosen, reference=config.reference) if chosen else None
    notes += list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, PfungstWarning)))
    if workspace.resumed:
        notes.append(f"{workspace.resumed} finished classes were taken over from an interrupted run")

    before = {name: answer(head, stores[name]) for name in stores if name != "train"}
    after = {name: answer(head, stores[name], fixed) for name in stores if name != "train"}
    total = _measure(entries, before, after, config.seed)
    skipped = [
        Skipped(id=f"{name}: {id_}", reason=reason)
        for name, store in stores.items()
        for id_, reason in store.meta["skipped"]
    ]
    result = ClassifierResult(
        title=f"{name} on {Path(config.train).resolve().name}",
        **circumstances(config, started),
        verdict=Verdict(level="sound", headline=""),  # follows from the rest, below
        skipped=skipped,
        notes=notes,
        model=name,
        fingerprint=fingerprint,
        layer=head.layer,
        weights=classifier.weights,
        preprocessing=classifier.preprocessing.to_dict(),
        chosen_by="nothing" if not chosen else "people" if judged is not None else "ranking",
        reference=config.reference,
        n_classes=head.linear.n_classes,
        n_validation=len(stores["val"]),
        entries=entries,
        npfv_note=NOTE if config.steps else "",
        heat_layer=layer,
        **total,
    )
    result.metrics = verdict.metrics(result)
    result.verdict = verdict.judge(result)
    result.notes += verdict.explain_numbers(result)
    npca.save(workspace.folder / "npca")
    write_label_task(workspace.folder, result.title, fingerprint, entries)
    save(result, workspace.folder)
    PictureFolder(workspace.folder).tidy(_files(entries))
    workspace.finish(set())
    return result


def _files(entries: list[ClassEntry]) -> set[str]:
    shown = [s for e in entries for c in e.components for s in (*c.images, c.visual) if s is not None]
    return {file for s in shown for file in (s.file, s.gradcam) if file is not None}


def find_head(classifier: Classifier, config: ClassifierConfig) -> FeatureHead:
    """The classifier's final linear layer, on the device of the audit."""
    device = choose_device(config.device)
    classifier.model.to(device)
    size = classifier.preprocessing.size
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return FeatureHead(classifier.model, config.layer, example.to(device))


def choose_fix(
    entries: list[ClassEntry], judged: dict[int, list[int]] | None, at_most: int
) -> dict[int, list[int]]:
    """Components to switch off: those that people judged spurious, else the first suspects of the ranking."""
    chosen: dict[int, list[int]] = {}
    for entry in entries:
        if judged is not None:
            entry.judged = judged.get(entry.index, [])
            entry.fixed = sorted(entry.judged)
        else:
            entry.fixed = sorted([c.component for c in entry.components if c.suspect][:at_most])
        for component in entry.components:
            component.fixed = component.component in entry.fixed
        if entry.fixed:
            chosen[entry.index] = entry.fixed
    return chosen


def _extract(
    config: ClassifierConfig,
    workspace: Workspace,
    head: FeatureHead,
    train: Labelled,
    val: Labelled,
    shown: SpuriousFolder | None,
) -> dict[str, FeatureStore]:
    sets: dict[str, Labelled | SpuriousFolder] = {"train": train, "val": val}
    if shown is not None:
        sets["spurious"] = shown
    stores = {}
    data: Any
    for name, data in sets.items():
        dtype = "float16" if name == "train" else "float32"
        key = combined(head.fingerprint(), head.layer, dtype)
        folder = workspace.working(f"{name} {key}")
        if config.features is not None:
            folder = config.features / f"{data.key()}-{key}"
        stores[name] = extract_features(
            head,
            data,
            folder,
            batch_size=config.batch_size,
            dtype=dtype,
            device=config.device,
            workers=config.workers,
            ray=config.ray,
            skip_bad=config.skip_bad,
        )
    missing = sorted(set(train.labels) - set(stores["train"].classes))
    if missing:
        raise DataError(f"classes {missing[:10]} have no readable training images", "repair them")
    return stores


def _entries(
    config: ClassifierConfig,
    workspace: Workspace,
    npca: NeuralPCA,
    store: FeatureStore,
    train: Labelled,
    names: dict[int, str],
    judged: dict[int, list[int]] | None,
) -> tuple[list[ClassEntry], str | None]:
    assert npca.model is not None
    state = combined(npca.model_fingerprint_, train.state(config.masks), judged)
    example = torch.stack([train.image(id_) for id_ in store.ids[:4]])
    heatmaps = Heatmaps(npca.model, npca, example, config.batch_size)
    pictures = PictureFolder(workspace.folder)
    settings = Settings(
        config.candidates, config.shown, config.steps, config.masks, config.batch_size, config.seed
    )
    entries = []
    with progress_bar("classes", len(npca.classes_)) as bar:
        for k in npca.classes_:
            bar.say(names[k])
            entry = workspace.load_part(f"class {k} {state}", ClassEntry)
            if entry is None:
                keep = [] if judged is None else judged.get(k, [])
                known = len(npca.components_[k])
                if any(c >= known for c in keep):
                    raise InputError(
                        f"class {k} {names[k]} has {known} components, the components file names {keep}",
                        "use the training images the components were found on",
                    )
                components, ranked = rank_class(k, npca, store, train, heatmaps, pictures, settings, keep)
                entry = ClassEntry(
                    index=k,
                    name=names[k],
                    n_train=npca.n_samples_[k],
                    n_validation=0,
                    components=components,
                    ranked=ranked,
                )
                if heatmaps.layer is None:
                    entry.notes.append("the model has no layer with positions, so there are no heatmaps")
                workspace.save_part(f"class {k} {state}", entry)
            entries.append(entry)
            bar.advance()
    return entries, heatmaps.layer


def _measure(
    entries: list[ClassEntry], before: dict[str, Answers], after: dict[str, Answers], seed: int
) -> dict[str, Any]:
    """Fill in the scores of every class; returns those of the whole."""
    val, val_fixed = before["val"], after["val"]
    predicted_as = np.bincount(val.predicted[~val.right], minlength=max(e.index for e in entries) + 1)
    for entry in entries:
        own = val.labels == entry.index
        entry.n_validation = int(own.sum())
        if entry.n_validation:
            entry.accuracy, entry.accuracy_fixed = rate(val.right[own]), rate(val_fixed.right[own])
        else:
            entry.notes.append("the class has no validation images, so nothing was measured on it")
        if others := int((~own).sum()):
            entry.false_positives = float(predicted_as[entry.index] / others)
    total: dict[str, Any] = {
        "accuracy": rate(val.right),
        "accuracy_fixed": rate(val_fixed.right),
        "accuracy_loss": loss(val.right, val_fixed.right, seed),
    }
    if "spurious" not in before:
        return total
    first, per = spurious(val, before["spurious"], seed)
    second, per_fixed = spurious(val_fixed, after["spurious"], seed)
    for entry in entries:
        entry.scores, entry.scores_fixed = per.get(entry.index), per_fixed.get(entry.index)
    gain = second.gain_over(first)
    return total | {
        "mauc": interval(first.mauc, first.interval),
        "mauc_fixed": interval(second.mauc, second.interval),
        "mauc_gain": interval(gain[0], gain[1:]),
        "published_map": first.published_mAP,
        "published_map_fixed": second.published_mAP,
        "triggered": float(np.mean([s.triggered.value for s in per.values()])),
        "triggered_fixed": float(np.mean([s.triggered.value for s in per_fixed.values()])),
    }
