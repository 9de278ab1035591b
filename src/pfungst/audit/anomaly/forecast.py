"""What ``--dry-run`` says an anomaly audit would cost: each detector is tried on two numbers of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log
from time import perf_counter
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pfungst import measure
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.explain import BANDS, FLIPPED, SCORED
from pfungst.audit.anomaly.measure import FIT_SHARE, RATES, RESAMPLES
from pfungst.audit.recognised import Clock, Cost, some
from pfungst.conditions import Condition
from pfungst.data import ImageSet
from pfungst.data.roles import same_training
from pfungst.errors import DataError
from pfungst.memory import peak_memory

_FIRST = 8  # training images of the first fit, with which Python imports and weights are read
_FITTED = 96  # training images at most that are fitted, and half of them
_SCORED = 12  # test images that are scored and explained


class _Tried(NamedTuple):
    """Seconds of a fit, of the score of an image, its heatmap and its bands; bytes of the detector."""

    fit: float
    score: float
    heat: float
    bands: float
    held: float

    def grown(self, half: _Tried, often: float) -> _Tried:
        """With so many times as many training images, by the power that twice as many take: a fit at most
        their square."""
        powers = [log(max(a, 1e-9) / max(b, 1e-9), 2) for a, b in zip(self, half, strict=True)]
        most = (2.0, 1.0, 1.0, 1.0, 1.0)
        pairs = zip(self, powers, most, strict=True)
        return _Tried._make(a * often ** min(max(p, 0.0), m) for a, p, m in pairs)


def estimate(
    sets: Sequence[ImageSet],
    conditions: Sequence[Condition],
    config: AnomalyConfig,
    now: Callable[[], float] = perf_counter,
) -> Cost:
    """Time and memory of an anomaly audit; all sets are taken to be like the first one.

    Args:
        now: the clock, in seconds.

    Raises:
        DataError: none of the images that are tried can be read.
    """
    clock = Clock(now)
    train, test = sets[0].select(split="train", label="good").items, sets[0].select(split="test").items
    rows = [(train, _FITTED), (test, _SCORED)]
    few = ImageSet(sets[0].name, [of[i] for of, most in rows for i in some(np.arange(len(of)), most)])
    often = sum(map(len, sets)) / len(few)
    found = clock(lambda: few.prepare_many(conditions, config.size, skip_bad=True), often)[0]
    if not config.skip_bad:
        clock(few.check, often)
    tests = found.splits == "test"
    if tests.all() or not tests.any():
        raise DataError(f"{few.name}: none of the images tried can be read", "mend them, or try --skip-bad")
    normal, others = found.images[~tests], found.images[tests]
    mended = 1 + (config.mitigate != "none")
    fits, held = config.seeds * mended, 0.0
    for model in config.model:
        clock(partial(_try, clock, model, normal[:_FIRST], others, config))
        half, whole = (_try(clock, model, x, others, config) for x in (normal[::2], normal))
        for first, images in ((s is group[0], s) for group in same_training(sets) for s in group):
            good, count = len(images.select(split="train", label="good")), len(images.select(split="test"))
            share = 1.0 if config.protocol == "published" else FIT_SHARE
            t = whole.grown(half, share * good / len(normal))
            scored = fits * (2 * count + (1 - share) * good) + min(FLIPPED, count) * SCORED
            explained = mended * count * (2 * t.heat + t.bands) + config.examples * t.bands
            explained += good * t.bands * (config.mitigate.strip(":") == "lowpass")
            clock.seconds += first * fits * t.fit + scored * t.score + explained
            y = np.arange(count) % 2
            scores, rates = np.random.default_rng(0).random(count), tuple(RATES.values())
            drawn = partial(measure.bootstrap_scores, y, scores, 0.5, rates, RESAMPLES, seed=0)
            clock(drawn, 2 * fits)
            held = max(held, config.seeds * t.held)
    largest = max(map(len, sets))
    maps = 2 * mended * normal[0, 0].nbytes * largest
    memory = peak_memory() + normal[0].nbytes * largest * 2 * mended + maps + held
    return Cost(clock.seconds, memory, without=["--discover"] if config.discover else [])


def _try(clock: Clock, model: str, train: Tensor, test: Tensor, config: AnomalyConfig) -> _Tried:
    from pfungst.anomaly import detector_from_spec  # with scikit-learn

    detector = clock(lambda: detector_from_spec(model, seed=config.seed, device=config.device), 0)
    made = clock.last
    clock(lambda: detector.fit(train), 0)
    seconds = [made + clock.last]
    clock(lambda: detector.anomaly_score(test), 0)
    seconds.append(clock.last / len(test))
    for basis in ([], [BANDS]):
        if detector.explains:
            clock(partial(detector.explain, test, *basis), 0)
        seconds.append(clock.last / len(test) if detector.explains else 0.0)
    held = sum(getattr(value, "nbytes", 0) for value in vars(detector).values())
    return _Tried._make([*seconds, float(held)])
