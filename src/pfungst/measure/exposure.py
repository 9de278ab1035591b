"""How much of the relevance lies where it should not, and where errors and subgroups gather."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure.scores import Array

Sign = Literal["positive", "net", "magnitude"]


def share(relevance: ArrayLike, selected: ArrayLike, sign: Sign = "positive") -> Array:
    """Share of each input's relevance on a selection of components.

    Args:
        relevance: (N, *basis). selected: boolean or weights in [0, 1], (*basis) or (N, *basis).
        sign: what counts: positive relevance only, the net sum, or magnitudes.

    Returns:
        (N,); NaN where the whole is zero.
    """
    r = np.asarray(relevance, dtype=np.float64)
    m = np.asarray(selected, dtype=np.float64)
    if m.shape not in (r.shape, r.shape[1:]):
        raise InputError(
            f"a selection of shape {m.shape} for relevance of shape {r.shape}", "match the components"
        )
    if sign == "positive":
        r = np.maximum(r, 0)
    elif sign == "magnitude":
        r = np.abs(r)
    elif sign != "net":
        raise InputError(f"unknown sign {sign!r}", "use positive, net or magnitude")
    axes = tuple(range(1, r.ndim))
    part, whole = (r * m).sum(axes), r.sum(axes)
    return np.divide(part, whole, out=np.full(len(r), np.nan), where=whole != 0)


def share_above(spectrum: ArrayLike, band: int, sign: Sign = "positive") -> Array:
    """Share of relevance in band `band` and all higher ones. spectrum (N, B) or (N, B, H, W) → (N,)."""
    r = np.asarray(spectrum, dtype=np.float64)
    if r.ndim < 2 or not 0 <= band <= r.shape[1]:
        raise InputError(f"band {band} of relevance of shape {r.shape}", "bands are the second axis")
    if r.ndim > 2:
        if sign == "positive":
            r = np.maximum(r, 0)
        elif sign == "magnitude":
            r = np.abs(r)
        r = r.sum(tuple(range(2, r.ndim)))
    return share(r, np.arange(r.shape[1]) >= band, sign)


def share_outside(relevance: ArrayLike, masks: ArrayLike, sign: Sign = "positive") -> Array:
    """Share of relevance outside the mask. relevance (N, H, W), masks (N, H, W) → (N,)."""
    return share(relevance, 1 - np.asarray(masks, dtype=np.float64), sign)


def share_on_region(
    relevance: ArrayLike, rows: tuple[int, int], cols: tuple[int, int], sign: Sign = "positive"
) -> Array:
    """Share of relevance on a rectangle, rows and columns half-open. relevance (N, H, W) → (N,)."""
    r = np.asarray(relevance)
    selected = np.zeros(r.shape[1:], dtype=bool)
    selected[..., slice(*rows), slice(*cols)] = True
    return share(r, selected, sign)


class ConfusionShare(NamedTuple):
    """The class that attracts most errors, its share of all errors, and their number."""

    label: Any
    share: float
    errors: int


def confusion_share(labels: ArrayLike, predicted: ArrayLike) -> ConfusionShare:
    """Share of the errors that fall into one class (Kauffmann et al. 2025: 55.1 % into "garbage truck")."""
    y, p = np.asarray(labels), np.asarray(predicted)
    if y.shape != p.shape or y.ndim != 1:
        raise InputError(
            f"predictions of shape {p.shape} for labels of shape {y.shape}", "pass one per sample"
        )
    wrong = p[y != p]
    if not len(wrong):
        return ConfusionShare(None, 0.0, 0)
    values, counts = np.unique(wrong, return_counts=True)
    best = int(counts.argmax())
    return ConfusionShare(values[best].item(), float(counts[best] / len(wrong)), len(wrong))


def capped_weights(labels: ArrayLike, cap: float = 10) -> Array:
    """Weights that cap each class's size at `cap`: min(1, cap / n_class) (Kauffmann et al. 2025)."""
    if not cap > 0:
        raise InputError(f"cap {cap} is not positive", "the paper uses 10")
    _, code, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.minimum(1.0, cap / counts)[code]
