"""Detectors of time series, which the discussion of 001 names: what they detect, and which frequencies they
read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfungst import measure
from pfungst.anomaly import detector_from_spec
from pfungst.audit.result import Interval
from pfungst.data import series as data
from pfungst.errors import DataError
from pfungst.papers.made import Made, Numbers, Wish
from pfungst.relevance.time_bands import TimeBands

_DETECTORS = ("kde", "d2neighbors", "mixture:components=2")
_BANDS = 16


@dataclass(frozen=True)
class Series:
    """Series of one length.

    Attributes:
        values: (N, T). labels: (N,) 1 = abnormal. train: (N,) bool.
    """

    values: np.ndarray
    labels: np.ndarray
    train: np.ndarray


def series_of(file: Path) -> Series:
    """The series of a file with columns ``label`` (good, or what is wrong) and ``split`` (train, test), see
    :func:`pfungst.data.series.read_series`.

    Raises:
        DataError: columns are missing, values are not numbers, or there is nothing to fit or to test.
    """
    given = data.read_series(file, ("label", "split"))
    texts = sorted({*given.columns} - {"label", "split", "id"})
    if texts or given.values.shape[1] > 1:
        what = f"column {texts[0]!r} holds no numbers" if texts else "it has several channels"
        raise DataError(f"{file}: {what}", "every column beside label and split is a point in time")
    labels = (given.columns["label"] != "good").astype(int)
    train = given.columns["split"] == "train"
    fits, tests = train & (labels == 0), ~train
    if fits.sum() < 4 or len(set(labels[tests].tolist())) < 2:
        raise DataError(
            f"{file} has {int(fits.sum())} good series to fit, {int(tests.sum())} to test",
            "give at least 4 good ones to fit, and good and abnormal ones to test",
        )
    return Series(given.values[:, 0], labels, train)


def made_series(count: int, length: int = 64, seed: int = 0) -> Series:
    """Slow waves with sensor noise; a third of the test series has a bump of half a period."""
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    values = np.sin(2 * np.pi * (t / length * rng.uniform(1.8, 2.2, (count, 1)) + rng.random((count, 1))))
    values += rng.normal(0, 0.25, values.shape)
    train = np.arange(count) < count // 2
    labels = (~train & (np.arange(count) % 3 == 0)).astype(int)
    width = max(2, length // 5)
    for i in np.flatnonzero(labels):
        start = int(rng.integers(length - width))
        values[i, start : start + width] += 1.2 * np.sin(np.pi * np.arange(width) / width)
    return Series(values, labels, train)


def band_shares(detector: object, series: np.ndarray, transform: str) -> np.ndarray:
    """Mean over series of the share of |relevance| in each band, (B,)."""
    values = np.abs(np.asarray(detector.explain(series, TimeBands(_BANDS, transform)).values))  # type: ignore[attr-defined]
    return (values / values.sum(1, keepdims=True)).mean(0)


def detect(wish: Wish) -> Made:
    """AUROC of detectors, and the share of their relevance in each band of frequencies, by DCT and
    Fourier."""
    if wish.stand_in and wish.data is None:
        series = made_series(60 if wish.tiny else 600)
    else:
        series = series_of(wish.given())
    test = ~series.train
    ours: dict[str, dict[str, Interval | float]] = {}
    shares: dict[str, dict[str, float]] = {}
    for spec in (wish.models or ";".join(_DETECTORS)).split(";"):
        detector = detector_from_spec(spec).fit(series.values[series.train & (series.labels == 0)])
        scores = np.asarray(detector.anomaly_score(series.values[test]))
        found = measure.bootstrap_scores(
            series.labels[test], scores, detector.threshold_, ("auroc", "f1"), 300, seed=0
        )
        ours[spec] = {
            name: Interval(value=v.value, low=v.low, high=v.high)
            for name, v in (("AUROC", found["auroc"]), ("F1", found["f1"]))
        }
        abnormal = series.values[test & (series.labels == 1)]
        for transform in ("dct", "fourier"):
            by_band = band_shares(detector, abnormal, transform)
            shares[f"{spec}, {transform}"] = {f"band {b + 1}": float(v) for b, v in enumerate(by_band)}
    caption = f"Mean over the abnormal series; {_BANDS} bands of equal width, the lowest frequencies first."
    tables = [
        Numbers.of("Detection", ours, {}),
        Numbers.of("Share of relevance by frequency", shares, {}, "percent", caption),
    ]
    return Made(tables)
