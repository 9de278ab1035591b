"""Explanations conserve and agree with the definition, pair by pair, for every p, basis and feature."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pfungst.anomaly import KDE, D2Neighbors
from pfungst.mitigate import GaussianBlur, LowPass
from pfungst.relevance import DCTBands, Patches, PixelBands, Pixels, Tokens

SHAPE = (3, 10, 12)
BASES = [Pixels(), Pixels(channels=True), Patches(4), DCTBands(count=5), PixelBands(edges=(0, 3, 20, None))]
FEATURES = {"none": None, "blur": GaussianBlur(5, 1.0), "low-pass": LowPass(30)}


def images(count, seed=0, shape=SHAPE, dtype=torch.float32):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def definition(detector, x, basis):
    """Σ_j R_j / (ε + d_j) · B(x − u_j, Kᵀ g_j) in float64, one pair at a time."""
    z = (x.double() - 0.5) / 0.5
    u = detector.prototypes_.double()
    features = detector.features_.double() if detector.features_ is not None else nn.Identity()
    p = detector._power
    values = []
    for xi in z:
        distances = torch.stack([(features(xi[None]) - features(uj[None])).abs().pow(p).sum() for uj in u])
        score = detector.pooling_.pool(distances[None])
        relevance = detector.pooling_.shares(distances[None])[0] * score
        total = 0
        for uj, d, r in zip(u, distances, relevance, strict=True):
            leaf = xi[None].clone().requires_grad_()
            power = (features(leaf) - features(uj[None])).abs().pow(p).sum() / p
            (g,) = torch.autograd.grad(power, leaf)
            weight = r / (detector.pooling_.offset + detector.epsilon_ + d)
            total = total + weight.detach() * basis.contract(xi - uj, g[0])
        values.append(total)
    if detector.features_ is not None:
        detector.features_.float()
    return torch.stack(values).detach()


@pytest.mark.parametrize("basis", BASES, ids=repr)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("p", [1, 2, 4])
def test_matches_the_definition(p, features, basis):
    detector = D2Neighbors(p=p, features=FEATURES[features]).fit(images(14))
    x = images(3, seed=1)
    relevance = detector.explain(x, basis)
    expected = definition(detector, x, basis)
    assert relevance.values.shape == (3, *basis.shape(SHAPE))
    gap = (relevance.values - expected).flatten(1).abs().sum(1)
    assert (gap <= 1e-4 * expected.flatten(1).abs().sum(1)).all()
    assert relevance.conservation_error().max() <= 1e-4
    assert relevance.bias_share < 1e-6


@pytest.mark.parametrize("kernel", ["gaussian", "student"])
def test_kde_matches_the_definition(kernel):
    detector = KDE(kernel, bandwidth=3.0).fit(images(9))
    x = images(2, seed=3)
    relevance = detector.explain(x, PixelBands(count=4))
    torch.testing.assert_close(
        relevance.values.double(), definition(detector, x, PixelBands(count=4)), rtol=1e-3, atol=1e-6
    )
    assert relevance.conservation_error().max() <= 1e-5
    assert (relevance.bias_share > 0.01) == (kernel == "student")


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 12),
    p=st.sampled_from([1, 2, 4]),
    basis=st.sampled_from(BASES),
    features=st.sampled_from(sorted(FEATURES)),
    kind=st.sampled_from(["random", "close", "clustered", "constant", "quantised"]),
)
@settings(max_examples=120, deadline=None)
@pytest.mark.filterwarnings("ignore::pfungst.errors.PfungstWarning")
def test_conserves(seed, count, p, basis, features, kind):
    train, x = images(count, seed), images(3, seed + 1)
    if kind == "close":  # differences far smaller than the images
        train = images(1, seed) + 1e-3 * train
        x = train[:1] + 1e-3 * x
    elif kind == "clustered":
        train[::2] = 0.01 * train[::2]
        train[1::2] = 1 - 0.01 * train[1::2]
        x = 0.01 * x
    elif kind == "constant":
        train = train.mean((1, 2, 3), keepdim=True).expand_as(train)
        x = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    elif kind == "quantised":
        train, x = (train * 3).round() / 3, (x * 3).round() / 3
    detector = D2Neighbors(p=p, features=FEATURES[features]).fit(train)
    for inputs in (x, torch.cat([train[:1], x[:1]])):
        relevance = detector.explain(inputs, basis)
        assert torch.isfinite(relevance.values).all()
        assert (relevance.score >= 0).all()
        assert relevance.conservation_error().max() <= 1e-4


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("p", [1, 2, 4])
def test_joint_relevance_has_pixels_and_bands_as_margins(p, features):
    detector = D2Neighbors(p=p, features=FEATURES[features]).fit(images(11))
    x = images(4, seed=2)
    joint = detector.explain(x, PixelBands(count=5)).values
    scale = detector.anomaly_score(x).mean().item()
    for margin, basis in ((joint.sum(1), Pixels()), (joint.sum((2, 3)), DCTBands(count=5))):
        torch.testing.assert_close(margin, detector.explain(x, basis).values, rtol=1e-3, atol=1e-6 * scale)
    patches = detector.explain(x, Patches(3)).values
    torch.testing.assert_close(
        patches, Patches(3).contract(detector.explain(x).values[:, None], torch.ones(1))
    )


@pytest.mark.parametrize("p", [1, 2, 4])
def test_a_training_point_is_explained_by_the_others_and_its_own_constant(p):
    train = images(8)
    detector = D2Neighbors(p=p).fit(train)
    relevance = detector.explain(train)
    assert relevance.conservation_error().max() <= 1e-4
    assert (relevance.bias > 0).all()  # log(N)/γ of the mean, which belongs to no pixel


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_batches_and_order_do_not_matter(p, basis):
    train, x = images(13), images(5, seed=4)
    detector = D2Neighbors(p=p).fit(train)
    whole = detector.explain(x, basis)
    parts = torch.cat([detector.explain(x[i : i + 1], basis).values for i in range(5)])
    torch.testing.assert_close(whole.values, parts, rtol=1e-3, atol=1e-5 * whole.values.abs().max().item())
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    permuted = D2Neighbors(p=p).fit(train[order])
    assert permuted.gamma_ == pytest.approx(detector.gamma_, rel=1e-5)
    again = permuted.explain(x, basis).values
    torch.testing.assert_close(whole.values, again, rtol=1e-3, atol=1e-5 * whole.values.abs().max().item())


def test_gradient_agrees_where_it_should():
    # With one prototype o = d(x, u), and the rule is p-th part of the plain gradient times (x − u).
    train, x = images(1, dtype=torch.float64), images(2, seed=1, dtype=torch.float64)
    for p in (2, 4):
        with pytest.warns(UserWarning, match="one training sample"):
            detector = D2Neighbors(p=p).fit(train)
        values = detector.explain(x, Pixels(channels=True)).values
        step = 1e-5
        for i in range(0, x[0].numel(), 37):
            e = torch.zeros(x[0].numel(), dtype=torch.float64)
            e[i] = step
            e = e.view(SHAPE)
            slope = (detector.anomaly_score(x + e) - detector.anomaly_score(x - e)) / (2 * step)
            expected = slope * (x - train).flatten(1)[:, i] / p
            torch.testing.assert_close(values.flatten(1)[:, i], expected, rtol=1e-4, atol=1e-7)


def test_nonlinear_features_conserve_with_their_bias_reported():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    for p in (1, 2, 4):
        detector = D2Neighbors(p=p, features=network).fit(images(10))
        assert detector.affine_ is False
        for basis in (Pixels(), DCTBands(count=4)):
            relevance = detector.explain(images(3, seed=5), basis)
            assert relevance.values.shape == (3, *basis.shape(SHAPE))
            assert relevance.conservation_error().max() <= 1e-4
    without_bias = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False))
    detector = D2Neighbors(features=without_bias).fit(images(10))
    assert detector.explain(images(3, seed=5)).bias_share < 1e-3


def test_affine_features_are_recognised():
    for features in (*FEATURES.values(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.AvgPool2d(2)):
        if features is not None:
            assert D2Neighbors(features=features).fit(images(6)).affine_ is True
    for features in (nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid()):
        assert D2Neighbors(features=features).fit(images(6)).affine_ is False


def test_other_ranks():
    rows = torch.randn(20, 7)
    for p in (1, 2, 4):
        relevance = D2Neighbors(p=p).fit(rows).explain(rows[:3] + 0.1)
        assert relevance.values.shape == (3, 7)
        assert relevance.conservation_error().max() <= 1e-4
        sequences = torch.randn(10, 5, 4)
        relevance = D2Neighbors(p=p).fit(sequences).explain(sequences + 0.3, Tokens())
        assert relevance.values.shape == (10, 5)
        assert relevance.conservation_error().max() <= 1e-4
