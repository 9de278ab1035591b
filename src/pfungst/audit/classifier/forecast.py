"""What ``--dry-run`` says a classifier audit would cost: a few classes go through it with some images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pfungst.audit.classifier.explain import FAITHFUL, LOOKED, OTHERS, Explainer, finished, n_images
from pfungst.audit.classifier.measure import measure
from pfungst.audit.classifier.mend import chosen, mend, write_classifier
from pfungst.audit.classifier.prepare import Given, Study, extract, load_audited
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.images import Labelled
from pfungst.audit.recognised import Clock, Cost, some
from pfungst.audit.workspace import Workspace
from pfungst.features.workers import loaders
from pfungst.measure.limits import FAITHFUL_IMAGES
from pfungst.memory import peak_memory
from pfungst.spurious import FeatureStore, NeuralPCA, looks

_CLASSES = 3  # that are tried; the first of them also makes what all share
_TRAIN = 48  # training images of each, as many as show looks
_OTHER = 32  # validation images of other classes
_LOADED = 16  # images that are read alone
_STEPS = 10  # the part of the steps of a feature visualisation that is tried
_EACH = 700  # bytes that an image takes in memory: its item, identifier and key


def estimate(given: Given, now: Callable[[], float] = perf_counter) -> Cost:
    """Time and memory of a classifier audit.

    Images are taken to cost what those that are tried do, and components likewise: one of each class is. The
    model is taken to be mended.

    Args:
        now: the clock, in seconds.

    Raises:
        ConfigError, DataError, InputError: the model cannot be loaded, or does not fit the data.
    """
    clock = Clock(now)
    study = clock(lambda: given.study(load_audited(given.config)))
    with TemporaryDirectory() as folder:
        return _tried(study, clock, Path(folder))


def _tried(study: Study, clock: Clock, folder: Path) -> Cost:
    config, sizes = study.config, Counter(study.train.labels)
    judged = study.judged or {}
    tests = config.shown * len(sizes)
    small = _small(study, sizes, n_images(tests), folder)
    rows = np.arange(min(_LOADED, len(small.train)))
    clock.repeated([partial(_pass, _first(small, i)) for i in range(2)], 1)  # of an image of each set
    least = clock.last
    pictures = clock(lambda: torch.stack([small.train[r][1] for r in rows.tolist()]), 0).to(study.head.device)
    load, conditions = clock.last / len(rows), len(study.conditions)
    few = len(small.train) + conditions * len(small.val)
    every = len(study.train) + conditions * len(study.val)
    every += 0 if study.spurious is None else len(study.spurious)
    stores = clock(lambda: _pass(small), 0)
    each = max(clock.last - least, 0) / few
    if (processes := loaders(config.workers, len(study.train))) > 1:
        clock.repeated([lambda: study.head.features(pictures)] * 2, 0)
        each = max(load / processes, clock.last / len(rows))
    clock.seconds += each * every

    known: dict[str, Any] = {
        "n_images": n_images(tests),
        "seed": config.seed,
        "device": str(study.head.device),
    }
    npca = NeuralPCA(config.n_components, **known)
    clock.repeated([lambda: npca.fit(small.head, stores["train"])] * 2, len(study.train) / len(small.train))

    explainer = Explainer(small, npca, stores, tests)
    clock.repeated([lambda: explainer.measured_looks(rows)] * 2, 0)
    look, classes = clock.last / len(rows), npca.classes_ * (1 if len(npca.classes_) > 1 else 2)
    parts = clock.repeated([partial(explainer, k) for k in classes], 0)
    most = 4 * LOOKED // 3  # of all classes
    clock.seconds += look * (min(most, len(study.train)) - min(most, len(small.train)))
    others = min(OTHERS, len(study.val)), min(OTHERS, len(small.val))
    seen = [_looked(npca.n_samples_[k], len(small.train)) for k in classes[1:]]
    component = clock.last - look * float(np.mean(seen)) - load * others[1]
    for k, n in sizes.items():
        tested = min(config.shown, n - 1, config.n_components) + len(judged.get(k, []))
        clock.seconds += tested * component + others[0] * load + look * _looked(n, len(study.train))
    _visual(study, explainer, clock, len(sizes))

    found = finished(parts)
    pairs = min(FAITHFUL, sum(config.shown + len(judged.get(k, [])) for k in sizes))
    if pairs >= FAITHFUL_IMAGES:
        again = found * -(-int(FAITHFUL_IMAGES) // sum(len(e.components) for e in found))
        tried = min(FAITHFUL, sum(len(e.components) for e in again))
        clock(lambda: explainer.faithfulness(again), pairs / tried)
    off = chosen(small, found) or {classes[0]: [0]} if config.fix or judged else {}
    if (fixed := mend(small, npca, off)) is not None:
        clock(lambda: write_classifier(small, fixed, stores[ORIGINAL], folder / "mended"))
    measured = [lambda: measure(small, stores, fixed, npca.classes_)] * 2
    clock.repeated(measured, len(study.val) / len(small.val))

    width = stores["train"].features.shape[1]
    kept = 4 * width * sum(min(n - 1, config.n_components) for n in sizes.values())
    memory = (
        peak_memory() + every * _EACH + kept + 2 * 4 * width * max(0, *(n - _TRAIN for n in sizes.values()))
    )
    disk = width * (2 * len(study.train) + 4 * (every - len(study.train)))
    without = [f"--{name}" for name in ("discover", "ray", "transfer") if getattr(config, name)]
    return Cost(clock.seconds, memory, disk, without)


def _looked(own: int, every: int) -> int:
    """Images whose looks are measured of a class of so many."""
    return min(LOOKED, own) if min(own, every - own) >= looks.FEWEST else 0


def _visual(study: Study, explainer: Explainer, clock: Clock, classes: int) -> None:
    """The visualisations of all classes, from a part of the steps and one batch of pictures."""
    config = study.config
    if not (steps := config.visual_steps):
        return
    names = ("candidates", "shown") if config.rule == "npfv" else ("shown",)
    few = {name: min(getattr(config, name), config.batch_size) for name in names}
    update: dict[str, Any] = {"rule": config.rule, "steps": -(-steps // _STEPS), **few}
    tried = replace(explainer.study, config=explainer.study.config.model_copy(update=update))
    small, k = replace(explainer, study=tried), explainer.npca.classes_[-1]
    adds = [0.0] * len(explainer.npca.components_[k])
    times = steps / update["steps"] * sum(getattr(config, name) for name in names) / sum(few.values())
    clock.repeated([lambda: small.rank(k, adds)] * 2, classes * times)


def _small(study: Study, sizes: Counter[int], own: int, folder: Path) -> Study:
    """The study of a few classes of middling size, with some images and one component of each."""
    order = sorted(sizes, key=lambda k: (sizes[k], k))
    classes = order[max(0, (len(order) - _CLASSES) // 2) :][:_CLASSES]
    train = [row for k in classes for row in some(np.flatnonzero(np.equal(study.train.labels, k)), _TRAIN)]
    labels = np.asarray(study.val.labels)
    val = [row for k in classes for row in some(np.flatnonzero(labels == k), own)]
    val += some(np.flatnonzero(~np.isin(labels, classes)), _OTHER)
    update: dict[str, Any] = {
        "out": folder,
        "resume": False,
        "features": None,
        "skip_bad": True,
        "workers": 0,
        "ray": None,
    }
    update |= {"shown": 1, "rule": "alpha", "steps": 0}
    config = study.config.model_copy(update=update)
    parts: dict[str, Any] = {"train": _part(study.train, train), "val": _part(study.val, sorted(val))}
    return replace(study, config=config, spurious=None, judged=None, **parts)


def _pass(study: Study) -> dict[str, FeatureStore]:
    return extract(study, Workspace(study.config))


def _first(small: Study, number: int) -> Study:
    """The same with one image of each set, in a folder of its own."""
    config = small.config.model_copy(update={"out": small.config.out / f"first-{number}"})
    return replace(small, config=config, train=_part(small.train, [0]), val=_part(small.val, [0]))


def _part(images: Labelled, rows: Sequence[int]) -> Labelled:
    items, labels = [images.items[r] for r in rows], [images.labels[r] for r in rows]
    return Labelled(items, labels, images.condition, images.size)
