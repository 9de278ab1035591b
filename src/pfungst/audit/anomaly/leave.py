"""The mended detector leaves the audit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pfungst.audit.anomaly.measure import Run
from pfungst.audit.anomaly.prepare import Study
from pfungst.audit.mended import COMPARED, About, preparation, resolved, write_mended
from pfungst.errors import InputError


def write_detector(study: Study, model: str, run: Run, filter_: nn.Module, folder: Path) -> str:
    """Write the mended detector of the first seed, with the threshold of the audit; returns a note.

    Args:
        model: its specification. run: what it said of the deployed images. filter_: what is in front of it.
        folder: of this detector.
    """
    from pfungst.anomaly.module import as_module  # with scikit-learn

    detector = copy.copy(run.detector)
    detector.threshold_ = run.threshold
    try:
        outputs = as_module(detector).outputs
    except InputError:
        outputs = ("score",)
    rows = np.unique(np.linspace(0, len(study.labels) - 1, COMPARED).round().astype(int))
    about = About(
        kind="detector",
        name=f"{study.test.name} / {model}",
        spec=resolved(model),
        condition=preparation(study.deployed.condition),
        audited=str(study.deployed.condition),
        size=study.config.size,
        outputs=list(outputs),
        threshold=run.threshold,
        mended=f"{filter_} in front",
    )
    items = [study.deployed.items[i] for i in rows]
    expected = [torch.from_numpy(run.scores[rows])]
    return write_mended(folder, about, detector.save, study.deployed.images[rows], expected, items)
