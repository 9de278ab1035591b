"""Spectral clustering of explanations, whose answer may be that there are no clusters.

A graph of nearest neighbours, the small eigenvalues of its Laplacian (von Luxburg 2007, sections 2 and 8.3;
on heatmaps: Lapuschkin et al. 2019, SpRAy). A number of clusters is believed where its eigengap exceeds all
those of single clouds with the same covariance, and the clusters come out again in resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph

from pfungst.errors import InputError
from pfungst.measure import holm
from pfungst.measure.limits import STABLE

NEIGHBOURS = 10
_DIMENSIONS = 30  # principal components that distances are taken in
_SAMPLE = 500  # images on which the number is chosen; all are clustered
_CLOUDS = 19  # a gap above all of so many is one in 20 by chance
_DENSE = 600  # images up to which eigenvalues are computed densely


@dataclass(frozen=True)
class Clustering:
    """Clusters of N vectors.

    Attributes:
        labels: (N,) from 0, the largest cluster first.
        eigenvalues: (most + 1,) smallest of the normalised Laplacian, of the sample that the number was
            chosen on.
        expected: (most,) eigengaps of single clouds with the same covariance, mean; the k-th is after k
            clusters.
        stability: {number of clusters: mean adjusted Rand index over resamples}, of the numbers that the gaps
            suggest.
        order: (N,) rows by cluster, the most typical of each first (least mean squared distance to its
            others).
        plane: (N, 2) first two principal components of the vectors, to look at.
    """

    labels: np.ndarray
    eigenvalues: np.ndarray
    expected: np.ndarray
    stability: dict[int, float]
    order: np.ndarray
    plane: np.ndarray | None = None

    @classmethod
    def of(cls, members: np.ndarray, far: np.ndarray | None = None) -> Clustering:
        """Two groups that are known: the members (0) and the others (1).

        Args:
            members: (N,) bool.
            far: (N,) how far from typical; by default rows as they come.
        """
        labels = (~members).astype(int)
        order = np.lexsort((np.zeros(len(labels)) if far is None else far, labels))
        return cls(labels, np.zeros(3), np.zeros(2), {}, order)

    @property
    def n_clusters(self) -> int:
        """How many there are, 1 for no structure."""
        return int(self.labels.max()) + 1

    @property
    def gaps(self) -> np.ndarray:
        """(most,) eigengaps; the k-th is after k clusters."""
        return np.diff(self.eigenvalues)

    def rows(self, cluster: int) -> np.ndarray:
        """Rows of a cluster, the most typical first."""
        return self.order[self.labels[self.order] == cluster]


@dataclass(frozen=True)
class Over:
    """The value of a column that a cluster has most more often than the other images.

    Attributes:
        column, value: which. inside, outside: its share in the cluster and in the others.
        p: of a share as large by chance (hypergeometric), corrected for all columns and values (Holm).
    """

    column: str
    value: str
    inside: float
    outside: float
    p: float


def cluster(
    vectors: np.ndarray,
    most: int = 6,
    neighbours: int = NEIGHBOURS,
    resamples: int = 8,
    normalise: bool = True,
    seed: int = 0,
) -> Clustering:
    """Cluster vectors, into one where there is no structure.

    Args:
        vectors: (N, D), finite.
        most: clusters that are looked for.
        neighbours: of each vector in the graph, which is made symmetric.
        resamples: of 80 % of the vectors, for the stability.
        normalise: divide each vector by its norm.
        seed: of samples, clouds and k-means.

    Raises:
        InputError: not (N, D), or not finite.
    """
    x = np.asarray(vectors, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        bad = (
            f"shape {x.shape}"
            if x.ndim != 2
            else f"{int((~np.isfinite(x)).any(1).sum())} rows that are not finite"
        )
        raise InputError(f"vectors of {bad} cannot be clustered", "pass finite values (N, D)")
    if normalise:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    n, k_max = len(x), min(most, max(1, len(x) // (2 * neighbours)))
    if min(x.shape) > _DIMENSIONS:
        x = PCA(_DIMENSIONS, svd_solver="randomized", random_state=seed).fit_transform(x)
    if k_max < 2 or not x.std(0).any():
        return _finish(x, np.zeros(n, int), np.zeros(k_max + 1), np.zeros(k_max), {})
    rng = np.random.default_rng(seed)
    sample = x[np.sort(rng.permutation(n)[:_SAMPLE])]
    values, vectors_ = spectrum(graph(sample, neighbours), k_max + 1)
    clouds = _clouds(sample, neighbours, k_max, rng)
    expected, gaps = clouds.mean(0), np.diff(values)
    chance = (clouds - expected)[:, 1:].max(1).max()
    excess = gaps - expected
    stability: dict[int, float] = {}
    best = 1
    for k in sorted(range(2, k_max + 1), key=lambda k: -excess[k - 1]):
        if excess[k - 1] <= chance:
            break
        stability[k] = _stability(sample, parted(vectors_, k, seed), k, neighbours, resamples, rng, seed)
        if stability[k] >= STABLE:
            best = k
            break
    labels = np.zeros(n, int)
    if best > 1:
        labels = parted(spectrum(graph(x, neighbours), best)[1], best, seed)
    return _finish(x, labels, values, expected, stability)


def graph(x: np.ndarray, neighbours: int = NEIGHBOURS) -> sparse.csr_matrix:
    """Symmetric graph of nearest neighbours, 1 where both name each other and ½ where one does, (N, N)
    sparse."""
    ways = kneighbors_graph(x, min(neighbours, len(x) - 1), mode="connectivity")
    return sparse.csr_matrix(0.5 * (ways + ways.T))


def spectrum(weights: sparse.csr_matrix, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest eigenvalues of the normalised Laplacian I − D^-½ W D^-½, rising, and eigenvectors (N,
    count)."""
    degree = np.asarray(weights.sum(1)).ravel()
    root = np.sqrt(np.maximum(degree, 1e-12))
    near = sparse.csr_matrix(sparse.diags(1 / root) @ weights @ sparse.diags(1 / root))
    n = len(degree)
    if n <= _DENSE:
        values, vectors = np.linalg.eigh(near.toarray())
    else:  # Lanczos misses copies of an eigenvalue: those of the components are known, and taken out
        pieces, member = connected_components(near)
        zero = sparse.csr_matrix((root, (np.arange(n), member)), (n, pieces)).toarray()[:, :count]
        zero /= np.linalg.norm(zero, axis=0)
        values, vectors = np.ones(zero.shape[1]), zero
        if left := count - zero.shape[1]:
            deflated = LinearOperator((n, n), lambda v: near @ v + v - 2 * zero @ (zero.T @ v), dtype=float)
            start = np.random.default_rng(0).random(n)
            more, others = eigsh(deflated, left, which="LA", v0=start, tol=1e-7)
            values, vectors = np.append(values, more - 1), np.hstack([vectors, others])
    last = np.argsort(-values, kind="stable")[:count]
    return np.clip(1 - values[last], 0, None), vectors[:, last]


def parted(vectors: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """k clusters of the rows of k eigenvectors, each of norm 1 (Ng, Jordan and Weiss 2002), the largest
    first."""
    rows = vectors[:, :k] / np.maximum(np.linalg.norm(vectors[:, :k], axis=1, keepdims=True), 1e-12)
    labels = KMeans(k, n_init=5, random_state=seed).fit_predict(rows)
    place = np.argsort(np.argsort(-np.bincount(labels, minlength=k), kind="stable"), kind="stable")
    return place[labels]


def over_represented(
    member: np.ndarray, columns: Mapping[str, Sequence[str] | np.ndarray], most: int = 3
) -> list[Over]:
    """What a cluster has more of than the other images, by column, the most certain first.

    Args:
        member: (N,) boolean.
        columns: values (N,) as text; "" is unknown and counts nowhere.
        most: columns that are named.
    """
    found = []
    for name, values in columns.items():
        v = np.asarray(values)
        known = v != ""
        inside, total = int((member & known).sum()), int(known.sum())
        for value in np.unique(v[known]):
            hits, all_hits = int((member & (v == value)).sum()), int((v == value).sum())
            p = stats.hypergeom.sf(hits - 1, total, all_hits, inside)
            rest = (all_hits - hits) / max(total - inside, 1)
            found.append(Over(name, str(value), hits / max(inside, 1), rest, float(p)))
    corrected = holm([o.p for o in found])
    found = [Over(o.column, o.value, o.inside, o.outside, p) for o, p in zip(found, corrected, strict=True)]
    found.sort(key=lambda o: (o.p, o.outside - o.inside))
    first = {o.column: o for o in reversed(found)}
    return sorted(first.values(), key=lambda o: (o.p, o.outside - o.inside))[:most]


def _clouds(x: np.ndarray, neighbours: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Eigengaps of Gaussian clouds with the covariance of x, (_CLOUDS, k)."""
    spread, axes = np.linalg.eigh(np.atleast_2d(np.cov(x.T)))
    mix = np.sqrt(np.clip(spread, 0, None))[:, None] * axes.T
    drawn = (rng.standard_normal(x.shape) @ mix for _ in range(_CLOUDS))
    return np.stack([np.diff(spectrum(graph(cloud, neighbours), k + 1)[0]) for cloud in drawn])


def _stability(
    x: np.ndarray,
    labels: np.ndarray,
    k: int,
    neighbours: int,
    resamples: int,
    rng: np.random.Generator,
    seed: int,
) -> float:
    """Mean adjusted Rand index of `labels` and the clusters of 80 % of the vectors."""
    scores = []
    for _ in range(resamples):
        rows = np.sort(rng.permutation(len(x))[: max(k + 1, round(0.8 * len(x)))])
        again = parted(spectrum(graph(x[rows], neighbours), k)[1], k, seed)
        scores.append(adjusted_rand_score(labels[rows], again))
    return float(np.mean(scores))


def _finish(
    x: np.ndarray, labels: np.ndarray, values: np.ndarray, expected: np.ndarray, stability: dict[int, float]
) -> Clustering:
    far = np.zeros(len(x))
    for k in np.unique(labels):
        rows = labels == k
        far[rows] = ((x[rows] - x[rows].mean(0)) ** 2).sum(1)
    centred = x - x.mean(0)
    axes = np.linalg.eigh(np.atleast_2d(centred.T @ centred))[1][:, :-3:-1]
    plane = np.zeros((len(x), 2))
    plane[:, : axes.shape[1]] = centred @ axes
    return Clustering(labels, values, expected, stability, np.lexsort((far, labels)), plane)
