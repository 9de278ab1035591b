"""What makes images alike to an encoder: BiLRP of the most similar pairs, averages, shares on regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.images import to_uint8
from pfungst.audit.result import Interval, Variant
from pfungst.audit.similarity.prepare import Study
from pfungst.audit.similarity.result import Artefact, Confusion, Faithful, Group, Pair, Region, Subgroup
from pfungst.data.traits import box_mask
from pfungst.errors import InputError
from pfungst.features import combined
from pfungst.measure import limits
from pfungst.measure.faithfulness import Flipping
from pfungst.relevance import Patches
from pfungst.similarity import (
    Decomposition,
    Factors,
    PairRelevance,
    SimilarityExplainer,
    flat_map,
    pasted_likeness,
    relevance_on,
    similar_pairs,
)
from pfungst.similarity.regions import border, burnt_in, changed, in_patches

_PAIRS = 150  # averaged per group
STAMPED = 12  # images explained with and without what a condition pastes
CLASSES = 100  # classes of which pairs are shown
_COLUMNS = 6  # group columns of which pairs are averaged over; those come first that the score follows most
_FALLING = 3  # marked groups of which a pair is shown
_CANDIDATES = 2000  # images that the most similar pairs are looked for among
FLIPPED = 12  # images whose patches are replaced
_FLIPS = 8  # patches a side, and points of the curve
_SHARP = 512  # pixels at most that burnt-in marks are looked for at
MAP = 2000  # points of the map


def explain(
    study: Study, errors: Mapping[str, Confusion], falling: Sequence[Subgroup]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Explain the most similar pairs of classes and marked groups, pairs within groups, what is pasted.

    Factors lie among the unfinished parts of the output folder, so that an interrupted run goes on.

    Returns:
        Fields of :class:`Findings` by name, and arrays.
    """
    explainer, patch = explainer_of(study), study.config.patch(study.encoder.size)
    shown, sample = choose(study, falling)
    chosen = list(dict.fromkeys([*sample, *(n for _, i, j, _ in shown for n in (i, j))]))
    images = study.source.pick(chosen)
    name = f"factors {combined(study.encoder.key(), study.source.state(), chosen)}"
    store = study.workspace.working(name)
    how: dict[str, Any] = study.config.model_dump(include={"workers", "ray", "device"})
    factor: Callable[..., Factors] = partial(explainer.factor, batch_size=at_a_time(study), **how)
    work = Work(study, explainer, patch, factor, sample, factor(images[ORIGINAL], store=store / "original"))
    drawn = {name: x[: len(sample)] for name, x in images.items()}  # they come first

    gallery = _Gallery()
    artefacts = [
        found
        for number, variant in enumerate(study.conditions)
        if (found := _artefact(work, variant, drawn, errors, store / str(number), gallery)) is not None
    ]
    worst = left_out = 0.0
    for title, i, j, similarity in shown:
        a, b = (chosen.index(n) for n in (i, j))
        r = explainer.pair((work.factors, a), (work.factors, b))
        left_out = max(left_out, r.remainder)
        worst = max(worst, abs(float(r.values.sum() + r.bias[0]) - similarity) / max(abs(similarity), 1e-6))
        tags = [[v[n].item() for v in islice(study.columns.values(), _COLUMNS)] for n in (i, j)]
        if title not in study.plan.classes:
            tags = [[study.plan.labels[n].item(), *t] for n, t in zip((i, j), tags, strict=True)]
        names = (study.source.items[i].id, study.source.items[j].id)
        gallery.add(r, title, names, (images[ORIGINAL][a], images[ORIGINAL][b]), tags)
    summaries, arrays = summarise(work, drawn[ORIGINAL])
    arrays |= gallery.arrays
    if gallery.pictures:
        arrays["pictures"] = to_uint8(torch.stack(gallery.pictures))
    fields = {
        "pairs": gallery.pairs,
        "summaries": summaries,
        "regions": locate(work),
        "artefacts": artefacts,
        "conservation": worst,
        "remainder": left_out if work.factors.checks else None,
        "metric": study.config.metric,
        "composite": str(getattr(explainer.composite, "name", explainer.composite)),
        "faithfulness": faithful(work, drawn[ORIGINAL]),
    }
    return fields, arrays


def explainer_of(study: Study) -> SimilarityExplainer:
    """Explains similarities as the configuration says."""
    config, rank = study.config, study.config.directions(study.original.shape[1])
    basis, sketch = Patches(config.patch(study.encoder.size)), Decomposition(rank) if rank else None
    how: dict[str, Any] = {"metric": config.metric, "composite": config.composite, "sketch": sketch}
    return SimilarityExplainer(study.encoder, basis=basis, **how)


def at_a_time(study: Study) -> int:
    """Images of a batch whose factors are computed."""
    return max(1, min(16, 2**16 // study.encoder.size**2))


def faithful(work: Work, images: Tensor) -> Faithful | None:
    """Whether patches, replaced in the order of their relevance, change the similarity to a partner.

    The partner of each is the next image of the sample of its class. None where there are too few or where
    no patch changes anything.
    """
    labels = work.study.plan.labels[work.sample]
    pairs = [(i, j) for c in np.unique(labels) for i, j in pairwise(np.flatnonzero(labels == c).tolist())]
    pairs = sorted(pairs)[:FLIPPED]
    if len(pairs) < limits.FAITHFUL_IMAGES:
        return None
    first, second = (list(side) for side in zip(*pairs, strict=True))
    size, encoder = work.study.encoder.size, work.study.encoder
    unit = (
        partial(torch.nn.functional.normalize, dim=1)
        if work.explainer.metric == "cosine"
        else torch.Tensor.float
    )
    partners = unit(work.factors.representations[second].float())
    maps = [work.explainer.pair((work.factors, i), (work.factors, j)).marginals()[0] for i, j in pairs]
    grown = [m.repeat_interleave(work.patch, 0).repeat_interleave(work.patch, 1)[:size, :size] for m in maps]

    def products(x: Tensor) -> Tensor:
        return unit(encoder.encode(x)).cpu() @ partners.T

    try:
        flipping = Flipping(
            products,
            images[first],
            target=torch.arange(len(pairs)),
            patch=-(-size // _FLIPS),
            steps=_FLIPS,
            orders=2,
            batch_size=16,
            seed=work.study.config.seed,
        )
    except InputError:
        return None
    found = flipping.of(torch.stack(grown))
    return Faithful(value=Interval.copied(found), images=len(pairs))


@dataclass(frozen=True)
class Work:
    """The explainer at work: patches of `patch` px; `factors`, those of the images of the sample first."""

    study: Study
    explainer: SimilarityExplainer
    patch: int
    factor: Callable[..., Factors]
    sample: list[int]
    factors: Factors

    def groups(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Column ("" for the label), name and rows of every class and group within the sample."""
        columns = islice(self.study.columns.items(), _COLUMNS)
        for column, values in [("", self.study.plan.labels), *columns]:
            names = values[self.sample]
            for name in np.unique(names).tolist():
                yield column, name, np.flatnonzero(names == name)

    def pasted(self, condition: str) -> Tensor | None:
        """The patches that a condition pastes a logo on, (H, W)."""
        size = self.study.encoder.size
        known = self.study.source.conditions.get(condition)
        box = None if known is None else known.logo_box(size)
        if box is None:
            return None
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[box[0] : box[2], box[1] : box[3]] = True
        return in_patches(mask, self.patch)


def choose(study: Study, falling: Sequence[Subgroup]) -> tuple[list[tuple[str, int, int, float]], list[int]]:
    """The pairs to show, and images for averages; see :func:`_shown` and :func:`_sample`."""
    candidates = study.plan.tested
    if len(candidates) > _CANDIDATES:
        candidates = np.random.default_rng(study.config.seed).choice(candidates, _CANDIDATES, replace=False)
    return list(_shown(study, candidates, falling)), _sample(candidates, study)


def _shown(
    study: Study, candidates: np.ndarray, falling: Sequence[Subgroup]
) -> Iterator[tuple[str, int, int, float]]:
    """Title, images and similarity of the pairs to show: across classes in marked groups, then within."""
    labels, units, count = study.plan.labels, study.plan.units, study.config.pairs
    alike = partial(similar_pairs, study.original, metric=study.config.metric)
    sharing = [g for g in falling if g.alike_excess is None or (g.alike_excess.high or 0) >= 0]
    for g in sharing[:_FALLING]:
        inside = candidates[study.columns[g.column][candidates] == g.group]
        for pair in alike(inside, units, count, apart=labels):
            yield (str(g), *pair)
    for label in study.plan.classes[:CLASSES]:
        for pair in alike(candidates[labels[candidates] == label], units, count):
            yield (label, *pair)


def _sample(candidates: np.ndarray, study: Study) -> list[int]:
    """Images for averages, in turn from all classes, two at a time: one alone makes no pair."""
    rng, labels = np.random.default_rng(study.config.seed), study.plan.labels[candidates]
    queues = [rng.permutation(candidates[labels == c])[::-1].tolist() for c in study.plan.classes]
    return _in_turn(queues, study.config.explain, 2)


def _in_turn(queues: Sequence[Sequence[int]], count: int, at_a_time: int = 1) -> list[int]:
    """Up to `count` numbers, some at a time from every queue in turn."""
    turns = range(0, max(map(len, queues)), at_a_time)
    return [number for t in turns for queue in queues for number in queue[t : t + at_a_time]][:count]


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


def summarise(work: Work, images: Tensor) -> tuple[list[Group], dict[str, np.ndarray]]:
    """BiLRP averaged over the pairs within every class and group that has any."""
    found: list[Group] = []
    profiles: list[np.ndarray] = []
    backgrounds: list[np.ndarray] = []
    factors = work.factors.first(len(work.sample))
    for column in dict.fromkeys(c for c, _, rows in work.groups() if len(rows) > 1):
        labels = (work.study.columns[column] if column else work.study.plan.labels)[work.sample]
        for s in work.explainer.group_summary(
            factors, labels.tolist(), max_pairs=_PAIRS, seed=work.study.config.seed
        ):
            top = sum(share for _, _, share in s.top)
            found.append(Group.copied(s, column=column, name=str(s.label), top_share=top, row=len(profiles)))
            profiles.append(s.profile.numpy().astype(np.float32))
            members = torch.from_numpy(np.flatnonzero(labels == s.label))
            backgrounds.append(to_uint8(images[members].mean(0)))
    stacked = {"profiles": np.stack(profiles), "background": np.stack(backgrounds)} if found else {}
    return found, stacked


def locate(work: Work) -> list[Region]:
    """Border, burnt-in marks and where conditions paste something, in images as they are: share of the
    relevance of pairs within each class and group, and of the area."""
    count = len(work.sample)
    frames = {"border": in_patches(border(work.study.encoder.size), work.patch)}
    for variant in work.study.conditions:
        pasted = work.pasted(variant.condition)
        if pasted is not None:
            frames[f"where {variant} lies"] = pasted
    masks = {name: m.expand(count, -1, -1) for name, m in frames.items()}
    if work.study.text is None:
        name, marks = "burnt-in marks", _marks(work.study, work.sample, work.patch)
    else:
        name, marks = "burnt-in text", _text(work)
    marked = marks.flatten(1).any(1).numpy()
    result = []
    for column, group, rows in [("", "", np.arange(count)), *work.groups()]:
        places = [(rows, masks), (rows[marked[rows]], {name: marks})]
        for members, regions in places:
            shares = relevance_on(work.explainer, work.factors, members, regions, max_pairs=_PAIRS)
            for place, share in shares.items():
                area = float(regions[place][torch.from_numpy(members)].float().mean())
                result.append(Region(name=place, column=column, group=group, share=share, area=area))
    return result


def _text(work: Work) -> Tensor:
    """The patches with burnt-in text (N, H, W)."""
    items, size = work.study.source.items, work.study.encoder.size
    assert work.study.text is not None
    masks = [box_mask(work.study.text(items[n]), size, size) for n in work.sample]
    return in_patches(torch.from_numpy(np.stack(masks)), work.patch, least=0)


def _marks(study: Study, chosen: Sequence[int], patch: int) -> Tensor:
    """The patches with burnt-in marks (N, H, W), looked for where they are sharp, at up to 512 px."""
    source = study.source
    native = int(np.median([min(np.asarray(source.items[n].read()).shape[:2]) for n in chosen]))
    found = []
    for number in chosen:  # one by one: memory stays bounded
        image = source.pick([number], [ORIGINAL], max(source.size, min(_SHARP, native)))[ORIGINAL]
        mask = burnt_in(image).float()[None]
        found.append(torch.nn.functional.adaptive_max_pool2d(mask, source.size)[0, 0] > 0)
    return in_patches(torch.stack(found), patch, least=0)


# --- what conditions paste -------------------------------------------------------------------------------


def _artefact(
    work: Work,
    variant: Variant,
    images: Mapping[str, Tensor],
    errors: Mapping[str, Confusion],
    store: object,
    gallery: _Gallery,
) -> Artefact | None:
    """What a pasted logo does to the similarity of images of different classes that do not hold it already.

    The pair that it brings together most goes into the gallery.
    """
    region = work.pasted(variant.condition)
    if region is None:
        return None
    study, name = work.study, variant.condition
    labels = study.plan.labels[work.sample]
    usable = changed(images[ORIGINAL], images[name], region, work.patch)
    rows = _in_turn([np.flatnonzero((labels == c) & usable).tolist() for c in np.unique(labels)], STAMPED)
    if len(set(labels[rows].tolist())) < 2:
        return None
    pictures = images[name][torch.tensor(rows)]
    stamped = work.factor(pictures, store=store)
    plain = work.factors.at(rows)
    effect = pasted_likeness(work.explainer, stamped, plain, labels[rows], region)
    assert effect is not None
    a, b = effect.pair
    gallery.add(
        work.explainer.pair((stamped, a), (stamped, b)),
        f"with {name}",
        (study.source.items[work.sample[rows[a]]].id, study.source.items[work.sample[rows[b]]].id),
        (pictures[a], pictures[b]),
        [[labels[rows[a]].item()], [labels[rows[b]].item()]],
    )
    classes = study.plan.classes
    target = classes.index(errors[variant.key].into or classes[0])
    truth = [classes.index(c) for c in labels[rows]]
    contrasts = torch.from_numpy(study.found.weights[target] - study.found.weights[truth]).float()
    evidence = [_evidence(contrasts, f, region) for f in (stamped, plain)]
    return Artefact(
        condition=name,
        area=float(region.float().mean()),
        **{k: v for k, v in vars(effect).items() if k != "pair"},
        evidence=evidence[0],
        evidence_without=evidence[1],
    )


def _evidence(contrasts: Tensor, factors: Factors, region: Tensor) -> float:
    """Mean share on a region of the positive relevance of contrasts (N, K) of weights, 0 left out."""
    heats = [(c @ factors[i]).clamp(min=0) for i, c in enumerate(contrasts)]
    shares = [float(h[region.flatten()].sum() / h.sum()) for h in heats if float(h.sum()) > 0]
    return float(np.mean(shares)) if shares else 0.0


# --- map -------------------------------------------------------------------------------------------------


def draw_map(study: Study) -> dict[str, np.ndarray]:
    """t-SNE of the representations, at most 2,000 points; and of images with and without a logo together, for
    every condition that pastes one."""
    seed, index = study.config.seed, np.arange(len(study.original))
    rng = np.random.default_rng(seed)
    if len(index) > MAP:
        index = np.sort(rng.choice(len(index), MAP, replace=False))
    half = index if len(index) <= MAP // 2 else np.sort(rng.choice(index, MAP // 2, replace=False))
    stamped: dict[str, np.ndarray] = {}
    for number, variant in enumerate(study.conditions):
        known = study.source.conditions.get(variant.condition)
        if known is not None and known.logo_box(study.encoder.size) is not None:
            both = np.concatenate([study.original[half], study.embeddings[variant][half]])
            stamped |= {f"stamped_{number}": flat_map(both, seed), "stamped_labels": study.plan.labels[half]}
    return {
        "embedding": flat_map(study.original[index], seed),
        "ids": np.array([study.source.items[i].id for i in index]),
        "labels": study.plan.labels[index],
        "predicted": study.found.predicted[next(iter(study.found.predicted))][0][index],
        **{f"group_{name}": values[index] for name, values in study.columns.items()},
        **stamped,
    }
