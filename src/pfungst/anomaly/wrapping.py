"""Detectors of other libraries, and whatever has a score, as detectors of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfungst.anomaly.base import Detector
from pfungst.anomaly.own import wrap_fitted
from pfungst.errors import InputError


def wrap(estimator: Any, shape: Sequence[int] | None = None, method: str = "mean") -> Detector:
    """A detector with the scores of a fitted estimator, that explains itself in every basis.

    Args:
        estimator: scikit-learn's KernelDensity (Gaussian kernel), OneClassSVM (RBF kernel) or
            NearestNeighbors (Euclidean), PyOD's KNN or KDE, anomalib's Patchcore or Padim (the model or its
            torch module); or anything else with a score, or a torch module, that :class:`OwnDetector` takes,
            explained where it is a module that reconstructs.
        shape: of a sample, for estimators that were fitted on flattened images, e.g. (3, 28, 28).
        method: for NearestNeighbors, which has no score of its own: "mean", "largest" or "median" of the
            distances.

    Raises:
        InputError: an estimator without a score, not fitted, or with a kernel or metric that is not covered.
    """
    from pfungst.anomaly.wrapped import NoReadout, Wrapped  # with scikit-learn

    module = type(estimator).__module__.split(".")[0]
    if module == "anomalib":
        from pfungst.anomaly.wrap_anomalib import wrap_anomalib

        return wrap_anomalib(estimator)
    if isinstance(estimator, type):
        raise InputError(f"{estimator.__name__} is a class", "fit an instance first")
    shape = None if shape is None else tuple(shape)
    try:
        return Wrapped(estimator, shape, method)._read()
    except NoReadout:
        return wrap_fitted(estimator, shape)
