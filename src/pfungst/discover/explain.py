"""Explanations of one subject's images, in the forms that are clustered: one pass of the engine for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pfungst.discover.series import as_read
from pfungst.errors import InputError
from pfungst.memory import give_back
from pfungst.relevance import DCTBands, Patches, PixelBands, attribute
from pfungst.relevance.composites import Composite
from pfungst.spurious.heads import FeatureHead, LinearHead, logits_of

if TYPE_CHECKING:
    from pfungst.anomaly import Detector

Images = Callable[[Sequence[int]], Tensor]  # rows → (n, C, H, W) in [0, 1]
Marks = Callable[[Sequence[int]], Tensor]  # rows → (n, H, W) of 0 and 1: where something is burnt in
Kind = Literal["place", "content", "tone", "bands", "text", "words"]
_GIVEN_BACK = 64  # images after which freed memory goes back: seldom enough to cost 3 % of the time
GRID, BANDS = 14, 8  # patches across an image; frequency bands of the power law


@dataclass(frozen=True)
class View:
    """Vectors of a class's images to be clustered, and what the members of a cluster may share.

    Attributes:
        name: of the view.
        vectors: (N, D).
        kinds: what is tried: a place in the image (that of the mean heatmap), content wherever it is (what
            raises the features that they share), tone (mean and spread of each channel), frequency bands.
    """

    name: str
    vectors: np.ndarray
    kinds: tuple[Kind, ...] = ("place", "content", "tone")


@dataclass(frozen=True)
class Explanations:
    """Relevance for the logit of a class, or for an anomaly score, of N images, in float32.

    Attributes:
        maps: (N, R, S) by patches.
        spectra: (N, B) by frequency bands.
        evidence: (N,) the logit, or the score.
        said: (N,) boolean, whether the model gives the class, or flags the image.
        psi: (N, D) by penultimate features, w_k ⊙ φ / T; None of a detector.
        alike: (N, R, S) of the similarity with the class's mean representation: BiLRP of an image with all
            of the class, summed over their features; of encoders.
        words: of texts (N, V) by words of the vocabulary, has: (N, V) whether they are there.
        vocabulary: V words that six texts or more have. Maps of texts are by place among the words.
    """

    maps: np.ndarray
    spectra: np.ndarray
    evidence: np.ndarray
    said: np.ndarray
    psi: np.ndarray | None = None
    alike: np.ndarray | None = None
    words: np.ndarray | None = None
    has: np.ndarray | None = None
    vocabulary: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.maps)

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, Explanations]]) -> Explanations:
        """Those of parts of the images, each with the numbers of its rows, in order."""
        order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
        names = [f.name for f in fields(cls) if isinstance(getattr(parts[0][1], f.name), np.ndarray)]
        found: dict[str, Any] = {n: np.concatenate([getattr(e, n) for _, e in parts])[order] for n in names}
        return cls(**found)

    def views(self) -> list[View]:
        """Heatmaps, features, similarity where known, and spectra; of texts words, features and places."""
        if self.words is not None and self.psi is not None:
            by_place = View("places", self.maps.reshape(len(self), -1), ("place",))
            by_word = View("words", self.words, ("words", "content", "place"))
            return [by_word, View("features", self.psi, ("content", "words")), by_place]
        flat = {"heatmaps": self.maps, "features": self.psi, "similarity": self.alike}
        views = [View(name, v.reshape(len(self), -1)) for name, v in flat.items() if v is not None]
        return [*views, View("spectra", self.spectra, ("place", "content", "tone", "bands"))]


def explain(
    head: FeatureHead,
    class_: int,
    images: Images,
    count: int,
    composite: str | Composite = "auto",
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
    *,
    alike: tuple[torch.nn.Module, Tensor] | None = None,
    weights: LinearHead | None = None,
) -> Explanations:
    """Explain the logit of a class on its images.

    Args:
        head: the classifier.
        images: gives the images of rows.
        count: how many there are.
        composite: rules of LRP.
        batch_size: images at a time; memory is that of one batch and of what is returned.
        progress: called with the number of images of each batch.
        alike: an encoder and a representation (K,): the similarity with it is explained too, where given.
        weights: those of ψ, instead of the head's: the same for images of different probes, which would form
            clusters by probe otherwise.

    Raises:
        InputError: no images, or what :func:`pfungst.relevance.attribute` raises.
    """
    if not count:
        raise InputError(f"class {class_} has no images to explain", "pass at least one")
    basis, parts = PixelBands(count=BANDS), _Parts(count)
    for start in range(0, count, batch_size):
        x = images(range(start, min(start + batch_size, count))).to(head.device)
        model, seen = as_read(head.model, x)
        found = attribute(_Logits(model), seen, class_, composite, basis).values.float()  # (n, B, H, W)
        with torch.no_grad():
            phi, logits = head.features_and_logits(x)
        near = {}
        if alike is not None:
            encoder, centre = alike
            pairs = attribute(encoder, x, centre.to(x), composite, Patches(side_of(x.shape[-1])))
            near = {"alike": pairs.values.float()}
        parts.add(
            spectra=found.sum((2, 3)),
            maps=_patches(found.sum(1)),
            psi=(weights or head.linear).psi(phi, class_).float(),
            evidence=logits[:, class_].float(),
            said=logits.argmax(1) == class_,
            **near,
        )
        if progress is not None:
            progress(len(x))
    return Explanations(**parts.arrays)


def explain_scores(
    detector: Detector,
    images: Images,
    count: int,
    threshold: float,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> Explanations:
    """Explain the scores A(x) of an anomaly detector, in the shape of :func:`explain`.

    Args:
        detector: fitted. threshold: score above which an image is flagged. Else as of :func:`explain`.

    Raises:
        InputError: no images, or what the detector's ``explain`` raises.
    """
    if not count:
        raise InputError("there are no images to explain", "pass at least one")
    parts = _Parts(count)
    for start in range(0, count, batch_size):
        x = images(range(start, min(start + batch_size, count)))
        heat = detector.explain(x)
        pixels = heat.values.float()
        parts.add(
            maps=_patches(pixels if pixels.ndim == 3 else pixels.sum(1)),
            spectra=detector.explain(x, DCTBands(count=BANDS)).values.float(),
            evidence=heat.score.float(),
            said=heat.score > threshold,
        )
        if progress is not None:
            progress(len(x))
    return Explanations(**parts.arrays)


class _Parts:
    """What is kept of each batch, in arrays for all: small pieces between large ones would hold the memory of
    every batch."""

    def __init__(self, count: int) -> None:
        self.count, self.filled, self.arrays = count, 0, dict[str, Any]()

    def add(self, *, said: Tensor, **more: Tensor) -> None:
        """What is known of the next batch, (n, …) by name."""
        start, self.filled = self.filled, self.filled + len(said)
        for name, values in {"said": said, **more}.items():
            found = values.detach().cpu().numpy()
            if name not in self.arrays:
                self.arrays[name] = np.empty((self.count, *found.shape[1:]), found.dtype)
            self.arrays[name][start : self.filled] = found
        if start // _GIVEN_BACK != self.filled // _GIVEN_BACK:
            give_back()


def side_of(width: int) -> int:
    """Side of the patches of images of this width."""
    return max(1, width // GRID)


def _patches(heat: Tensor) -> Tensor:
    """Sums of (n, H, W) by patches, (n, R, S)."""
    heat = heat[:, None]
    return Patches(side_of(heat.shape[-1])).contract(heat, torch.ones_like(heat))


class _Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model(x))
