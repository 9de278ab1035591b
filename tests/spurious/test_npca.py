import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA

from pfungst.errors import InputError, PfungstWarning
from pfungst.spurious import FeatureHead, LinearHead, NeuralPCA, extract_features
from pfungst.spurious.eigen import leading
from spurious_toys import items, small_net


def spectrum(n, d, decay, seed=0):
    g = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, d + 1, dtype=torch.float64) ** (-decay / 2)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    return (torch.randn(n, d, generator=g, dtype=torch.float64) * scales) @ rotation.T


def assert_promised(vectors, values, a):
    """Angles ≤ 1e-3 where the relative gap exceeds 1 %, eigenvalues within 1e-4."""
    m = len(values)
    _u, s, vt = torch.linalg.svd(a.double(), full_matrices=False)
    true = s**2
    np.testing.assert_allclose(values, true[:m], rtol=1e-4)
    ends = torch.cat([torch.tensor([torch.inf]), true, torch.zeros(1)])
    gap = torch.minimum(ends[:m] - true[:m], true[:m] - ends[2 : m + 2]) / true[:m]
    truth = vt[:m] * (vectors.double() * vt[:m]).sum(1, keepdim=True).sign()
    angle = (vectors.double() - truth).norm(dim=1)
    assert (angle[gap > 0.01] <= 1e-3).all()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(m).to(vectors), atol=1e-4, rtol=0)


@pytest.mark.parametrize("decay", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(700, 900), (900, 600)])
def test_krylov_keeps_its_promise(decay, shape):
    a = spectrum(*shape, decay).float()
    found = leading(a, 40)
    assert found.dims > 0
    assert_promised(found.vectors, found.values, a)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(300, 420), st.integers(300, 420)),
    decay=st.floats(0.2, 3.0),
    m=st.integers(1, 50),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_any_spectrum_keeps_the_promise(seed, shape, decay, m, scale):
    a = scale * spectrum(*shape, decay, seed).float()
    found = leading(a, m, seed)
    assert_promised(found.vectors, found.values, a)


def test_krylov_on_awkward_spectra():
    a = spectrum(800, 800, 1.0)
    equal = torch.linalg.qr(a)[0].float() * 3.0  # all eigenvalues equal: nothing to find, nothing to break
    found = leading(equal, 20)
    torch.testing.assert_close(found.values, torch.full((20,), 9.0, dtype=torch.float64), rtol=1e-4, atol=0)
    low_rank = (a[:, :10] @ torch.randn(10, 800, dtype=torch.float64)).float()
    found = leading(low_rank, 20)
    assert torch.isfinite(found.vectors).all()
    assert_promised(found.vectors[:10], found.values[:10], low_rank)
    clusters = torch.linalg.qr(a)[0] * torch.tensor([1.0, 0.999] * 10 + [0.1] * 780, dtype=torch.float64)
    assert_promised(*(lambda f: (f.vectors, f.values))(leading(clusters.float(), 20)), clusters.float())


def test_small_side_is_used_and_matches_scikit_learn():
    for n, d in ((40, 90), (90, 40)):
        x = spectrum(n, d, 1.0)
        head = LinearHead(torch.ones(1, d).double())
        npca = NeuralPCA(12).fit(head, x, np.zeros(n, dtype=int))
        pca = PCA(12, svd_solver="full").fit(x.numpy())
        np.testing.assert_allclose(npca.explained_variance(0), pca.explained_variance_, rtol=1e-9)
        np.testing.assert_allclose(npca.explained_variance_ratio(0), pca.explained_variance_ratio_, rtol=1e-9)
        cosine = np.abs((npca.components_[0].numpy() * pca.components_).sum(1))
        np.testing.assert_allclose(cosine, 1, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10_000),
    st.integers(2, 12),
    st.integers(2, 4),
    st.floats(0.3, 3.0),
    st.booleans(),
)
def test_alphas_sum_to_the_change_of_the_logit(seed, d, k, temperature, with_bias):
    g = torch.Generator().manual_seed(seed)
    n = k * 4 * d
    phi = torch.rand(n, d, generator=g, dtype=torch.float64)
    weight = torch.randn(k, d, generator=g, dtype=torch.float64)
    bias = torch.randn(k, generator=g, dtype=torch.float64) if with_bias else None
    head = LinearHead(weight, bias, temperature)
    labels = np.arange(n) % k
    npca = NeuralPCA(None).fit(head, phi, labels)
    new = torch.rand(7, d, generator=g, dtype=torch.float64) * 5
    for c in range(k):
        alpha = npca.alpha_features(new, c)
        mean = head.logits(phi[labels == c])[:, c].mean()
        torch.testing.assert_close(alpha.sum(1), head.logits(new)[:, c] - mean)
        npca.components_[c] = -npca.components_[c]  # the sign of a component means nothing
        torch.testing.assert_close(npca.alpha_features(new, c), alpha)


def test_fewer_images_than_features_still_sum_on_training_images():
    phi = spectrum(30, 80, 0.5)
    head = LinearHead(torch.randn(1, 80, dtype=torch.float64))
    npca = NeuralPCA(None).fit(head, phi, np.zeros(30, dtype=int))
    assert npca.components_[0].shape == (29, 80)
    logits = head.logits(phi)[:, 0]
    torch.testing.assert_close(npca.alpha_features(phi, 0).sum(1), logits - logits.mean())


def test_from_a_store_with_model_and_files(tmp_path):
    rows = items(200)
    head = FeatureHead(small_net(), example=rows[0][1][None])
    store = extract_features(head, rows, tmp_path / "store", progress=False)
    npca = NeuralPCA(4, seed=3).fit(head, store)
    x = torch.stack([r[1] for r in rows if r[2] == 1])
    with torch.no_grad():
        alpha = npca.alpha(x, 1)
    names = [r[0] for r in rows if r[2] == 1]
    for component in range(4):
        top = npca.top_images(1, component, 5)
        expected = alpha[:, component].topk(5).values
        np.testing.assert_allclose([a for _, a in top], expected, atol=2e-3 * alpha.abs().max())
        assert {name for name, _ in top} <= set(names)
        score = npca.alpha_of(1, component)(head.features(x)).detach()
        torch.testing.assert_close(score, alpha[:, component], atol=1e-5, rtol=1e-4)
    npca.save(tmp_path / "npca")
    loaded = NeuralPCA.load(tmp_path / "npca", head)
    assert loaded.get_params() == npca.get_params()
    with torch.no_grad():
        torch.testing.assert_close(loaded.alpha(x, 1), alpha, rtol=0, atol=0)
    assert loaded.top_images(1, 2) == npca.top_images(1, 2)
    assert loaded.explained_variance_ratio(1).tolist() == npca.explained_variance_ratio(1).tolist()
    assert {p.suffix for p in tmp_path.glob("npca*")} == {".json", ".safetensors"}
    with pytest.raises(InputError, match="another model"):
        NeuralPCA.load(tmp_path / "npca", FeatureHead(small_net(seed=1), example=rows[0][1][None]))
    with pytest.raises(InputError, match="no model is attached"):
        NeuralPCA.load(tmp_path / "npca").alpha(x, 1)


def test_many_threads_give_the_same_as_one():
    phi = torch.cat([spectrum(330, 300, 1.0, seed=s).float() for s in range(4)])
    labels = np.repeat(np.arange(4), 330)
    head = LinearHead(torch.rand(4, 300) + 0.5)
    one = NeuralPCA(10, workers=1).fit(head, phi, labels)
    two = NeuralPCA(10, workers=3).fit(head, phi, labels)
    for k in range(4):
        torch.testing.assert_close(one.components_[k], two.components_[k], atol=1e-5, rtol=0)
    assert clone(one).get_params() == one.get_params()


def test_classes_with_few_images():
    phi = torch.rand(24, 6)
    labels = np.array([0] * 20 + [1] * 4)
    head = LinearHead(torch.randn(2, 6))
    with pytest.warns(
        PfungstWarning, match="1 of 2 classes cannot have 5 components: for example class 1 with 4"
    ):
        npca = NeuralPCA(5).fit(head, phi, labels)
    assert [len(npca.components_[k]) for k in (0, 1)] == [5, 3]
    with pytest.raises(InputError, match=r"class 1 has no component 3"):
        npca.top_images(1, 3)
    with pytest.raises(InputError, match=r"\[1\] have fewer than 2"):
        NeuralPCA(5).fit(head, phi[:21], labels[:21])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralPCA(5).fit(head, phi, labels, classes=[0])


def test_constant_features_give_zero_not_nan():
    npca = NeuralPCA(3).fit(LinearHead(torch.randn(1, 5)), torch.ones(9, 5), np.zeros(9, dtype=int))
    assert npca.alpha_features(torch.ones(2, 5), 0).abs().max() == 0
    assert npca.explained_variance_ratio(0).tolist() == [0, 0, 0]


def test_refusals(tmp_path):
    head = LinearHead(torch.randn(2, 6))
    phi, labels = torch.rand(20, 6), np.arange(20) % 2
    for bad, text in (
        (lambda: NeuralPCA(2).fit(head, phi), "without labels"),
        (lambda: NeuralPCA(2).fit(head, phi, labels[:5]), "20 features, 5 labels"),
        (lambda: NeuralPCA(2).fit(head, phi, labels + 1), "do not fit a model of 2 classes"),
        (lambda: NeuralPCA(2).fit(head, torch.rand(20, 5), labels), "5 dimensions, the head takes 6"),
        (lambda: NeuralPCA(0).fit(head, phi, labels), "n_components is 0"),
        (lambda: NeuralPCA(2).fit(head, phi * torch.nan, labels), "not finite"),
        (lambda: NeuralPCA(2).alpha_features(phi, 0), "not fitted"),
        (lambda: NeuralPCA(2).fit(head, phi, labels).alpha_features(phi, 7), "class 7 was not fitted"),
        (lambda: NeuralPCA(2).fit(head, phi, labels).top_images(0, 0, 50), "50 images were asked for"),
        (lambda: NeuralPCA.load(tmp_path / "none"), "cannot be read"),
    ):
        with pytest.raises(InputError, match=text):
            bad()
    (tmp_path / "x.json").write_text(json.dumps({"format": "else"}))
    NeuralPCA(2).fit(head, phi, labels).save(tmp_path / "y")
    (tmp_path / "y.safetensors").rename(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="has format"):
        NeuralPCA.load(tmp_path / "x")
