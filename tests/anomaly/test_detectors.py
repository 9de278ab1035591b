"""Scores, bandwidths, thresholds and the contract of detectors."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from pfungst.anomaly import KDE, D2Neighbors, Detector, HarmonicMean, Max, Min, SoftMin
from pfungst.anomaly.bandwidth import perplexity, without_self
from pfungst.anomaly.distance import centre, power_distances
from pfungst.anomaly.features import embed
from pfungst.errors import CheckpointError, ConditionMismatch, InputError, PfungstWarning
from pfungst.mitigate import GaussianBlur, LowPass
from pfungst.relevance import DCTBands, Pixels

TABLE = np.random.default_rng(0).normal(size=(40, 3))
QUERY = np.random.default_rng(1).normal(size=(7, 3)) * 2


def images(count, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


# scikit-learn: all checks of an outlier detector run on tables of rank 2; none is excluded.
@parametrize_with_checks([D2Neighbors(), D2Neighbors(p=1), D2Neighbors(p=4), KDE(), KDE("student")])
@pytest.mark.filterwarnings("ignore::pfungst.errors.PfungstWarning")
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_distances_are_scipys(p):
    x, u = (torch.randn(n, 3000, generator=torch.Generator().manual_seed(n)) for n in (5, 9))
    expected = cdist(x.double(), u.double(), "minkowski", p=p) ** p
    np.testing.assert_allclose(power_distances(x, u, p), expected, rtol=1e-5)
    close = u + 1e-4 * torch.randn(9, 3000)
    expected = cdist(close.double(), u.double(), "minkowski", p=p) ** p
    np.testing.assert_allclose(power_distances(close, u, p), expected, rtol=1e-4)
    assert (power_distances(u, u, p).diagonal() == 0).all()


@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_distances_of_rows_among_themselves(p):
    u = torch.randn(41, 1100, generator=torch.Generator().manual_seed(3))
    u[7] = u[2] + 1e-4  # cancels: measured from differences
    u[9] = u[2]
    expected = cdist(u.double(), u.double(), "minkowski", p=p) ** p
    found = power_distances(u, u, p)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found == found.T).all()
    assert found[2, 9] == 0
    np.testing.assert_allclose(power_distances(u[:3], u, p), expected[:3], rtol=1e-5)
    np.testing.assert_allclose(power_distances(u, u[:3], p), expected[:, :3], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 15, 40])
def test_centre_is_the_median_of_rows(count):
    rows = torch.randn(count, 2, 5, generator=torch.Generator().manual_seed(4))
    chosen = rows[torch.linspace(0, count - 1, min(count, 15)).round().long()]
    assert torch.equal(centre(rows), chosen.median(0).values)


@pytest.mark.parametrize("layer", [GaussianBlur(5, 1.0), LowPass(9)])
def test_layers_by_channel_give_what_they_give(layer):
    x = images(35)
    assert layer.per_channel
    torch.testing.assert_close(embed(layer, x), layer(x).flatten(1))


@pytest.mark.parametrize("p", [1, 2, 4])
def test_score_and_gamma_by_the_formula(p):
    detector = D2Neighbors(p=p, perplexity=0.3).fit(TABLE)
    d = cdist(TABLE, TABLE, "minkowski", p=p) ** p
    entropies = []
    for i in range(40):
        q = np.exp(-detector.gamma_ * np.delete(d[i], i))
        entropies.append(stats.entropy(q / q.sum()))
    assert np.exp(entropies).mean() == pytest.approx(0.3 * 40, rel=1e-5)
    d = cdist(QUERY, TABLE, "minkowski", p=p) ** p
    expected = -np.log(np.exp(-detector.gamma_ * d).mean(1)) / detector.gamma_
    np.testing.assert_allclose(detector.anomaly_score(QUERY), expected, rtol=1e-9)


def test_gamma_is_fitted_after_the_features():
    blur = GaussianBlur(5, 1.0)
    x = images(20)
    inside = D2Neighbors(features=blur).fit(x)
    outside = D2Neighbors().fit(blur(x))
    assert inside.gamma_ == pytest.approx(outside.gamma_, rel=1e-4)
    assert inside.gamma_ != pytest.approx(D2Neighbors().fit(x).gamma_, rel=0.1)
    torch.testing.assert_close(inside.anomaly_score(images(4, 1)), outside.anomaly_score(blur(images(4, 1))))


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_gaussian_kde_is_the_density(bandwidth):
    detector = KDE(bandwidth=bandwidth).fit(TABLE)
    log_density = KernelDensity(bandwidth=bandwidth).fit(TABLE).score_samples(QUERY)
    constant = 1.5 * math.log(2 * math.pi * bandwidth**2)
    np.testing.assert_allclose(
        -detector.gamma_ * detector.anomaly_score(QUERY) - constant, log_density, rtol=1e-9
    )


def test_student_kde_by_the_formula():
    detector = KDE("student", bandwidth=0.7).fit(TABLE)
    d = cdist(QUERY, TABLE, "sqeuclidean")
    np.testing.assert_allclose(detector.anomaly_score(QUERY), 1 / (1 / (0.49 + d)).mean(1), rtol=1e-9)


def test_loo_bandwidth_against_brute_force():
    def loss(log_h):
        folds = [
            KernelDensity(bandwidth=math.exp(log_h))
            .fit(np.delete(TABLE, i, 0))
            .score_samples(TABLE[i : i + 1])
            for i in range(40)
        ]
        return -np.mean(folds)

    best = minimize_scalar(loss, bounds=(-3, 2), method="bounded", options={"xatol": 1e-5}).x
    assert KDE().fit(TABLE).bandwidth_ == pytest.approx(math.exp(best), rel=1e-3)
    assert KDE("student").fit(TABLE).bandwidth_ == pytest.approx(math.exp(best), rel=1e-3)


def test_scores_do_not_underflow():
    far = TABLE + 1e3
    for detector in (D2Neighbors(), KDE(), KDE("student")):
        scores = detector.fit(TABLE).anomaly_score(far)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) == len(far)


def test_training_scores_leave_one_out():
    detector = D2Neighbors(quantile=0.9).fit(TABLE)
    for i in (0, 17):
        rest = SoftMin(detector.gamma_).pool(
            torch.tensor(cdist(TABLE[i : i + 1], np.delete(TABLE, i, 0)) ** 2)
        )
        assert detector.training_scores_[i] == pytest.approx(rest.item())
    assert detector.threshold_ == pytest.approx(np.quantile(detector.training_scores_, 0.9))
    detector.threshold_ = float(detector.anomaly_score(QUERY)[0])
    assert detector.predict(QUERY)[0] == 1  # strictly above, not at


def test_duplicates_and_order_of_training_points():
    detector = D2Neighbors().fit(TABLE)
    twice = D2Neighbors().fit(np.concatenate([TABLE, TABLE]))
    twice.pooling_ = detector.pooling_
    np.testing.assert_allclose(twice.anomaly_score(QUERY), detector.anomaly_score(QUERY), rtol=1e-9)
    kde = KDE().fit(np.concatenate([TABLE, TABLE]))
    assert 0.5 < kde.bandwidth_ / KDE().fit(TABLE).bandwidth_ < 2  # the likelihood does not run away
    shuffled = D2Neighbors().fit(TABLE[::-1])
    np.testing.assert_allclose(shuffled.anomaly_score(QUERY), detector.anomaly_score(QUERY), rtol=1e-5)


@pytest.mark.parametrize("kind", [D2Neighbors(), D2Neighbors(p=1), D2Neighbors(p=4), KDE(), KDE("student")])
def test_degenerate_training_data(kind):
    with pytest.warns(PfungstWarning, match="threshold"):
        one = clone(kind).fit(TABLE[:1])
    assert np.isfinite(one.anomaly_score(QUERY)).all()
    assert (one.predict(QUERY) == 1).all()
    assert one.training_scores_.shape == (0,)
    with pytest.warns(PfungstWarning, match="identical"):
        same = clone(kind).fit(np.ones((5, 3)))
    scores = same.anomaly_score(np.r_[np.ones((1, 3)), QUERY])
    assert np.isfinite(scores).all()
    assert scores[0] == scores.min()
    constant = clone(kind).fit(torch.linspace(0.1, 0.9, 12).view(12, 1, 1, 1).expand(12, 3, 8, 8))
    assert torch.isfinite(constant.anomaly_score(images(2))).all()


def test_too_few_points_for_the_perplexity():
    with pytest.warns(PfungstWarning, match="perplexity"):
        detector = D2Neighbors().fit(TABLE[:3])
    assert np.isfinite(detector.anomaly_score(QUERY)).all()
    with pytest.warns(PfungstWarning, match="perplexity"):
        D2Neighbors(perplexity=0.999).fit(TABLE[:20])


def test_perplexity_of_equal_distances_is_their_number():
    d = torch.ones(6, 6, dtype=torch.float64).fill_diagonal_(0)
    assert without_self(d).shape == (6, 5)
    assert (without_self(d) == 1).all()
    assert perplexity(without_self(d), 3.0) == pytest.approx(5)


def test_poolings():
    d = torch.tensor([[1.0, 4.0, 2.0], [3.0, 3.0, 9.0]], dtype=torch.float64)
    assert Min().pool(d).tolist() == [1, 3]
    assert Min().shares(d).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
    assert Max().pool(d).tolist() == [4, 9]
    assert Max().shares(d).tolist() == [[0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(HarmonicMean(0.0).pool(d), stats.hmean(d, axis=1))
    torch.testing.assert_close(SoftMin(1e4).pool(d), d.amin(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(SoftMin(1e-6).pool(d), d.mean(1), atol=1e-4, rtol=0)
    for pooling in (Min(), Max(), SoftMin(0.7), HarmonicMean(0.3)):
        torch.testing.assert_close(pooling.shares(d).sum(1), torch.ones(2, dtype=torch.float64))
        assert (pooling.pool(d) >= d.amin(1) - 1e-12).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((2, 3, 8, 8), math.nan), "NaN"),
        (torch.full((2, 3, 8, 8), math.inf), "NaN or infinity"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "dtype"),
        (torch.full((2, 3, 8, 8), 200.0), "values from 200"),
        (-torch.ones(2, 3, 8, 8), "values from -1"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (np.array([[["a"]]]), "not numeric"),
        (np.array([[1.0, math.nan]]), "NaN"),
        (np.zeros(4), "1D array"),
        (["a", "b"], "could not convert"),
    ],
)
def test_unusable_input(bad, message):
    with pytest.raises(InputError, match=message):
        D2Neighbors().fit(bad)


def test_samples_must_have_the_shape_of_the_training_data():
    detector = D2Neighbors().fit(images(12))
    with pytest.raises(InputError, match=r"\(3, 9, 8\).*\(3, 8, 8\)"):
        detector.anomaly_score(torch.zeros(1, 3, 9, 8))
    with pytest.raises(InputError, match="features"):
        D2Neighbors().fit(TABLE).anomaly_score(TABLE[:, :2])
    with pytest.raises(InputError, match="images"):
        D2Neighbors().fit(TABLE).explain(TABLE, DCTBands(count=3))


@pytest.mark.parametrize(
    "detector",
    [
        D2Neighbors(p=3),
        D2Neighbors(perplexity=25),
        D2Neighbors(quantile=95),
        D2Neighbors(std=0),
        D2Neighbors(mean=(0.1, 0.2)),
        KDE("box"),
        KDE(bandwidth="silverman"),
        KDE(bandwidth=-1.0),
    ],
)
def test_unusable_parameters(detector):
    with pytest.raises(InputError):
        detector.fit(images(8))


def test_what_goes_in_comes_out():
    x = images(12)
    detector = D2Neighbors().fit(x)
    assert isinstance(detector.anomaly_score(x), torch.Tensor)
    array = detector.anomaly_score(x.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, detector.anomaly_score(x), rtol=1e-6)
    assert set(detector.predict(x).tolist()) <= {1, -1}
    assert (
        not hasattr(detector.anomaly_score(x), "requires_grad") or not detector.anomaly_score(x).requires_grad
    )


def test_normalisation_is_for_images():
    x = images(12)
    bare = D2Neighbors(mean=0.0, std=1.0).fit(x)
    torch.testing.assert_close(D2Neighbors().fit(x).anomaly_score(x[:2]), 4 * bare.anomaly_score(x[:2]))
    per_channel = D2Neighbors(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).fit(x)
    torch.testing.assert_close(per_channel.anomaly_score(x[:2]), D2Neighbors().fit(x).anomaly_score(x[:2]))
    rows = D2Neighbors(std=9.0).fit(TABLE).anomaly_score(QUERY)
    np.testing.assert_allclose(rows, D2Neighbors().fit(TABLE).anomaly_score(QUERY))


def test_the_condition_is_remembered_and_compared(tmp_path, recwarn):
    nearest = SimpleNamespace(images=images(12), condition="opencv-nearest")
    bilinear = SimpleNamespace(images=images(3, 1), condition="pillow-bilinear")
    detector = D2Neighbors().fit(nearest)
    detector.anomaly_score(nearest)
    detector.anomaly_score(bilinear.images)
    assert not recwarn.list
    for call in (detector.anomaly_score, detector.explain, detector.predict):
        with pytest.warns(ConditionMismatch, match=r"opencv-nearest.*pillow-bilinear"):
            call(bilinear)
    detector.save(tmp_path / "d")
    with pytest.warns(ConditionMismatch, match=r"opencv-nearest.*pillow-bilinear"):
        D2Neighbors.load(tmp_path / "d").anomaly_score(bilinear)


@pytest.mark.parametrize(
    "detector",
    [
        D2Neighbors(p=1),
        D2Neighbors(features=GaussianBlur(5, 1.5)),
        D2Neighbors(features=nn.Sequential(GaussianBlur(5, 1.5), LowPass(20)), mean=(0.4, 0.5, 0.6)),
        KDE(),
        KDE("student", bandwidth=2.0),
    ],
    ids=lambda d: type(d).__name__,
)
def test_save_and_load(detector, tmp_path):
    x = images(6, 1)
    detector.fit(images(12))
    detector.save(tmp_path / "d")
    detector.save(tmp_path / "d")  # replaces itself
    for kind in (type(detector), Detector):
        again = kind.load(tmp_path / "d")
        assert type(again) is type(detector)
        assert torch.equal(again.anomaly_score(x), detector.anomaly_score(x))
        assert torch.equal(again.predict(x), detector.predict(x))
        torch.testing.assert_close(again.explain(x).values, detector.explain(x).values)
        np.testing.assert_array_equal(again.training_scores_, detector.training_scores_)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    header = json.loads((tmp_path / "d" / "detector.json").read_text())
    assert header["detector"] == type(detector).__name__.lower()


def test_save_and_load_with_features_of_ones_own(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    detector = D2Neighbors(features=network).fit(images(12))
    detector.save(tmp_path / "d")
    with pytest.raises(CheckpointError, match="Sequential"):
        D2Neighbors.load(tmp_path / "d")
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    again = D2Neighbors.load(tmp_path / "d", features=fresh)
    assert torch.equal(again.anomaly_score(images(3, 1)), detector.anomaly_score(images(3, 1)))
    with pytest.raises(CheckpointError, match="do not fit"):
        D2Neighbors.load(tmp_path / "d", features=nn.Sequential(nn.Conv2d(3, 5, 3)))


def test_what_cannot_be_loaded_or_overwritten(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        D2Neighbors.load(tmp_path / "nothing")
    KDE().fit(TABLE).save(tmp_path / "kde")
    with pytest.raises(CheckpointError, match="KDE, not a D2Neighbors"):
        D2Neighbors.load(tmp_path / "kde")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(InputError, match="not a saved detector"):
        KDE().fit(TABLE).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "kde" / "weights.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError):
        KDE.load(tmp_path / "kde")


def test_in_a_pipeline():
    model = make_pipeline(StandardScaler(), D2Neighbors()).fit(TABLE)
    assert set(model.predict(QUERY)) <= {1, -1}
    assert model.score_samples(QUERY).shape == (7,)
    assert D2Neighbors().fit(TABLE).explain(QUERY, Pixels()).values.shape == (7, 3)
