"""The components of one class: chosen, ranked and pictured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pfungst.audit.classifier.data import Labelled, to_uint8
from pfungst.audit.classifier.pictures import Heatmaps, PictureFolder
from pfungst.audit.classifier.rank import SUSPECT, concentration, harm
from pfungst.audit.classifier.result import Component, Shown
from pfungst.measure import best_split, share_outside
from pfungst.spurious import FeatureStore, NeuralPCA, Visualisation, visualise

_IMAGES = 5  # per component, as in paper 003
_BINS = 32


@dataclass
class Settings:
    """What the ranking of one class needs.

    Attributes:
        candidates: components of highest variance that are ranked.
        shown: how many are kept.
        steps: of the feature visualisation; 0 leaves it out.
        masks: folder of masks, or None.
    """

    candidates: int
    shown: int
    steps: int
    masks: Path | None
    batch_size: int
    seed: int


def rank_class(
    class_: int,
    npca: NeuralPCA,
    store: FeatureStore,
    train: Labelled,
    heatmaps: Heatmaps,
    pictures: PictureFolder,
    settings: Settings,
    keep: Sequence[int] = (),
) -> tuple[list[Component], int]:
    """The most harmful-looking components of a class, and how many were ranked.

    Args:
        class_: class index.
        npca: fitted, with its model attached.
        store: features of the training images.
        train: the training images.
        heatmaps, pictures: see :mod:`pfungst.audit.classifier.pictures`.
        settings: see :class:`Settings`.
        keep: components that are shown in any case.

    Returns:
        Components by falling harm, then the `keep` that would have been left out.
    """
    known = len(npca.components_[class_])
    numbers = list(range(min(settings.candidates, known)))
    numbers += [c for c in keep if c < known and c not in numbers]
    alpha = npca.alpha_features(store.of_class(class_), class_).numpy()  # (n, m)
    splits = {c: best_split(alpha[:, c]) for c in numbers}
    cues = {c: concentration(splits[c]) for c in numbers}
    visual = _visualise(class_, numbers, npca, train.size, settings)
    visual_row = {} if visual is None else {c: row for row, (_, c) in enumerate(visual.pairs)}
    confidence: dict[int, float] = (
        {} if visual is None else {c: min(1.0, float(visual.confidence[r])) for c, r in visual_row.items()}
    )
    count = min(_IMAGES, npca.n_samples_[class_])
    off_object = _off_object(class_, numbers, npca, train, heatmaps, settings, count)
    harms = {c: harm(splits[c], confidence.get(c), off_object.get(c)) for c in numbers}
    order = sorted(numbers, key=lambda c: (-harms[c], c))
    chosen = order[: settings.shown]
    chosen += [c for c in order[settings.shown :] if c in keep]

    rows = store.rows(class_)
    own = {store.ids[r]: min(1.0, float(store.confidence[r])) for r in rows}
    ratio = npca.explained_variance_ratio(class_)
    components = []
    for c in chosen:
        top = npca.top_images(class_, c, count)
        images = torch.stack([train.image(id_) for id_, _ in top])
        stem = f"class-{class_:04d}-component-{c:03d}"
        shown_visual = None
        if visual is not None:
            row = visual_row[c]
            images = torch.cat([images, visual.images[row][None].float()])
        heats = None if heatmaps.layer is None else heatmaps(images, class_, [c] * len(images))
        shown = []
        for i, (id_, value) in enumerate(top):
            pixels = to_uint8(images[i])
            file = pictures.photo(pixels, id_)
            cam = None if heats is None else pictures.heat(heats[i], pixels, f"{stem}-heat-{i + 1}")
            shown.append(Shown(id=id_, file=file, gradcam=cam, alpha=value, confidence=own[id_]))
        if visual is not None:
            pixels = to_uint8(images[-1])
            shown_visual = Shown(
                id=f"{stem}-npfv",
                file=pictures.visual(pixels, f"{stem}-npfv"),
                gradcam=None if heats is None else pictures.heat(heats[-1], pixels, f"{stem}-npfv-heat"),
                alpha=float(visual.alpha[visual_row[c]]),
                confidence=confidence[c],
            )
        values = alpha[:, c].astype(np.float64)
        counts, edges = np.histogram(values, _BINS)
        components.append(
            Component(
                component=c,
                harm=harms[c],
                concentration=cues[c],
                share=splits[c].share,
                gap=splits[c].gap,
                visual_confidence=confidence.get(c),
                off_object=off_object.get(c),
                variance=float(ratio[c]),
                suspect=harms[c] >= SUSPECT,
                images=shown,
                visual=shown_visual,
                histogram=counts.tolist(),
                limits=(float(edges[0]), float(edges[-1])),
                split=splits[c].threshold,
            )
        )
    return components, len(numbers)


def _visualise(
    class_: int, numbers: list[int], npca: NeuralPCA, size: int, settings: Settings
) -> Visualisation | None:
    if settings.steps == 0:
        return None
    return visualise(
        npca,
        [(class_, c) for c in numbers],
        (3, size, size),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _off_object(
    class_: int,
    numbers: list[int],
    npca: NeuralPCA,
    train: Labelled,
    heatmaps: Heatmaps,
    settings: Settings,
    count: int,
) -> dict[int, float]:
    """Share of the heatmap off the object, mean over the top images that have a mask."""
    if heatmaps.layer is None:
        return {}
    result = {}
    for c in numbers:
        masked = []
        for id_, _ in npca.top_images(class_, c, count):
            mask = train.mask(id_, settings.masks)
            if mask is not None and mask.any():
                masked.append((id_, mask))
        if masked:
            images = torch.stack([train.image(id_) for id_, _ in masked])
            heats = heatmaps(images, class_, [c] * len(images))
            outside = share_outside(heats, np.stack([mask for _, mask in masked]))
            if np.isfinite(outside).any():
                result[c] = float(np.nanmean(outside))
    return result
