"""What makes images of a data set alike: the most similar pairs, shares on regions, what is pasted, what a
group shares."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from pfungst.measure import Interval, limits
from pfungst.measure.intervals import interval
from pfungst.similarity.explainer import SimilarityExplainer
from pfungst.similarity.factors import Factors


def _unit(embeddings: np.ndarray) -> np.ndarray:
    x = np.asarray(embeddings, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def similar_pairs(
    embeddings: np.ndarray,
    index: np.ndarray,
    units: np.ndarray,
    count: int,
    apart: np.ndarray | None = None,
    metric: Literal["cosine", "dot"] = "cosine",
) -> list[tuple[int, int, float]]:
    """The pairs of highest similarity among some images, no image twice: (i, j, similarity).

    Args:
        embeddings: (N, K).
        index: numbers of the images to choose from.
        units: (N,) images of one unit make no pair.
        count: how many pairs.
        apart: (N,) images of one value make no pair either, such as labels.
        metric: "cosine" or "dot".
    """
    x = embeddings[index].astype(np.float64) if metric == "dot" else _unit(embeddings[index])
    s = x @ x.T
    for same in (units, apart):
        if same is not None:
            s[same[index][:, None] == same[index][None]] = -np.inf
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


def relevance_on(
    explainer: SimilarityExplainer,
    factors: Factors,
    rows: Sequence[int] | np.ndarray,
    masks: Mapping[str, Tensor],
    max_pairs: int = 150,
    seed: int = 0,
) -> dict[str, float]:
    """Mean share of |relevance| on regions, over pairs of some inputs; empty where there is no pair.

    Args:
        explainer: it made the factors.
        factors: of N inputs.
        rows: numbers of the inputs to pair.
        masks: boolean (N, *grid) by name.
        max_pairs: at most this many pairs, drawn at random.
        seed: of the draw.
    """
    pairs = list(itertools.combinations(np.asarray(rows).tolist(), 2))
    if len(pairs) > max_pairs:
        picked = np.random.default_rng(seed).choice(len(pairs), max_pairs, replace=False)
        pairs = [pairs[i] for i in sorted(picked)]
    shares: dict[str, list[float]] = {name: [] for name in masks}
    for i, j in pairs:
        r = explainer.pair((factors, i), (factors, j))
        for name, mask in masks.items():
            shares[name].append(r.on(mask[i], mask[j]))
    return {name: float(np.mean(values)) for name, values in shares.items() if values}


@dataclass(frozen=True)
class PastedLikeness:
    """What pasting something into images does to pairs of different classes.

    Attributes:
        share, share_without: of |relevance| on the region, with and without it.
        similarity, similarity_without: means.
        pair: the two inputs that it brings together most.
    """

    share: float
    share_without: float
    similarity: float
    similarity_without: float
    pair: tuple[int, int]


def pasted_likeness(
    explainer: SimilarityExplainer, pasted: Factors, plain: Factors, labels: np.ndarray, region: Tensor
) -> PastedLikeness | None:
    """Compare the same inputs with and without what was pasted; None without a pair of different classes.

    Args:
        explainer: it made the factors.
        pasted, plain: factors of the same N inputs.
        labels: (N,).
        region: boolean, in the shape of the grid.
    """
    pairs = [p for p in itertools.combinations(range(len(labels)), 2) if labels[p[0]] != labels[p[1]]]
    if not pairs:
        return None
    both = [[explainer.pair((f, i), (f, j)) for f in (pasted, plain)] for i, j in pairs]
    share = np.array([[r.on(region, region) for r in rs] for rs in both])
    similarity = np.array([[float(r.score[0]) for r in rs] for rs in both])
    most = int((similarity[:, 0] - similarity[:, 1]).argmax())
    (on, on_without), (alike, alike_without) = share.mean(0).tolist(), similarity.mean(0).tolist()
    return PastedLikeness(on, on_without, alike, alike_without, pairs[most])


@dataclass(frozen=True)
class SharedLikeness:
    """Mean cosine similarity of images of different classes: both inside a group, and both outside.

    Attributes:
        inside, outside: means with the same mix of pairs of classes.
        excess: inside − outside, with its bootstrap interval over images.
        classes: those that were compared.
    """

    inside: float
    outside: float
    excess: Interval
    classes: tuple[str, ...]


def shared_likeness(
    embeddings: np.ndarray,
    labels: np.ndarray,
    inside: np.ndarray,
    least: int = int(limits.TEST_IMAGES),
    resamples: int = 300,
    seed: int = 0,
) -> SharedLikeness | None:
    """Does a group make images of different classes alike? What they share then is no class.

    The mean similarity of two sets of images is the product of their mean unit vectors, so no pair is
    computed.

    Args:
        embeddings: (N, K). labels: (N,). inside: (N,) boolean.
        least: images of a class needed inside and outside.
        resamples: of the bootstrap.

    Returns:
        None where fewer than two classes have enough images on either side.
    """
    x, inside = _unit(embeddings), np.asarray(inside, dtype=bool)
    members = [
        [np.flatnonzero((labels == c) & (inside == side)) for side in (True, False)]
        for c in np.unique(labels)
    ]
    used = [i for i, sides in enumerate(members) if min(map(len, sides)) >= least]
    if len(used) < 2:
        return None
    rng = np.random.default_rng(seed)
    sizes = np.array([[len(index) for index in members[i]] for i in used], dtype=float).T
    inner, outer = (np.triu(np.outer(n, n), 1) for n in sizes)
    weights = np.divide(inner * outer, inner + outer, out=np.zeros_like(inner), where=inner > 0)
    weights /= weights.sum()
    draws = np.empty((resamples + 1, 2))  # the first is the data
    for draw in range(resamples + 1):
        for side in (0, 1):
            means = []
            for index in (members[i][side] for i in used):
                share = np.full(len(index), 1 / len(index))
                means.append((rng.multinomial(len(index), share) / len(index) if draw else share) @ x[index])
            draws[draw, side] = (weights * (np.array(means) @ np.array(means).T)).sum()
    excess = draws[:, 0] - draws[:, 1]
    return SharedLikeness(
        inside=float(draws[0, 0]),
        outside=float(draws[0, 1]),
        excess=interval(float(excess[0]), excess[1:]),
        classes=tuple(str(np.unique(labels)[i]) for i in used),
    )


def flat_map(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE of unit representations (N, K): float32 (N, 2), or their first two values where there are fewer
    than four."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = _unit(embeddings)
    if len(x) >= 4:
        x = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
        perplexity = min(30.0, (len(x) - 1) / 3)
        # Distances are scaled by the data's spread: representations of random networks differ little.
        x = x / max(float(x[:, 0].std()), 1e-12)
        x = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return x[:, :2].astype(np.float32)
