"""The Gaussian mixture against scikit-learn, SciPy and numpy."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Reference

from pfungst.anomaly import GaussianMixture, detector_from_spec
from pfungst.errors import InputError
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import DCTBands, Pixels


def data(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 1, (n, 3)), rng.normal(4, 0.5, (n, 3)) * [1, 2, 0.5]])


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_scores_are_scikit_learns_negative_log_density(covariance):
    x = data()
    detector = GaussianMixture(components=3, covariance=covariance, seed=1).fit(x)
    rows, _ = detector._split(len(x), spare=3)
    variance = x[rows.numpy()].var(0).mean()
    reference = Reference(3, covariance_type=covariance, reg_covar=1e-3 * variance, random_state=1)
    reference.fit(x[rows.numpy()])
    new = data(seed=5)
    np.testing.assert_allclose(
        detector.anomaly_score(new) + detector.constant_, -reference.score_samples(new), rtol=1e-9
    )


def test_scores_and_relevance_by_hand():
    """SciPy's densities; the shares of the components and the parts of the features by numpy."""
    x = data()
    detector = GaussianMixture(components=2, covariance="full").fit(x)
    new = data(20, seed=3)[::7]
    chol = detector.cholesky_.numpy()
    inverse = [c @ c.T for c in chol]
    weights, means = detector.weights_.numpy(), detector.means_.numpy()
    log = np.stack(
        [
            np.log(w) + multivariate_normal(m, np.linalg.inv(p)).logpdf(new)
            for w, m, p in zip(weights, means, inverse, strict=True)
        ],
        1,
    )
    np.testing.assert_allclose(detector.anomaly_score(new), -np.log(np.exp(log).sum(1)) - detector.constant_)
    h = -log - detector.constant_ - np.log(2)
    score = -np.log(np.exp(-h).mean(1))
    share = np.exp(-h) / np.exp(-h).sum(1, keepdims=True)
    expected = np.zeros_like(new)
    for k in range(2):
        delta = new - means[k]
        expected += (share[:, k] * score / h[:, k])[:, None] * 0.5 * delta * (delta @ inverse[k])
    found = detector.explain(new)
    np.testing.assert_allclose(np.asarray(found.values), expected, rtol=1e-8)
    np.testing.assert_allclose(np.asarray(found.values).sum(1) + np.asarray(found.bias), score)
    assert (h.min(1) >= -1e-12).all()


def test_images_in_pixels_and_bands_and_behind_a_blur():
    x = torch.rand(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for features in (None, GaussianBlur(3, 1.0)):
        detector = GaussianMixture(components=2, features=features).fit(x)
        assert detector.cholesky_.shape == (2, 432, 432)
        pixels, bands = detector.explain(x[:4], Pixels()), detector.explain(x[:4], DCTBands(count=4))
        assert pixels.values.shape == (4, 12, 12)
        torch.testing.assert_close(pixels.values.sum((1, 2)), bands.values.sum(1), rtol=1e-4, atol=1e-4)


def test_the_specification_and_its_errors():
    assert detector_from_spec("mixture:components=5,covariance=diag").components == 5
    with pytest.raises(InputError, match="unknown covariance"):
        GaussianMixture(covariance="round").fit(data())
    with pytest.raises(InputError, match="Gaussians"):
        GaussianMixture(components=30).fit(data(5))
