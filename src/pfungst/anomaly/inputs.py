"""What a detector accepts: images, arrays of any other rank, tables, prepared data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from pfungst.errors import InputError

_SLACK = 0.5  # how far noise may carry images out of [0, 1] before they are taken for normalised ones


def unwrap(X: Any) -> tuple[Any, Any]:
    """Images and their condition from a `Prepared`; (X, None) for bare data."""
    if hasattr(X, "images") and hasattr(X, "condition"):
        return X.images, X.condition
    return X, None


def as_samples(estimator: Any, X: Any, reset: bool) -> Tensor:
    """Validated samples (N, *sample), float64 where float64 or integers were given, else float32.

    Tables of rank 2 go through scikit-learn's validation (names of columns, sparse, empty). At fit the
    shape of a sample is remembered as ``sample_shape_``; later data must have it.

    Raises:
        InputError: not numeric, empty, NaN or infinite, images out of range, another shape than at fit.
    """
    if isinstance(X, Tensor) and X.ndim <= 2:
        X = X.detach().cpu().numpy()
    if isinstance(X, np.ndarray) and X.ndim > 2:
        if X.dtype.kind not in "fiub":
            raise InputError(f"an array of dtype {X.dtype} is not numeric", "pass float32 or float64")
        X = _tensor(X)
    if not isinstance(X, Tensor):
        try:
            table = validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32])
        except ValueError as error:
            raise InputError(
                str(error), "pass a table (N, D) of finite numbers, with the columns of the training data"
            ) from None
        x = _tensor(table)
    else:
        x = _check_array(X)
    shape = tuple(x.shape[1:])
    if reset:
        estimator.sample_shape_ = shape
        estimator.n_features_in_ = int(np.prod(shape))
    elif estimator.sample_shape_ not in (None, shape):
        raise InputError(
            f"samples of shape {shape} given to a {type(estimator).__name__} fitted on samples of shape "
            f"{estimator.sample_shape_}",
            "prepare them like the training data",
        )
    return x


def _tensor(array: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_array(x: Tensor) -> Tensor:
    images = x.ndim == 4
    if x.numel() == 0:
        raise InputError(f"data of shape {tuple(x.shape)} are empty", "pass at least one sample")
    if images and not x.is_floating_point():
        raise InputError(f"images of dtype {x.dtype}", "convert them to float32 in [0, 1]: images / 255")
    if x.is_complex():
        raise InputError("complex data", "pass real numbers")
    x = x.detach()
    if x.dtype != torch.float32:
        x = x.double() if not x.is_floating_point() or x.dtype == torch.float64 else x.float()
    low, high = (v.item() for v in torch.aminmax(x))
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        raise InputError(
            f"NaN or infinity in {len(bad)} of {len(x)} samples (first: index {bad[0]})",
            "remove or repair these samples",
        )
    if images and (low < -_SLACK or high > 1 + _SLACK):
        raise InputError(
            f"images have values from {low:.3g} to {high:.3g}",
            "pass images in [0, 1]; the detector normalises them itself (mean, std)",
        )
    return x


def check_finite(scores: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The scores (N,), in the dtype asked for.

    Raises:
        InputError: one is NaN or infinite, or the dtype cannot hold it.
    """
    bad = ~torch.isfinite(scores)
    if bool(bad.any()):
        raise InputError(
            f"the scores of {int(bad.sum())} of {bad.numel()} samples are NaN or infinite (first: index "
            f"{int(bad.nonzero()[0])})",
            "scale the data, for example to unit variance, and see that the weights of a network in front "
            "are finite",
        )
    if dtype is None or dtype == scores.dtype:
        return scores
    info, size = torch.finfo(dtype), scores.abs()
    lost = (size > info.max) | ((size > 0) & (size < info.tiny))
    if bool(lost.any()):
        raise InputError(
            f"{str(dtype).removeprefix('torch.')} cannot hold a score of {scores[lost][0].item():.3g}",
            "pass float64, or scale the data, for example to unit variance",
        )
    return scores.to(dtype)
