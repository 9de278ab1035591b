"""Fitted detectors of other libraries: the same scores, explanations that are right."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity, NearestNeighbors
from sklearn.svm import OneClassSVM

from pfungst.anomaly import Bag, wrap
from pfungst.errors import InputError
from pfungst.relevance import DCTBands, PixelBands, Pixels

D = 12


def table(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, D)) + 3


def make(name):
    x = table(40)
    if name == "kde":
        return KernelDensity(bandwidth=0.8).fit(x)
    if name == "weighted-kde":
        return KernelDensity(bandwidth=1.5).fit(x, sample_weight=np.linspace(0.5, 2, 40))
    if name == "svm":
        return OneClassSVM(nu=0.2, gamma=0.05).fit(x)
    if name == "neighbours":
        return NearestNeighbors(n_neighbors=4).fit(x)
    pyod = pytest.importorskip("pyod.models.knn" if "knn" in name else "pyod.models.kde")
    if name == "pyod-kde":
        return pyod.KDE(bandwidth=0.9).fit(x)
    return pyod.KNN(n_neighbors=4, method=name.removeprefix("pyod-knn-")).fit(x)


def original(estimator, x):
    if hasattr(estimator, "threshold_"):
        return estimator.decision_function(x)
    if isinstance(estimator, KernelDensity):
        return -estimator.score_samples(x)
    if isinstance(estimator, OneClassSVM):
        return -estimator.decision_function(x)
    return estimator.kneighbors(x)[0].mean(1)


ALL = [
    "kde",
    "weighted-kde",
    "svm",
    "neighbours",
    "pyod-kde",
    "pyod-knn-largest",
    "pyod-knn-mean",
    "pyod-knn-median",
]


@pytest.mark.parametrize("name", ALL)
def test_same_scores(name):
    estimator, x = make(name), table(25, seed=1)
    np.testing.assert_allclose(wrap(estimator).anomaly_score(x), original(estimator, x), rtol=1e-6, atol=1e-9)


def gradient(score, x, step=1e-5):
    """Central differences of the original's score."""
    out = np.zeros_like(x)
    for i in range(x.shape[1]):
        for sign in (1, -1):
            moved = x.copy()
            moved[:, i] += sign * step
            out[:, i] += sign * score(moved) / (2 * step)
    return out


@pytest.mark.parametrize("name", ALL)
def test_explanation_against_finite_differences(name):
    """The relevance of prototypes by finite differences of the score in the distances and of distances in the input.

    For readouts o(d_1 … d_M) the chain rule Σ_j ∂o/∂d_j · 2 (x − u_j) must give the original's gradient, and
    R_i = Σ_j share_j (o − constant) (x_i − u_ji)² / d_j the explanation.
    """
    estimator, x = make(name), table(6, seed=2)
    wrapped = wrap(estimator)
    distances = wrapped._distances(torch.as_tensor(x))
    score, shares, constant = wrapped._readout(distances)
    step = 1e-5 * distances.mean()
    slopes = torch.zeros_like(distances)
    for j in range(distances.shape[1]):
        moved = step * torch.eye(distances.shape[1], dtype=torch.float64)[j]
        slopes[:, j] = (wrapped._readout(distances + moved)[0] - wrapped._readout(distances - moved)[0]) / (
            2 * step
        )
    delta = torch.as_tensor(x)[:, None] - wrapped.prototypes_
    chain = 2 * (slopes[:, :, None] * delta).sum(1).numpy()
    np.testing.assert_allclose(chain, gradient(lambda v: original(estimator, v), x), rtol=1e-4, atol=1e-6)
    if "knn" in name or name == "neighbours":  # o is homogeneous of degree ½ in d: Euler
        want = 2 * slopes * distances / score[:, None]
    else:
        want = slopes / slopes.sum(1, keepdim=True)
    torch.testing.assert_close(shares, want, rtol=1e-4, atol=1e-5)
    r = wrapped.explain(x)
    by_hand = ((shares * (score - constant)[:, None] / distances)[:, :, None] * delta.square()).sum(1)
    torch.testing.assert_close(r.values, by_hand, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(r.sum() + r.bias, r.score)
    torch.testing.assert_close(r.bias, torch.full_like(r.bias, constant), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("basis", [Pixels(), DCTBands(count=3), PixelBands(count=2)])
def test_images_in_every_basis(name, basis):
    wrapped = wrap(make(name), shape=(3, 2, 2))
    x = torch.as_tensor(table(4, seed=3)).reshape(4, 3, 2, 2)
    wrapped_scores = wrapped._score(x)
    r = wrapped._explain(x, basis)
    torch.testing.assert_close(r.score, wrapped_scores)
    torch.testing.assert_close(r.sum() + r.bias, r.score)


def test_explanation_of_a_training_point_is_finite():
    r = wrap(make("neighbours")).explain(table(40)[:2])
    assert torch.isfinite(r.values).all()
    torch.testing.assert_close(r.sum() + r.bias, r.score)


def test_thresholds():
    svm, knn, kde = make("svm"), make("pyod-knn-largest"), make("kde")
    x = table(30, seed=5) * 1.3
    assert np.array_equal(wrap(svm).predict(x), svm.predict(x))
    assert np.array_equal(wrap(knn).predict(x) == -1, knn.predict(x) == 1)
    wrapped = wrap(kde)
    loo = [
        -KernelDensity(bandwidth=0.8).fit(np.delete(table(40), i, 0)).score_samples(table(40)[i : i + 1])[0]
        for i in range(40)
    ]
    np.testing.assert_allclose(wrapped.training_scores_, loo, rtol=1e-6)


def test_wrapped_detectors_join_a_bag():
    bag = Bag([wrap(make("kde")), wrap(make("neighbours"))]).fit(table(40))
    r = bag.explain(table(3, seed=1))
    torch.testing.assert_close(r.sum() + r.bias, r.score)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (KernelDensity(), "not fitted"),
        (KernelDensity(kernel="tophat").fit(table(5)), "tophat"),
        (KernelDensity(metric="manhattan").fit(table(5)), "manhattan"),
        (OneClassSVM(kernel="linear").fit(table(5)), "linear"),
        (NearestNeighbors(metric="cosine").fit(table(5)), "cosine"),
        (NearestNeighbors(n_neighbors=9).fit(table(5)), "9 neighbours among 5"),
        (object(), "has no score for new samples"),
        (KernelDensity, "is a class"),
    ],
)
def test_bad_estimators(estimator, message):
    with pytest.raises(InputError, match=message):
        wrap(estimator)


def test_bad_shape_and_method():
    with pytest.raises(InputError, match="does not fit"):
        wrap(make("kde"), shape=(3, 3, 3))
    with pytest.raises(InputError, match="unknown method"):
        wrap(make("neighbours"), method="sum")
    with pytest.raises(InputError, match="belongs to its library"):
        wrap(make("kde")).save("nowhere")


class TestAnomalib:
    """Run where anomalib is installed."""

    @pytest.fixture(scope="class")
    def images(self):
        return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    @pytest.fixture(scope="class")
    def models(self, images):
        pytest.importorskip("anomalib", reason="anomalib is not installed")
        from anomalib.models.image.padim.torch_model import PadimModel
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        torch.manual_seed(0)
        x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        patchcore = PatchcoreModel(
            ["layer2", "layer3"], backbone="resnet18", pre_trained=False, num_neighbors=9
        )
        padim = PadimModel(backbone="resnet18", layers=["layer1", "layer2"], pre_trained=False, n_features=20)
        for model in (patchcore, padim):
            model.train()
            model.feature_extractor.eval()
            model(x[:4])
        patchcore.subsample_embedding(0.2)
        padim.fit()
        return {"patchcore": patchcore.eval(), "padim": padim.eval()}, x

    @pytest.mark.parametrize("name", ["patchcore", "padim"])
    def test_scores_and_conservation(self, models, images, name):
        fitted, x = models
        wrapped = wrap(fitted[name])
        with torch.no_grad():
            want = fitted[name](x).pred_score.flatten()  # Padim gives (N, 1)
        torch.testing.assert_close(wrapped.anomaly_score(images), want, rtol=1e-4, atol=1e-4)
        r = wrapped.explain(images[4:])
        torch.testing.assert_close(r.score, want[4:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-4, atol=1e-4)
        assert r.values.abs().sum() > 0
