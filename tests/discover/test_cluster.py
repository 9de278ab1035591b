"""Spectral clustering against scikit-learn's and SciPy's, and on clouds that have no clusters."""

import numpy as np
import pytest
from scipy import stats
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import SpectralClustering
from sklearn.datasets import make_blobs, make_circles
from sklearn.metrics import adjusted_rand_score

from pfungst.discover import cluster, over_represented
from pfungst.discover.cluster import NEIGHBOURS, graph, parted, spectrum
from pfungst.errors import InputError


@pytest.mark.parametrize("k", [2, 3, 5])
def test_blobs_are_found_as_scikit_learn_finds_them(k):
    x, y = make_blobs([120, 90, 70, 60, 50][:k], 8, random_state=k, center_box=(-12, 12))
    found = cluster(x, normalise=False)
    assert found.n_clusters == k
    assert found.stability[k] > 0.95
    theirs = SpectralClustering(k, affinity="precomputed", random_state=0).fit_predict(graph(x))
    assert adjusted_rand_score(theirs, found.labels) == 1.0
    assert adjusted_rand_score(y, found.labels) == 1.0
    assert np.bincount(found.labels).tolist() == [120, 90, 70, 60, 50][:k]


def test_overlapping_and_curved_clusters_agree_with_scikit_learn():
    x, _ = make_blobs(300, 5, centers=3, cluster_std=3.0, random_state=1)
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(graph(x))
    ours = parted(spectrum(graph(x), 3)[1], 3)
    assert adjusted_rand_score(theirs, ours) > 0.9
    x, y = make_circles(400, factor=0.3, noise=0.03, random_state=0)
    assert adjusted_rand_score(y, parted(spectrum(graph(x), 2)[1], 2)) == 1.0


@pytest.mark.parametrize("n", [200, 900])  # dense and iterative eigenvalues
def test_disconnected_graphs_have_one_zero_eigenvalue_per_component(n):
    x, _ = make_blobs(n, 3, centers=[[0, 0, 0], [50, 0, 0], [0, 50, 0], [0, 0, 50]], random_state=0)
    weights = graph(x)
    count, parts = connected_components(weights)
    values, vectors = spectrum(weights, 6)
    assert count == 4
    np.testing.assert_allclose(values[:4], 0, atol=1e-6)
    assert values[4] > 0.01
    assert adjusted_rand_score(parts, parted(vectors, 4)) == 1.0
    found = cluster(x, normalise=False)
    assert found.n_clusters == 4
    assert int(found.gaps.argmax()) + 1 == 4


def test_no_structure_is_one_cluster():
    rng = np.random.default_rng(0)
    clouds = [
        rng.normal(size=(250, 20)),
        rng.normal(size=(250, 20)) * np.linspace(4, 0.2, 20),  # long: its halves are stable, but no clusters
        np.abs(rng.normal(size=(250, 64))),
        rng.uniform(size=(250, 3)),
    ]
    assert [cluster(x, seed=i).n_clusters for i, x in enumerate(clouds)] == [1] * 4
    assert cluster(np.ones((30, 4))).n_clusters == 1
    assert cluster(rng.normal(size=(7, 4))).n_clusters == 1
    assert cluster(rng.normal(size=(1, 4))).labels.tolist() == [0]


def test_typical_rows_come_first_and_norms_do_not_matter():
    rng = np.random.default_rng(1)
    x = np.abs(rng.normal(size=(80, 12))) * 0.1
    x[:50, 0] += 1
    x[50:, 1] += 1
    found = cluster(x)
    again = cluster(x * rng.uniform(0.1, 10, (80, 1)))
    assert found.labels.tolist() == again.labels.tolist() == [0] * 50 + [1] * 30
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    far = ((unit[50:] - unit[50:].mean(0)) ** 2).sum(1)
    assert found.rows(1).tolist() == (50 + far.argsort()).tolist()
    assert cluster(x, seed=3).labels.tolist() == cluster(x, seed=3).labels.tolist()


def test_ten_thousand_images_in_a_sparse_graph():
    x = np.random.default_rng(0).normal(size=(10_000, 40)).astype(np.float32)
    x[:3000, :6] += 6
    found = cluster(x, normalise=False)
    assert np.bincount(found.labels).tolist() == [7000, 3000]
    assert graph(x[:2000]).nnz <= 2 * NEIGHBOURS * 2000


def test_columns_of_a_cluster_against_fishers_test():
    member = np.array([True] * 20 + [False] * 40)
    site = np.array(["a"] * 18 + ["b"] * 2 + ["a"] * 4 + ["b"] * 36)
    size = np.array(["", "s", "l"] * 20)
    first, second = over_represented(member, {"size": size, "site": site})
    p = stats.fisher_exact([[18, 2], [4, 36]], alternative="greater").pvalue
    assert (first.column, first.value, first.inside, first.outside) == ("site", "a", 0.9, 0.1)
    assert first.p == pytest.approx(4 * p)  # Holm, the least of four
    assert second.column == "size"
    assert second.p == 1


def test_what_cannot_be_clustered_is_refused():
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        cluster(np.ones(3))
    with pytest.raises(InputError, match="1 rows that are not finite"):
        cluster(np.array([[1.0, np.nan], [0, 1]]))
