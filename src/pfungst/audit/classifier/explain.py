"""The components of a class: ranked blind, and the first of them pictured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pfungst.audit.classifier.images import to_uint8
from pfungst.audit.classifier.pictures import Heatmaps, PictureFolder
from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import Component, Explained, Shown
from pfungst.errors import InputError
from pfungst.measure import Split, best_split, limits, share_outside
from pfungst.spurious import FeatureStore, NeuralPCA, Visualisation, visualise
from pfungst.spurious.harm import concentration, harm

_IMAGES = 5  # per component, as Neuhaus et al. 2023 show
_BINS = 32


@dataclass(frozen=True)
class Ranked:
    """What the ranking says of one component."""

    component: int
    split: Split
    off_object: float | None
    visual_confidence: float | None = None

    @property
    def harm(self) -> float:
        return harm(self.split, self.visual_confidence, self.off_object)


class Explainer:
    """Ranks and pictures components, one class at a time.

    Args:
        study: what is audited.
        npca: fitted on `store`, with its model attached.
        store: features of the training images.
    """

    def __init__(self, study: Study, npca: NeuralPCA, store: FeatureStore) -> None:
        assert npca.model is not None
        self.study, self.npca, self.store = study, npca, store
        self.config, self.train = study.config, study.train
        example = torch.stack([study.train.image(id_) for id_ in store.ids[:4]])
        self.heatmaps = Heatmaps(npca.model, npca, example, self.config.batch_size)
        self.pictures = PictureFolder(self.config.out)
        self.confidence = dict(zip(store.ids, store.confidence, strict=True))

    def __call__(self, class_: int) -> Explained:
        """The most harmful-looking components of a class and those that people judged, pictured."""
        alpha = self.npca.alpha_features(self.store.of_class(class_), class_).numpy()  # (n, m)
        ranked, shown, visual = self.rank(class_, alpha)
        return Explained(
            index=class_,
            name=self.study.names[class_],
            n_train=self.npca.n_samples_[class_],
            components=[
                self._component(class_, r, alpha[:, r.component].astype(np.float64), visual) for r in shown
            ],
            ranked=ranked,
        )

    def rank(self, class_: int, alpha: np.ndarray) -> tuple[int, list[Ranked], Visualisation | None]:
        """How many components were ranked, those to show by falling harm, and their feature visualisations.

        All candidates are ranked by α and where masks exist the heatmap; only what is shown is visualised,
        and then ranked by that too.
        """
        judged = [] if self.study.judged is None else self.study.judged.get(class_, [])
        known = alpha.shape[1]
        if any(c >= known for c in judged):
            raise InputError(
                f"class {self.study.names[class_]} has {known} components, the components file names "
                f"{judged}",
                "use the training images the components were found on",
            )
        numbers = dict.fromkeys([*range(min(self.config.candidates, known)), *judged])
        ranked = [Ranked(c, best_split(alpha[:, c]), self._off_object(class_, c)) for c in numbers]
        ranked.sort(key=lambda r: (-r.harm, r.component))
        count = self.config.shown
        shown = ranked[:count] + [r for r in ranked[count:] if r.component in judged]
        if self.config.steps == 0:
            return len(ranked), shown, None
        visual = visualise(
            self.npca,
            [(class_, r.component) for r in shown],
            (3, self.train.size, self.train.size),
            steps=self.config.steps,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
        )
        confidences = visual.confidence.clamp(max=1.0).tolist()
        shown = [replace(r, visual_confidence=p) for r, p in zip(shown, confidences, strict=True)]
        return len(ranked), sorted(shown, key=lambda r: (-r.harm, r.component)), visual

    def _top(self, class_: int, component: int) -> list[tuple[str, float]]:
        return self.npca.top_images(class_, component, min(_IMAGES, self.npca.n_samples_[class_]))

    def _off_object(self, class_: int, component: int) -> float | None:
        """Share of the heatmap off the object, mean over the top images that have a mask."""
        if self.heatmaps.layer is None:
            return None
        masks = {id_: self.train.mask(id_, self.config.masks) for id_, _ in self._top(class_, component)}
        masked = {id_: mask for id_, mask in masks.items() if mask is not None and mask.any()}
        if not masked:
            return None
        images = torch.stack([self.train.image(id_) for id_ in masked])
        heats = self.heatmaps(images, class_, [component] * len(images))
        outside = share_outside(heats, np.stack(list(masked.values())))
        return float(np.nanmean(outside)) if np.isfinite(outside).any() else None

    def _component(
        self, class_: int, ranked: Ranked, alpha: np.ndarray, visual: Visualisation | None
    ) -> Component:
        c, split = ranked.component, ranked.split
        images, shown_visual = self._pictures(class_, c, visual)
        counts, edges = np.histogram(alpha, _BINS)
        return Component(
            component=c,
            harm=ranked.harm,
            concentration=concentration(split),
            share=split.share,
            gap=split.gap,
            off_object=ranked.off_object,
            variance=float(self.npca.explained_variance_ratio(class_)[c]),
            suspect=ranked.harm >= limits.SUSPECT,
            images=images,
            visual=shown_visual,
            histogram=counts.tolist(),
            limits=(float(edges[0]), float(edges[-1])),
            split=split.threshold,
        )

    def _pictures(
        self, class_: int, component: int, visual: Visualisation | None
    ) -> tuple[list[Shown], Shown | None]:
        """Writes the images of highest α and the feature visualisation, each with its heatmap."""
        top = self._top(class_, component)
        images = [self.train.image(id_) for id_, _ in top]
        row = None if visual is None else visual.pairs.index((class_, component))
        if visual is not None:
            images.append(visual.images[row].float())
        heats = None
        if self.heatmaps.layer is not None:
            heats = self.heatmaps(torch.stack(images), class_, [component] * len(images))
        pixels = [to_uint8(image) for image in images]
        stem = f"class-{class_:04d}-component-{component:03d}"

        def heat(i: int, name: str) -> str | None:
            return None if heats is None else self.pictures.heat(heats[i], pixels[i], f"{stem}-{name}")

        shown = [
            Shown(
                id=id_,
                file=self.pictures.photo(pixels[i], id_),
                gradcam=heat(i, f"heat-{i + 1}"),
                alpha=value,
                confidence=min(1.0, float(self.confidence[id_])),
            )
            for i, (id_, value) in enumerate(top)
        ]
        if visual is None:
            return shown, None
        return shown, Shown(
            id=f"{stem}-npfv",
            file=self.pictures.visual(pixels[-1], f"{stem}-npfv"),
            gradcam=heat(-1, "npfv-heat"),
            alpha=float(visual.alpha[row]),
            confidence=min(1.0, float(visual.confidence[row])),
        )
