"""What makes images alike to an encoder: BiLRP of the most similar pairs, averages over groups, shares on regions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.similarity import regions
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import ORIGINAL, Source
from pfungst.audit.similarity.probing import Plan, Predictions, confusion
from pfungst.audit.similarity.result import Artefact, Group, Pair, Region
from pfungst.conditions import Condition
from pfungst.encoders import Encoder
from pfungst.relevance import Patches
from pfungst.similarity import Factors, PairRelevance, SimilarityExplainer

_GRID = 16  # patches per side, by default at most
_PAIRS = 150  # averaged per group
_STAMPED = 12  # images explained with and without what a condition pastes
_CLASSES = 12  # classes of which pairs are shown
_SHARP = 512  # pixels at most that burnt-in marks are looked for at
_CHANGE = 0.1  # of the largest change by pasting: images changed less hold the artefact already


@dataclass
class Likeness:
    """What the explanations gave."""

    pairs: list[Pair]
    summaries: list[Group]
    regions: list[Region]
    artefacts: list[Artefact]
    arrays: dict[str, np.ndarray]
    conservation: float
    composite: str


def patch_size(config: SimilarityConfig, size: int) -> int:
    """Side of the patches: as asked, else the smallest that gives at most 16 × 16, dividing the image if possible."""
    if config.patches is not None:
        return config.patches
    least = -(-size // _GRID)
    return next((p for p in range(least, 2 * least) if size % p == 0), least)


def similar_pairs(
    embeddings: np.ndarray, index: np.ndarray, units: np.ndarray, count: int
) -> list[tuple[int, int, float]]:
    """The pairs of highest cosine similarity among some images, of different units, no image twice."""
    x = embeddings[index]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    s = x @ x.T
    s[units[index][:, None] == units[index][None]] = -np.inf
    s[np.tril_indices(len(s))] = -np.inf
    found: list[tuple[int, int, float]] = []
    used: set[int] = set()
    for flat in np.argsort(-s, axis=None):
        i, j = divmod(int(flat), len(s))
        if not np.isfinite(s[i, j]) or len(found) == count:
            break
        if i not in used and j not in used:
            found.append((int(index[i]), int(index[j]), float(s[i, j])))
            used |= {i, j}
    return found


def explain(
    encoder: Encoder,
    source: Source,
    plan: Plan,
    found: Predictions,
    embeddings: np.ndarray,
    columns: Mapping[str, np.ndarray],
    config: SimilarityConfig,
    store: Path,
) -> Likeness:
    """Explain the most similar pairs of every class, the pairs within every group, and what conditions paste.

    Factors lie in `store`, so that an interrupted run goes on.
    """
    patch = patch_size(config, encoder.size)
    explainer = SimilarityExplainer(encoder, basis=Patches(patch), metric="cosine")
    candidates = np.flatnonzero(found.tested)
    if len(candidates) > 2000:
        candidates = np.random.default_rng(config.seed).choice(candidates, 2000, replace=False)
    shown: list[tuple[int, int, float]] = []
    for label in plan.classes[:_CLASSES]:
        shown += similar_pairs(
            embeddings, candidates[plan.labels[candidates] == label], plan.units, config.pairs
        )
    sample = _sample(candidates, plan, config)
    chosen = list(dict.fromkeys([*sample, *(n for i, j, _ in shown for n in (i, j))]))
    images = source.pick(chosen)
    factors = explainer.factor(images[ORIGINAL], _batch(encoder.size), store=store / ORIGINAL)
    place = {number: row for row, number in enumerate(chosen)}
    drawn = {name: x[: len(sample)] for name, x in images.items()}  # they come first

    gallery = _Gallery()
    artefacts = _artefacts(explainer, source, drawn, factors, sample, plan, found, patch, store, gallery)
    worst = 0.0
    for i, j, cosine in shown:
        r = explainer.pair((factors, place[i]), (factors, place[j]))
        worst = max(worst, abs(float(r.values.sum() + r.bias[0]) - cosine) / max(abs(cosine), 1e-6))
        pictures = (images[ORIGINAL][place[i]], images[ORIGINAL][place[j]])
        tags = [[v[n].item() for v in columns.values()] for n in (i, j)]
        gallery.add(r, plan.labels[i].item(), (source.items[i].id, source.items[j].id), pictures, tags)
    arrays = gallery.arrays
    arrays["pictures"] = _pictures(torch.stack(gallery.pictures))

    summaries, profiles, backgrounds = _summaries(
        explainer, factors, sample, drawn[ORIGINAL], plan, columns, config
    )
    arrays["profiles"], arrays["background"] = profiles, backgrounds
    return Likeness(
        pairs=gallery.pairs,
        summaries=summaries,
        regions=_regions(
            explainer, factors, _marks(source, sample, patch), sample, plan, columns, patch, source
        ),
        artefacts=artefacts,
        arrays=arrays,
        conservation=worst,
        composite=str(getattr(explainer.composite, "name", explainer.composite)),
    )


def _batch(size: int) -> int:
    return max(1, min(16, 2**16 // size**2))


@dataclass
class _Gallery:
    """Explained pairs with what is needed to draw them."""

    pairs: list[Pair] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def add(
        self,
        r: PairRelevance,
        title: str,
        names: tuple[str, str],
        pictures: tuple[Tensor, Tensor],
        tags: list[list[str]],
    ) -> None:
        """One pair; pictures are (3, S, S)."""
        name, row = f"pair_{len(self.pairs)}", len(self.pictures)
        self.arrays[name] = r.values[0].numpy().astype(np.float32)
        self.pictures += pictures
        self.pairs.append(
            Pair(
                array=name,
                title=title,
                first=names[0],
                second=names[1],
                tags=tags,
                similarity=float(r.score[0]),
                bias_share=r.bias_share,
                grids=(list(r.grids[0]), list(r.grids[1])),
                rows=(row, row + 1),
            )
        )


def _sample(candidates: np.ndarray, plan: Plan, config: SimilarityConfig) -> list[int]:
    """Images for averages, in turn from all classes."""
    chosen: list[int] = []
    rng = np.random.default_rng(config.seed)
    queues = [rng.permutation(candidates[plan.labels[candidates] == c]).tolist() for c in plan.classes]
    while len(chosen) < config.explain and any(queues):
        for queue in queues:
            if queue and len(chosen) < config.explain:
                chosen.append(int(queue.pop()))
    return chosen


def _pictures(images: Tensor) -> np.ndarray:
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _summaries(
    explainer: SimilarityExplainer,
    factors: Factors,
    chosen: Sequence[int],
    images: Tensor,
    plan: Plan,
    columns: Mapping[str, np.ndarray],
    config: SimilarityConfig,
) -> tuple[list[Group], np.ndarray, np.ndarray]:
    found: list[Group] = []
    profiles: list[Any] = []
    backgrounds: list[Any] = []
    for column, values in {"": plan.labels, **columns}.items():
        labels = values[chosen]
        _, counts = np.unique(labels, return_counts=True)
        if (counts >= 2).sum() == 0:
            continue
        for s in explainer.group_summary(
            factors.first(len(chosen)), labels.tolist(), max_pairs=_PAIRS, seed=config.seed
        ):
            found.append(
                Group(
                    column=column,
                    name=str(s.label),
                    pairs=s.pairs,
                    similarity=s.similarity,
                    top_share=sum(share for _, _, share in s.top),
                    bias_share=s.bias_share,
                    row=len(profiles),
                )
            )
            profiles.append(s.profile.numpy().astype(np.float32))
            members = torch.from_numpy(np.flatnonzero(labels == s.label))
            backgrounds.append(_pictures(images[members].mean(0, keepdim=True))[0])
    return found, np.stack(profiles), np.stack(backgrounds)


def _regions(
    explainer: SimilarityExplainer,
    factors: Factors,
    marks: Tensor,
    chosen: Sequence[int],
    plan: Plan,
    columns: Mapping[str, np.ndarray],
    patch: int,
    source: Source,
) -> list[Region]:
    """Border, burnt-in marks and where conditions paste something, in images as they are: share of the relevance of
    pairs within each class and group, and of the area."""
    frames = {"border": regions.in_patches(regions.border(source.size), patch)}
    frames |= {f"where {name} lies": m for name, m in _pasted(source.conditions, source.size, patch).items()}
    marked = marks.flatten(1).any(1).numpy()
    result = []
    numbers = np.array(chosen)
    groups = [("", "", np.arange(len(numbers)))]
    for column, values in {"": plan.labels, **columns}.items():
        groups += [(column, str(g), np.flatnonzero(values[numbers] == g)) for g in np.unique(values[numbers])]
    for column, name, rows in groups:
        shares = _shares(
            explainer, factors, rows, {k: m.expand(len(numbers), -1, -1) for k, m in frames.items()}
        )
        for place, share in shares.items():
            area = float(frames[place].float().mean())
            result.append(Region(name=place, column=column, group=name, share=share, area=area))
        inside = rows[marked[rows]]
        shares = _shares(explainer, factors, inside, {"marks": marks})
        if "marks" in shares:
            area = float(marks[torch.from_numpy(inside)].float().mean())
            result.append(
                Region(name="burnt-in marks", column=column, group=name, share=shares["marks"], area=area)
            )
    return result


def _marks(source: Source, chosen: Sequence[int], patch: int) -> Tensor:
    """The patches with burnt-in marks (N, H, W); they are looked for where they are still sharp, at up to 512 px."""
    native = int(np.median([min(np.asarray(source.items[n].read()).shape[:2]) for n in chosen]))
    found = []
    for number in chosen:  # one by one: memory stays bounded
        image = source.pick([number], [ORIGINAL], max(source.size, min(_SHARP, native)))[ORIGINAL]
        mask = regions.burnt_in(image).float()[None]
        found.append(torch.nn.functional.adaptive_max_pool2d(mask, source.size)[0, 0] > 0)
    return regions.in_patches(torch.stack(found), patch, least=0)


def _pasted(conditions: Mapping[str, Condition], size: int, patch: int) -> dict[str, Tensor]:
    """The patches that each condition pastes a logo on."""
    found = {}
    for name, condition in conditions.items():
        box = condition.logo_box(size)
        if box is not None:
            mask = torch.zeros(size, size, dtype=torch.bool)
            mask[box[0] : box[2], box[1] : box[3]] = True
            found[name] = regions.in_patches(mask, patch)
    return found


def _shares(
    explainer: SimilarityExplainer, factors: Factors, rows: np.ndarray, masks: Mapping[str, Tensor]
) -> dict[str, float]:
    """Mean share of |relevance| on masks (N, H, W) over pairs of some images."""
    everything = list(itertools.combinations(rows.tolist(), 2))
    if not everything:
        return {}
    if len(everything) > _PAIRS:
        picked = np.random.default_rng(0).choice(len(everything), _PAIRS, replace=False)
        everything = [everything[i] for i in sorted(picked)]
    sums = dict.fromkeys(masks, 0.0)
    for i, j in everything:
        left, right = explainer.pair((factors, i), (factors, j)).marginals(magnitude=True)
        total = float(left.sum() + right.sum())
        for name, mask in masks.items():
            inside = float(left[mask[i]].sum() + right[mask[j]].sum())
            sums[name] += inside / total if total > 0 else 0.0
    return {name: value / len(everything) for name, value in sums.items()}


def _artefacts(
    explainer: SimilarityExplainer,
    source: Source,
    images: Mapping[str, Tensor],
    factors: Factors,
    chosen: Sequence[int],
    plan: Plan,
    found: Predictions,
    patch: int,
    store: Path,
    gallery: _Gallery,
) -> list[Artefact]:
    """What a pasted logo does to the similarity of images of different classes that do not hold it already.

    The pair that it brings together most goes into the gallery.
    """
    labels = plan.labels[np.array(chosen)]
    result = []
    size = images[ORIGINAL].shape[-1]
    for number, (name, region) in enumerate(_pasted(source.conditions, size, patch).items()):
        rows = _mixed(labels, _changed(images[ORIGINAL], images[name], region, patch), _STAMPED)
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(rows)), 2)
            if labels[rows[a]] != labels[rows[b]]
        ]
        if not pairs:
            continue
        pictures = images[name][torch.tensor(rows)]
        stamped = explainer.factor(pictures, _batch(size), store=store / f"condition-{number}")
        values: dict[str, list[float]] = {
            "share": [],
            "share_without": [],
            "similarity": [],
            "similarity_without": [],
        }
        for a, b in pairs:
            for suffix, f, i, j in (("", stamped, a, b), ("_without", factors, rows[a], rows[b])):
                r = explainer.pair((f, i), (f, j))
                left, right = r.marginals(magnitude=True)
                total = float(left.sum() + right.sum())
                values[f"share{suffix}"].append(
                    float(left[region].sum() + right[region].sum()) / max(total, 1e-12)
                )
                values[f"similarity{suffix}"].append(float(r.score[0]))
        gained = np.subtract(values["similarity"], values["similarity_without"])
        a, b = pairs[int(gained.argmax())]
        gallery.add(
            explainer.pair((stamped, a), (stamped, b)),
            f"with {name}",
            (source.items[chosen[rows[a]]].id, source.items[chosen[rows[b]]].id),
            (pictures[a], pictures[b]),
            [[labels[rows[a]].item()], [labels[rows[b]].item()]],
        )
        target = plan.classes.index(
            confusion(plan, found.predicted[name], found.predicted[ORIGINAL]).into or plan.classes[0]
        )
        evidence: dict[str, list[float]] = {"evidence": [], "evidence_without": []}
        for a, row in enumerate(rows):
            true = plan.classes.index(labels[row])
            contrast = torch.from_numpy(found.weights[target] - found.weights[true]).float()
            for key, factor in (("evidence", stamped[a]), ("evidence_without", factors[row])):
                heat = (contrast @ factor).clamp(min=0)
                if true != target and float(heat.sum()) > 0:
                    evidence[key].append(float(heat[region.flatten()].sum() / heat.sum()))
        result.append(
            Artefact(
                condition=name,
                area=float(region.float().mean()),
                **{key: float(np.mean(v)) for key, v in values.items()},
                **{key: float(np.mean(v)) if v else 0.0 for key, v in evidence.items()},
            )
        )
    return result


def _changed(before: Tensor, after: Tensor, region: Tensor, patch: int) -> np.ndarray:
    """The images that pasting changes: those that hold the artefact already stay nearly as they are."""
    size = before.shape[-1]
    mask = region.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:size, :size]
    change = (after - before).abs().mean(1)[:, mask].mean(1)
    return (change >= _CHANGE * change.max().clamp(min=1e-6)).numpy()


def _mixed(labels: np.ndarray, usable: np.ndarray, count: int) -> list[int]:
    """Numbers of some usable images, in turn from all classes."""
    queues = [np.flatnonzero((labels == c) & usable).tolist() for c in np.unique(labels)]
    found: list[int] = []
    while len(found) < count and any(queues):
        for queue in queues:
            if queue and len(found) < count:
                found.append(queue.pop(0))
    return found
