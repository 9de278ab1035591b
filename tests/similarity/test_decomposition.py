"""The leading part of a factor against the whole, computed exactly."""

import pytest
import torch

from pfungst.encoders import load
from pfungst.errors import ConfigError
from pfungst.relevance import Patches, linearize
from pfungst.similarity import Decomposition, SimilarityExplainer

PATCHES = Patches(4)


@pytest.fixture(scope="module")
def encoder():
    return load("torchvision:resnet18", "encoder", size=32)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exact(encoder, images):
    return SimilarityExplainer(encoder, basis=PATCHES, metric="cosine").factor(images)


def decomposed(encoder, rank, checks=4):
    return SimilarityExplainer(encoder, basis=PATCHES, metric="cosine", sketch=Decomposition(rank, checks))


def test_combined_is_the_factor_times_the_weights(encoder, images):
    linear = linearize(encoder, images[:2], "epsilon_gamma")
    weights = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        linear.combined(PATCHES, weights), linear.factor(PATCHES) @ weights, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("rank", [4, 12])
def test_a_pair_is_near_the_exact_one_and_says_how_near(encoder, images, exact, rank):
    explainer = decomposed(encoder, rank, 12)
    factors = explainer.factor(images)
    assert factors.shape == exact.shape
    for i, j in ((0, 1), (1, 2)):
        true, found = exact[i].T @ exact[j], explainer.pair((factors, i), (factors, j))
        error = float((found.values[0] - true).norm() / found.values.norm())
        assert error / 2 < found.remainder < 2 * error
        # What biases absorb is exact, and so is the sum.
        torch.testing.assert_close(found.values.sum(), true.sum(), rtol=1e-3, atol=1e-6)


def test_more_directions_leave_out_less(encoder, images):
    left = []
    for rank in (2, 6, 18):
        explainer = decomposed(encoder, rank)
        factors = explainer.factor(images[:2])
        left.append(explainer.pair((factors, 0), (factors, 1)).remainder)
    assert left[0] > left[1] > left[2]


def test_it_is_used_only_where_it_saves_passes(encoder, images):
    explainer = decomposed(encoder, 30)  # 64 passes for 64 patches
    factors = explainer.factor(images[:1])
    assert factors.checks == 0
    assert explainer.pair((factors, 0), (factors, 0)).remainder == 0


def test_a_store_keeps_the_checks(encoder, images, tmp_path):
    explainer = decomposed(encoder, 6)
    plain, stored = explainer.factor(images), explainer.factor(images, store=tmp_path)
    again = explainer.factor(images, store=tmp_path)
    for factors in (stored, again, again.at([0, 1, 2]), again.first(3)):
        assert factors.checks == plain.checks == 4
        torch.testing.assert_close(factors[2], plain[2], rtol=1e-4, atol=1e-6)
        assert explainer.pair((factors, 0), (factors, 2)).remainder == pytest.approx(
            explainer.pair((plain, 0), (plain, 2)).remainder, rel=1e-2
        )


def test_a_decomposition_without_checks_is_refused():
    with pytest.raises(ConfigError, match="rank 4 with 1 checks"):
        Decomposition(4, 1)
