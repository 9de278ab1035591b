import pytest
import torch
from torch import nn

from pfungst.encoders import load
from pfungst.errors import ConfigError
from pfungst.relevance import Patches
from pfungst.similarity import SimilarityExplainer, Sketch, line_strength, strongest


def factors(width=60, left=12, right=10, seed=0):
    """Correlated factors as in networks: a few directions carry most of the energy."""
    g = torch.Generator().manual_seed(seed)
    energy = torch.logspace(0, -2, width, dtype=torch.double)[:, None]
    common = torch.randn(width, 1, generator=g, dtype=torch.double)
    a = energy * (torch.randn(width, left, generator=g, dtype=torch.double) + common)
    b = energy * (torch.randn(width, right, generator=g, dtype=torch.double) + common)
    return a, b


@pytest.mark.parametrize(("principal", "m"), [(0, 4), (0, 16), (0, 40), (5, 8), (5, 16)])
def test_unbiased_and_its_error_bar_covers(principal, m):
    a, b = factors()
    exact = a.T @ b
    fixed = (
        torch.linalg.svd(torch.cat([a, b], 1), full_matrices=False)[0].T[:principal] if principal else None
    )
    estimates, covered = [], []
    for seed in range(300):
        sketch = Sketch(m, fixed, seed)
        q = sketch.directions(60)
        estimate = (q @ a).T @ (q @ b)
        estimates.append(estimate)
        covered.append(((estimate - exact).abs() <= sketch.error(q @ a, q @ b, 60)).double().mean())
    mean = torch.stack(estimates).mean(0)
    spread = torch.stack(estimates).std(0) / 300**0.5
    assert ((mean - exact).abs() < 4.5 * spread).all()
    coverage = float(torch.stack(covered).mean())
    assert 0.95 <= coverage < 0.999


def test_variance_formula_with_true_norms():
    """With the true norms the formula gives the variance that is observed."""
    a, b = factors(20, 3, 3)
    estimates = []
    k, m = 20, 6
    for seed in range(3000):
        q = Sketch(m, None, seed).directions(k)
        estimates.append((q @ a).T @ (q @ b))
    inner, norms = (a.T @ b).square(), a.square().sum(0)[:, None] * b.square().sum(0)
    scale = k * (k - 1) * (k + 2)
    c1, c2 = m * ((k + 1) * m - 2) / scale, m * (k - m) / scale
    expected = (k / m) ** 2 * ((c1 + c2) * inner + c2 * norms) - inner
    torch.testing.assert_close(torch.stack(estimates).var(0), expected, rtol=0.15, atol=0)


def test_all_directions_are_exact():
    a, b = factors(10)
    q = Sketch(10, None, 0).directions(10)
    torch.testing.assert_close((q @ a).T @ (q @ b), a.T @ b)
    assert Sketch(10).error(q @ a, q @ b, 10).abs().max() == 0


def test_principal_directions_leave_less_error():
    a, b = factors()
    fixed = Sketch.principal(torch.cat([a, b], 1).T, 8, random=8)
    q, r = fixed.directions(60), Sketch(16).directions(60)
    assert fixed.error(q @ a, q @ b, 60).mean() < 0.5 * Sketch(16).error(r @ a, r @ b, 60).mean()


def test_through_an_encoder():
    torch.manual_seed(0)
    encoder = load("small:16", size=16)
    x = torch.rand(2, 3, 16, 16)
    exact = SimilarityExplainer(encoder, basis=Patches(1)).pair(x[0], x[1])
    sketched = SimilarityExplainer(encoder, basis=Patches(1), sketch=24).pair(x[0], x[1])
    assert exact.error is None
    inside = ((sketched.values - exact.values).abs() <= sketched.error).double().mean()
    assert inside > 0.8  # one draw; the coverage over draws is tested above
    torch.testing.assert_close(sketched.score, exact.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sketched.sum() + sketched.bias, sketched.score, rtol=1e-3, atol=1e-3)
    few = SimilarityExplainer(encoder, basis=Patches(8), sketch=24).pair(x[0], x[1])
    assert few.error is None  # four forward passes are fewer than 24 backward ones: exact


def test_bad_sketches():
    with pytest.raises(ConfigError, match="no error estimate"):
        Sketch(1)
    with pytest.raises(ConfigError, match="does not fit"):
        Sketch(12).directions(8)
    with pytest.raises(ConfigError, match="does not fit"):
        Sketch(2, torch.eye(4)[:2]).directions(8)


def test_lines_are_drawn_as_published():
    values = torch.randn(30, 30) * 5
    values[3, 4], values[5, 6] = 400, -390
    drawn = line_strength(values)
    scaled = values / values.pow(4).mean().pow(0.25)
    expected = (scaled - scaled.clamp(-2, 2)).clamp(-18, 18) / 18
    torch.testing.assert_close(drawn, expected)
    assert [(p, q) for p, q, _ in strongest(values, 2)] == [(3, 4), (5, 6)]
    assert line_strength(torch.zeros(3, 3)).abs().max() == 0
    assert nn.functional.relu(drawn).max() <= 1
