"""The components of a class: ranked by a cheap rule, the first tested by intervention and pictured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import Component, Explained, Faithful, Shown, Tested
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.images import Labelled, to_uint8
from pfungst.audit.pictures import PictureFolder
from pfungst.audit.result import Interval, Model
from pfungst.errors import InputError
from pfungst.measure import limits, share_outside
from pfungst.measure.faithfulness import Flipping
from pfungst.spurious import (
    Evidence,
    FeatureHead,
    FeatureStore,
    Looked,
    NeuralPCA,
    Visualisation,
    Witness,
    correct,
    evidence,
    looks,
    select,
    two_groups,
    visualise,
)
from pfungst.spurious.evidence import region, relevance
from pfungst.spurious.heads import logits_of

_IMAGES = 5  # shown per component, as Neuhaus et al. 2023 show
_BINS = 32
OTHERS = 128  # images of all classes that regions are pasted into
_FEWEST = 6  # images that evidence needs
FAITHFUL = 24  # images that faithfulness is measured on
_PATCHES = 8  # a side
LOOKED = 300  # training images of a class whose looks are measured


class Part(Model):
    """A class before p is corrected over all classes; `blank`: it is also the answer to an empty image."""

    explained: Explained
    evidence: list[Evidence]
    on: dict[int, str]
    blank: bool


def n_images(tests: int) -> int:
    """Images per component with which so many tests can prove something: n that all agree have p = 2^−n."""
    return math.ceil(math.log2(max(tests, 1) / limits.P_SPURIOUS)) + 2


@dataclass(frozen=True)
class Explainer:
    """Ranks, tests and pictures components, one class at a time.

    Args:
        study: what is audited.
        npca: fitted on the training features, with its model attached.
        stores: features of the training and validation images.
        tests: components of all classes that will be tested.
    """

    study: Study
    npca: NeuralPCA
    stores: dict[str, FeatureStore]
    tests: int

    def __call__(self, class_: int) -> Part:
        """The first components of a class by the rule, and those that people judged."""
        adds = [self._adds(class_, c) for c in range(self._known(class_))]
        order, visual = self.rank(class_, adds)
        phi = self.stores["train"].of_class(class_)
        alpha = self.npca.alpha_features(phi, class_).double().numpy()  # (n, m)
        apart = {c: two_groups(alpha[:, c]) for c in order}
        found, on, blank = self._test(class_, order, apart)
        known = self._known(class_)
        explained = Explained(
            index=class_,
            name=self.study.names[class_],
            n_train=self.npca.n_samples_[class_],
            components=[self._component(class_, c, adds[c], alpha[:, c], visual) for c in order],
            ranked=known if visual is None else min(self.study.config.candidates, known),
        )
        return Part(explained=explained, evidence=found, on=on, blank=blank)

    def _known(self, class_: int) -> int:
        return len(self.npca.components_[class_])

    def rank(self, class_: int, adds: list[float]) -> tuple[list[int], Visualisation | None]:
        """Components to test, first those to look at first, then the judged; and feature visualisations."""
        config, known = self.study.config, self._known(class_)
        judged = [] if self.study.judged is None else self.study.judged.get(class_, [])
        if any(c >= known for c in judged):
            raise InputError(
                f"class {self.study.names[class_]} has {known} components, the components file names "
                f"{judged}",
                "use the training images the components were found on",
            )
        size = self.study.train.size
        options: dict[str, Any] = {"shape": (3, size, size), "steps": config.visual_steps}
        options |= {"batch_size": config.batch_size, "seed": config.seed}
        if config.rule == "npfv":
            pairs = select(self.npca, class_, config.shown, config.candidates, **options).pairs
            first = [c for _, c in pairs]
        else:
            first = np.argsort([-a for a in adds], kind="stable")[: config.shown].tolist()
        order = list(dict.fromkeys([*first, *judged]))
        if config.visual_steps == 0:
            return order, None
        return order, visualise(self.npca, [(class_, c) for c in order], **options)

    def _top(self, class_: int, component: int, count: int) -> list[tuple[str, float]]:
        return self.npca.top_images(class_, component, min(count, self.npca.n_samples_[class_]))

    def _adds(self, class_: int, component: int) -> float:
        return float(np.mean([alpha for _, alpha in self._top(class_, component, self.npca.n_images)]))

    # --- interventions -----------------------------------------------------------------------------------

    def _test(
        self, class_: int, order: list[int], apart: dict[int, float]
    ) -> tuple[list[Evidence], dict[int, str], bool]:
        """Evidence of the components, and whether it is on validation or training images.

        On validation images where they show the component: where it adds at least half of what it adds in
        as many training images. A feature that deployment removes is in the training images only. Last,
        whether the class is also the answer to an empty image.
        """
        store, n = self.stores[ORIGINAL], self.npca.n_images
        rows = store.rows(class_)
        alpha = self.npca.alpha_features(store.of_class(class_), class_).numpy() if len(rows) else None
        picked: dict[str, dict[int, list[str]]] = {"validation": {}, "training": {}}
        for c in order:
            trained = self._top(class_, c, n)
            if alpha is not None and len(rows) >= _FEWEST:
                best = np.argsort(-alpha[:, c], kind="stable")[:n]
                if alpha[best, c].mean() >= np.mean([a for _, a in trained[: len(best)]]) / 2:
                    picked["validation"][c] = [store.ids[rows[i]] for i in best]
                    continue
            if len(trained) >= _FEWEST:
                picked["training"][c] = [id_ for id_, _ in trained]
        others = self._others(class_).to(self._device)
        witnesses = [other.of(class_) for other in self.study.witnesses]
        found: list[Evidence] = []
        how: dict[str, Any] = {"looked": self._looked(class_), "n_images": n, "n_targets": 1}
        how |= {"batch_size": min(self.study.config.batch_size, 16), "seed": self.study.config.seed}
        for on, ids in picked.items():
            if ids and len(others):
                images = _stacked(self._set(on), sorted({i for some in ids.values() for i in some}))
                seen, parted = images.to(self._device), [apart[c] for c in ids]
                found += evidence(self.npca, class_, list(ids), seen, others, witnesses, apart=parted, **how)
        judges = witnesses or [Witness(self._head.runs, class_)]
        blank = len(others) > 0 and self._answered_blank(others, judges)
        return found, {c: on for on, ids in picked.items() for c in ids}, blank

    def _looked(self, class_: int) -> Looked | None:
        """Looks of training images of the class and of others, drawn by lot; None where there are too few."""
        store, (labels, others) = self.stores["train"], self._looks_of_all
        own = np.random.default_rng(self.study.config.seed).permutation(store.rows(class_))[:LOOKED]
        if len(own) < looks.FEWEST or (labels != class_).sum() < looks.FEWEST:
            return None
        phi = torch.from_numpy(store.features[np.sort(own)].astype(np.float32))
        alpha = self.npca.alpha_features(phi, class_).double().numpy()
        measured = self.measured_looks(np.sort(own))
        return Looked(measured, {name: values[labels != class_] for name, values in others.items()}, alpha)

    @cached_property
    def _looks_of_all(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Labels and looks of training images of all classes, drawn by lot."""
        store = self.stores["train"]
        rows = np.random.default_rng(self.study.config.seed).permutation(len(store.labels))
        rows = rows[: 4 * LOOKED // 3]
        return store.labels[rows], self.measured_looks(rows)

    def measured_looks(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What training images look like, by their rows: (N,) or (N, …) by name."""
        ids = [self.stores["train"].ids[r] for r in rows]
        parts = [looks.measure(_stacked(self.study.train, ids[i : i + 32])) for i in range(0, len(ids), 32)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @staticmethod
    def _answered_blank(others: Tensor, judges: list[Witness]) -> bool:
        """Whether a judge gives the class to the mean colour of others: being left proves nothing then."""
        blank = others.mean((0, 2, 3), keepdim=True).expand(2, -1, *others.shape[2:])
        with torch.no_grad():
            return any(bool((logits_of(j.model(blank)).argmax(1) == j.class_).any()) for j in judges)

    def _set(self, on: str) -> Labelled:
        return self.study.val if on == "validation" else self.study.train

    def _others(self, class_: int) -> Tensor:
        """Validation images of other classes, the same for all components."""
        rng, store = np.random.default_rng(self.study.config.seed), self.stores[ORIGINAL]
        rows = rng.permutation(np.flatnonzero(store.labels != class_))
        return _stacked(self.study.val, [store.ids[r] for r in rows[:OTHERS]])

    @property
    def _head(self) -> FeatureHead:
        assert self.npca.model is not None
        return self.npca.model

    @property
    def _device(self) -> torch.device:
        return self._head.device

    def heats(self, images: Tensor, class_: int, component: int) -> Tensor:
        """Relevance of α, (N, H, W)."""
        head, alpha = self._head, self.npca.alpha_of(class_, component)
        return relevance(lambda x: alpha(head.features(x)), images.to(self._device)).float()

    def faithfulness(self, classes: list[Explained]) -> Faithful | None:
        """Of the maps that regions are made of, on one image of as many components; None where too few."""
        pairs = [(e.index, c.component, c.images[0].id) for e in classes for c in e.components]
        chosen = np.linspace(0, len(pairs) - 1, min(FAITHFUL, len(pairs))).round().astype(int)
        pairs = [pairs[i] for i in chosen]
        if len(pairs) < limits.FAITHFUL_IMAGES:
            return None
        images = _stacked(self.study.train, [id_ for *_, id_ in pairs]).to(self._device)
        heats = torch.cat([self.heats(images[i : i + 1], k, c) for i, (k, c, _) in enumerate(pairs)])
        head, alphas = self._head, [self.npca.alpha_of(k, c) for k, c, _ in pairs]

        def score(x: Tensor) -> Tensor:
            phi = head.features(x)
            return torch.stack([alpha(phi) for alpha in alphas], 1)

        patch = math.ceil(self.study.train.size / _PATCHES)
        target = torch.arange(len(pairs), device=images.device)
        how: dict[str, Any] = {"steps": 8, "orders": 2, "seed": self.study.config.seed}
        found = Flipping(score, images, patch=patch, target=target, **how).of(heats)
        value = Interval.copied(found)
        return Faithful(value=value, images=len(pairs), beats_random=found.beats_random, words=str(found))

    # --- pictures ----------------------------------------------------------------------------------------

    def _component(
        self, class_: int, component: int, adds: float, alpha: np.ndarray, visual: Visualisation | None
    ) -> Component:
        counts, edges = np.histogram(alpha, _BINS)
        train, pictures, store = self.study.train, PictureFolder(self.study.config.out), self.stores["train"]
        top = self._top(class_, component, _IMAGES)
        images = _stacked(train, [id_ for id_, _ in top])
        heats = self.heats(images, class_, component)
        regions, stem = region(heats).cpu().numpy(), f"class-{class_:04d}-component-{component:03d}"
        confidence = {store.ids[r]: float(store.confidence[r]) for r in store.rows(class_)}
        pixels = [to_uint8(image) for image in images]
        shown = [
            Shown(
                id=id_,
                file=pictures.photo(pixels[i], id_),
                region=pictures.region(pixels[i], regions[i], f"{stem}-region-{i + 1}"),
                alpha=value,
                confidence=min(1.0, confidence[id_]),
            )
            for i, (id_, value) in enumerate(top)
        ]
        return Component(
            component=component,
            variance=float(self.npca.explained_variance_ratio(class_)[component]),
            adds=adds,
            off_object=self._off_object([id_ for id_, _ in top], heats.cpu().numpy()),
            images=shown,
            visual=None if visual is None else self._visual(visual, class_, component, pictures, stem),
            histogram=counts.tolist(),
            limits=(float(edges[0]), float(edges[-1])),
        )

    def _off_object(self, ids: list[str], heats: np.ndarray) -> float | None:
        """Share of the relevance off the object, mean over the images that have a mask."""
        masks = [self.study.train.mask(id_, self.study.config.masks) for id_ in ids]
        known = {i: mask for i, mask in enumerate(masks) if mask is not None and mask.any()}
        if not known:
            return None
        outside = share_outside(heats[list(known)], np.stack(list(known.values())))
        return float(np.nanmean(outside)) if np.isfinite(outside).any() else None

    @staticmethod
    def _visual(
        visual: Visualisation, class_: int, component: int, pictures: PictureFolder, stem: str
    ) -> Shown:
        row = visual.pairs.index((class_, component))
        return Shown(
            id=f"{stem}-npfv",
            file=pictures.visual(to_uint8(visual.images[row].float()), f"{stem}-npfv"),
            alpha=float(visual.alpha[row]),
            confidence=min(1.0, float(visual.confidence[row])),
        )


def finished(parts: list[Part]) -> list[Explained]:
    """The classes with evidence corrected over all of them, what is proven first."""
    flat = correct([e for part in parts for e in part.evidence])
    by_key = {(e.class_, e.component): e for e in flat}
    out = []
    for part in parts:
        k, components = part.explained.index, []
        for c in part.explained.components:
            found = by_key.get((k, c.component))
            tested = None if found is None else _tested(found, part.on[c.component], part.blank)
            components.append(c.model_copy(update={"tested": tested}))
        components.sort(key=lambda c: c.order, reverse=True)
        out.append(part.explained.model_copy(update={"components": components}))
    return out


def _tested(found: Evidence, on: str, blank: bool) -> Tested:
    word, reason = found.word, found.reason
    suspect = word == "spurious" or (found.sufficient and found.retained.low >= limits.RETAINED)
    if blank and suspect and not found.divides:
        word, suspect = "unclear", False
        reason = "the class is also the answer to an empty image, so being left proves nothing"
    said = {"word": word, "suspect": suspect, "reason": reason}
    return Tested.copied(found, on=on, images=len(found.rows), **said)


def _stacked(images: Labelled, ids: list[str]) -> Tensor:
    if not ids:
        return torch.zeros(0, 3, images.size, images.size)
    return torch.stack([images.image(id_) for id_ in ids])
