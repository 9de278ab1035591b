"""What ``--dry-run`` says an anomaly audit would cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.recognised import amount, duration, prepared_few
from pfungst.conditions import Condition
from pfungst.data import ImageSet
from pfungst.errors import DataError


def estimate(sets: Sequence[ImageSet], conditions: Sequence[Condition], config: AnomalyConfig) -> str:
    """Time and memory of an anomaly audit, from each detector fitted on a few images.

    The lower bound takes the fit for linear in the training images and a score for independent of them, the
    upper one for quadratic and linear.

    Raises:
        DataError: none of the images that are tried can be read.
    """
    (original, _), seconds = prepared_few(sets, conditions, config.size)
    tests = original.splits == "test"
    if tests.all() or not tests.any():
        raise DataError(
            f"{sets[0].name}: none of the images tried can be read", "mend them, or try --skip-bad"
        )
    mended = config.mitigate != "none"
    low = high = seconds
    for model in config.model:
        fit, score, explain = _timed(model, original.images[~tests], original.images[tests], config)
        for images in sets:
            n_train = sum(i.split == "train" and i.label == "good" for i in images.items)
            n_test = sum(i.split == "test" for i in images.items)
            more = max(n_train / max(int((~tests).sum()), 1), 1.0)
            fits, scores = config.seeds * (1 + mended), 2 * n_test * config.seeds * (1 + mended) + 350
            rest = n_test * (3 + 3 * mended)
            low += fits * fit * more + scores * score + rest * explain
            high += fits * fit * more**2 + (scores * score + rest * explain) * more
    largest = max(map(len, sets))
    kept = original.images[0].nbytes * largest * (2 + 2 * mended)
    return (
        f"estimate: {duration(low)} to {duration(high)}, of which {duration(seconds)} for the images; at "
        f"least {amount(kept)} of memory"
    )


def _timed(model: str, train: Any, test: Any, config: AnomalyConfig) -> tuple[float, float, float]:
    """Seconds of one fit, of the score of one image and of its explanation."""
    from pfungst.anomaly import detector_from_spec  # with scikit-learn

    detector = detector_from_spec(model, seed=config.seed, device=config.device)
    times = [time.perf_counter()]
    detector.fit(train)
    times.append(time.perf_counter())
    detector.anomaly_score(test)
    times.append(time.perf_counter())
    if detector.explains:
        detector.explain(test)
    times.append(time.perf_counter())
    fit, score, explain = np.diff(times).tolist()
    return fit, score / len(test), explain / len(test)
