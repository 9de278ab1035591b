"""Explanations of one class's images, in the forms that are clustered: one pass of the engine for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance import Patches, PixelBands, attribute
from pfungst.relevance.composites import Composite
from pfungst.spurious.heads import FeatureHead, logits_of

Images = Callable[[Sequence[int]], Tensor]  # rows → (n, C, H, W) in [0, 1]
Kind = Literal["place", "content", "bands"]
GRID, BANDS = 14, 8  # patches across an image; frequency bands of the power law


@dataclass(frozen=True)
class View:
    """Vectors of a class's images to be clustered, and what the members of a cluster may share.

    Attributes:
        name: of the view.
        vectors: (N, D).
        kinds: what is tried: a place in the image (that of the mean heatmap), content wherever it is (what
            raises the features that they share), frequency bands.
    """

    name: str
    vectors: np.ndarray
    kinds: tuple[Kind, ...] = ("place", "content")


@dataclass(frozen=True)
class Explanations:
    """Relevance for the logit of a class, of N of its images, in float32.

    Attributes:
        class_: its index.
        maps: (N, R, S) by patches.
        spectra: (N, B) by frequency bands.
        psi: (N, D) by penultimate features, w_k ⊙ φ / T.
        predicted: (N,) the class that the model gives.
    """

    class_: int
    maps: np.ndarray
    spectra: np.ndarray
    psi: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)

    def views(self) -> list[View]:
        """Heatmaps, features and spectra."""
        maps = View("heatmaps", self.maps.reshape(len(self), -1))
        return [
            maps,
            View("features", self.psi),
            View("spectra", self.spectra, ("place", "content", "bands")),
        ]


def explain(
    head: FeatureHead,
    class_: int,
    images: Images,
    count: int,
    composite: str | Composite = "auto",
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> Explanations:
    """Explain the logit of a class on its images.

    Args:
        head: the classifier.
        images: gives the images of rows.
        count: how many there are.
        composite: rules of LRP.
        batch_size: images at a time; memory is that of one batch and of what is returned.
        progress: called with the number of images of each batch.

    Raises:
        InputError: no images, or what :func:`pfungst.relevance.attribute` raises.
    """
    if not count:
        raise InputError(f"class {class_} has no images to explain", "pass at least one")
    basis, maps, spectra, psi, predicted = PixelBands(count=BANDS), [], [], [], []
    for start in range(0, count, batch_size):
        x = images(range(start, min(start + batch_size, count))).to(head.device)
        found = attribute(_Logits(head), x, class_, composite, basis).values.float()  # (n, B, H, W)
        spectra.append(found.sum((2, 3)).cpu())
        grid = Patches(max(1, x.shape[-1] // GRID))
        heat = found.sum(1, keepdim=True)
        maps.append(grid.contract(heat, torch.ones_like(heat)).cpu())
        with torch.no_grad():
            phi, logits = head.features_and_logits(x)
        psi.append(head.linear.psi(phi, class_).float().cpu())
        predicted.append(logits.argmax(1).cpu())
        if progress is not None:
            progress(len(x))
    arrays = (torch.cat(parts).numpy() for parts in (maps, spectra, psi, predicted))
    return Explanations(class_, *arrays)


class _Logits(torch.nn.Module):
    def __init__(self, head: FeatureHead) -> None:
        super().__init__()
        self.model = head.model

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model(x))
