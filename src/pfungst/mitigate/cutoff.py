"""Where to cut: a low-pass proposed from the measured spectrum of relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from pfungst.errors import InputError
from pfungst.measure import auroc
from pfungst.relevance import DCTBands, PixelBands, Relevance


class Cutoff(NamedTuple):
    """A proposed low-pass.

    Attributes:
        cutoff: zigzag index; coefficients below it are kept.
        kept: share of the positive relevance below it, mean over inputs.
        separation: AUROC of the relevance below it between abnormal and normal, None without labels.
    """

    cutoff: int
    kept: float
    separation: float | None


def propose_cutoff(
    spectrum: Relevance | ArrayLike,
    edges: Sequence[int] | None = None,
    labels: ArrayLike | None = None,
    tolerance: float = 0.02,
    keep: float = 0.5,
    image_size: tuple[int, int] | None = None,
) -> Cutoff:
    """The lowest band edge below which the model still has what it needs.

    Relevance in bands sums to the score, so the sum of the bands below an edge is the part of the score that
    a low-pass at that edge leaves (weights of the prototypes unchanged). With labels of a validation split,
    the proposal is the lowest edge at which that part separates abnormal from normal as well as at the best
    edge, less `tolerance` of AUROC: higher frequencies add exposure but no discrimination. Without labels it
    is the lowest edge that keeps the share `keep` of the positive relevance: a guess, to be verified by
    measuring the mended model.

    Args:
        spectrum: relevance in `DCTBands` or `PixelBands` (N, B[, H, W]), or an array (N, B).
        edges: of the bands, B + 1 zigzag indices; read from the basis where it has them.
        labels: (N,) 1 = abnormal; both classes. Never those of the test data.
        tolerance: AUROC given up for a lower cut-off.
        keep: share of relevance kept where there are no labels, in (0, 1].
        image_size: (height, width) of the images, for `DCTBands` relevance whose edges are given by count.

    Raises:
        InputError: not a spectrum, edges that do not fit, no positive relevance.
    """
    bands, resolved = _read(spectrum, edges, image_size)
    if not 0 < keep <= 1 or tolerance < 0:
        raise InputError(
            f"keep {keep}, tolerance {tolerance}", "keep lies in (0, 1], tolerance is not negative"
        )
    positive = np.maximum(bands, 0)
    whole = positive.sum(1)
    if not (whole > 0).any():
        raise InputError("the spectrum holds no positive relevance", "explain inputs that have a score")
    shares = (np.cumsum(positive, 1)[whole > 0] / whole[whole > 0, None]).mean(0)
    filled = np.diff(resolved) > 0
    if labels is None:
        best = int(np.flatnonzero(filled & (shares >= keep - 1e-9))[0])
        return Cutoff(resolved[best + 1], float(shares[best]), None)
    areas = np.array([auroc(labels, part) for part in np.cumsum(bands, 1).T])
    if np.isnan(areas).any():
        raise InputError("labels of one class only", "pass normal and abnormal inputs, or no labels")
    best = int(np.flatnonzero(filled & (areas >= areas[filled].max() - tolerance))[0])
    return Cutoff(resolved[best + 1], float(shares[best]), float(areas[best]))


def _read(
    spectrum: Relevance | ArrayLike, edges: Sequence[int] | None, image_size: tuple[int, int] | None
) -> tuple[np.ndarray, list[int]]:
    if isinstance(spectrum, Relevance):
        basis, values = spectrum.basis, spectrum.values.detach().double().cpu().numpy()
        if not isinstance(basis, (DCTBands, PixelBands)):
            raise InputError(f"relevance in {basis!r} has no spectrum", "explain with DCTBands(count=20)")
        if isinstance(basis, PixelBands):
            image_size = values.shape[-2:]
            values = values.sum((2, 3))
        if edges is None and image_size is not None:
            edges = basis.resolve(*image_size)
        if edges is None:
            raise InputError(
                "the size of the images is not known", "pass image_size=(height, width) or edges"
            )
    else:
        values = spectrum.numpy() if isinstance(spectrum, torch.Tensor) else np.asarray(spectrum)
        values = values.astype(np.float64)
        if edges is None:
            raise InputError("an array has no band edges", "pass edges=")
    resolved = [int(e) for e in edges]
    if values.ndim != 2 or values.shape[1] != len(resolved) - 1:
        raise InputError(
            f"{len(resolved) - 1} bands for a spectrum of shape {values.shape}",
            "pass one edge more than bands",
        )
    return values, resolved
