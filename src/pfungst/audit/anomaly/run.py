"""The anomaly audit: explain, measure, mitigate, for every category and detector."""

from __future__ import annotations

import time
import warnings
from functools import cache, partial
from pathlib import Path

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.mitigation import fixed_filter
from pfungst.audit.anomaly.result import AnomalyResult, Entry
from pfungst.audit.machine import circumstances
from pfungst.audit.result import Skipped, save
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace, refuse_old_result
from pfungst.conditions import Condition
from pfungst.data import ImageSet, open_images
from pfungst.datasets import digits_c
from pfungst.datasets.synthetic import make_parts
from pfungst.device import choose_device
from pfungst.errors import DataError, PfungstWarning, UnreadableImages
from pfungst.features import combined, file_key
from pfungst.progress import progress_bar


def run(config: AnomalyConfig) -> AnomalyResult:
    """Run the audit and write ``result.json`` and the arrays into ``config.out``.

    Everything that can be wrong with the input is found before anything is computed. Finished categories
    survive an interruption; the same configuration with ``resume`` goes on from there.

    Returns:
        The result, as written.

    Raises:
        ConfigError, DataError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    refuse_old_result(config)
    choose_device(config.device)
    fixed_filter(config.mitigate, config.size)
    conditions = [Condition.parse(config.original), Condition.parse(config.deployed)]
    for condition in conditions:
        condition.check(config.size)
    if isinstance(config.data, Path) and not config.data.exists():
        raise DataError(f"{config.data} does not exist", "check the path")
    from pfungst.audit.anomaly import verdict  # with scikit-learn, which takes half as long as torch
    from pfungst.audit.anomaly.entry import evaluate, mean_scores
    from pfungst.audit.anomaly.fitted import FittedDetectors, check_detector

    for text in config.model:
        check_detector(text, config.size)
    sets = open_sets(config)
    for images in sets:
        group_columns(images.items, config.groups)
    workspace = Workspace(config)
    detectors = FittedDetectors(config.device, sets)

    notes: list[str] = []
    entries: list[Entry] = []
    skipped: dict[str, str] = {}
    with progress_bar("checking images", len(sets) * (1 + len(config.model))) as bar:
        if not config.skip_bad and isinstance(config.data, Path):
            check_all(sets)
        for images in sets:
            bar.say(images.name)
            bar.advance()
            notes += [f"{images.name}: {note}" for note in images.notes]
            prepared = cache(partial(images.prepare_many, conditions, config.size, skip_bad=config.skip_bad))
            state = _state(images)
            for model in config.model:
                name = f"{images.name} {model}"
                entry = workspace.load_part(f"{name} {state}", Entry)
                if entry is None:
                    original, deployed = prepared()
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always", PfungstWarning)
                        entry, arrays = evaluate(model, original, deployed, config, detectors)
                    entry.notes += [str(w.message) for w in caught if issubclass(w.category, PfungstWarning)]
                    entry.arrays = workspace.save_arrays(name, arrays)
                    entry.skipped = [Skipped(id=id_, reason=reason) for id_, reason in original.skipped]
                    workspace.save_part(f"{name} {state}", entry)
                entries.append(entry)
                skipped |= {f"{images.name}: {s.id}": s.reason for s in entry.skipped}
                bar.advance()
    if workspace.resumed:
        notes.append(f"{workspace.resumed} finished parts were taken over from an interrupted run")

    mean = mean_scores(entries)
    result = AnomalyResult(
        title=f"{', '.join(config.model)} on {config.data}",
        **circumstances(config, started),
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
    )
    save(result, workspace.folder)
    workspace.finish({entry.arrays for entry in entries})
    return result


def _state(images: ImageSet) -> str:
    """Names the items and the files they lie in as they are now; made images follow from the configuration."""
    found = []
    for item in images.items:
        files = [f for f in (item.image, item.mask) if isinstance(f, Path)]
        found.append(
            (item.id, item.split, item.label, item.groups, [file_key(f) for f in files if f.exists()])
        )
    return combined(found)


def open_sets(config: AnomalyConfig) -> list[ImageSet]:
    """The image sets to audit, each with normal training images and labelled test images.

    Raises:
        DataError: a set lacks one of them.
        ConfigError: a category does not exist.
    """
    wanted = config.category or None
    if config.data == "synthetic":
        sets = make_parts(wanted, seed=config.seed)
    elif config.data == "digits-c":
        sets = digits_c(wanted, seed=config.seed)
    else:
        sets = open_images(config.data, category=wanted)
    for images in sets:
        train = images.select(split="train", label="good")
        test = images.select(split="test")
        if len(train) < 2:
            raise DataError(
                f"{images.name} in {config.data} has {len(train)} normal training images",
                "mark at least 2 images as split 'train' and label 'good' (MVTec: train/good)",
            )
        labels = test.labels
        if len(test) == 0 or labels.min() == labels.max():
            missing = "defective" if len(test) and not labels.any() else "normal"
            raise DataError(
                f"{images.name} in {config.data} has no {missing} test images",
                "the audit measures detection, so it needs both normal and defective test images",
            )
    return sets


def check_all(sets: list[ImageSet]) -> None:
    """Decode every image of every set once, so that a bad file in the last category stops the audit at once.

    Raises:
        UnreadableImages: names the bad files of all sets.
    """
    problems: list[tuple[str, str]] = []
    for images in sets:
        try:
            images.check()
        except UnreadableImages as error:
            problems += error.problems
    if problems:
        raise UnreadableImages(problems)
