"""Images with only a feature where nobody collected any: components by a rule on the training images, images
of other classes by the pool (003, appendix B, with class labels instead of people)."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.prepare import Given, load_audited, stored
from pfungst.audit.workspace import Workspace
from pfungst.errors import ConfigError, DataError, PfungstWarning
from pfungst.files import write as write_text
from pfungst.papers.made import Wish
from pfungst.spurious import NeuralPCA, write_components

FOUND = 30  # images a class: of other classes, training ones that choose its component and those of the pool
AMONG = 5  # components of largest variance, of which one is chosen


def most_shown(alpha: Tensor, count: int = FOUND) -> int:
    """The component that adds most to the logit of its class in images of other classes.

    Args:
        alpha: (N, C) α of C components in N images of other classes.
        count: of the images of highest α, over which it is averaged.
    """
    return int(alpha.topk(min(count, len(alpha)), dim=0).values.mean(0).argmax())


def pooled(wish: Wish, options: dict[str, Any]) -> dict[str, Path]:
    """The files for ``components`` and ``spurious`` of the first model, made once for an output folder.

    Args:
        options: of the audit of the first model: model, checkpoint, train, val, size, classes.

    Raises:
        DataError: a class has no validation images of others.
    """
    if importlib.util.find_spec("duckdb") is None:
        raise ConfigError(
            "the package duckdb is not installed", "pip install 'pfungst[pool]', or give --spurious"
        )
    from pfungst.pool import PoolModel, direction, index, score, search

    folder = wish.out / "data" / "pooled"
    made = {"components": folder / "components.json", "spurious": folder / "spurious"}
    kept = {**made, "features": folder / "features"}
    if (folder / "complete").exists():
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    config = ClassifierConfig.build(
        **options, out=folder / "work", device=wish.device, features=kept["features"], witness=["none"]
    )
    study = Given.check(config).study(load_audited(config))
    store = stored(config, study.head, study.train, Workspace(config, "pooled"), "train", "float16")
    with warnings.catch_warnings():  # of classes with few images, which the audit names itself
        warnings.simplefilter("ignore", PfungstWarning)
        npca = NeuralPCA(config.n_components, seed=config.seed).fit(study.head, store)
    phi, labels = torch.from_numpy(np.asarray(store.features[:], dtype=np.float32)), np.asarray(store.labels)
    chosen = {
        k: most_shown(npca.alpha_features(phi[torch.from_numpy(labels != k)], k)[:, :AMONG])
        for k in npca.classes_
    }
    write_components(made["components"], {k: [c] for k, c in chosen.items()}, study.fingerprint, by="rule")
    for number, (item, k) in enumerate(zip(study.val.items, study.val.labels, strict=True)):
        place = folder / "images" / str(k) / f"{number:06d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        item.read().save(place)
    pool = folder / "pool"
    index(folder / "images", pool)
    own, size = study.classifier.preprocessing, study.classifier.preprocessing.size
    model = PoolModel("first", config.model, own.condition, size, config.checkpoint)
    score(pool, [model], device=config.device)
    label_of = {k: label for label, k in study.outputs.index.items()}
    for k, c in chosen.items():
        hits = search(pool, direction(npca, k, c), "first", top=len(study.val.items))
        others = [hit.id for hit in hits if Path(hit.id).parts[0] != str(k)][:FOUND]
        if not others:
            raise DataError(f"{config.val} has images of {study.names[k]} only", "give those of others too")
        place = made["spurious"] / f"spurious_class_{label_of[k]}_component_{c}"
        place.mkdir(parents=True)
        for id_ in others:
            shutil.copy(folder / "images" / id_, place / id_.replace("/", "-"))
    shutil.rmtree(folder / "work", ignore_errors=True)
    write_text(folder / "complete", "")
    return kept
