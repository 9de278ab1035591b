"""SpuFix measured from the images that lack a feature, on a network whose images fall into two groups."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pfungst.errors import InputError, PfungstWarning
from pfungst.measure import best_split
from pfungst.spurious import FeatureHead, NeuralPCA, SpuFix, extract_features
from spurious_toys import Vectors, items, small_net

CHOSEN = {2: [0], 4: [0]}
SHARE = 0.7


def marked(n=200):
    """Dark random images of five classes; seven in ten have a bright upper half."""
    rows = items(n)
    for i, (_, image, _) in enumerate(rows):
        image.mul_(0.2)
        if (i // 5) % 10 < 10 * SHARE:
            image[:, :6] = 1.0
    return rows


ROWS = marked()
X = torch.stack([image for _, image, _ in ROWS])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    head = FeatureHead(small_net(), example=X[:2])
    store = extract_features(head, ROWS, tmp_path_factory.mktemp("s") / "a", dtype="float32", progress=False)
    return head, NeuralPCA(8).fit(head, store), store


def planted(share, gap, seed=0, n=400):
    """A head of two classes, features whose first dimension is the planted one, labels, and who carries it."""
    rng = np.random.default_rng(seed)
    phi = 0.1 * rng.normal(size=(n, 6))
    labels, carries = np.arange(n) % 2, rng.permutation(n) < share * n
    phi[:, 0] += gap * carries
    weight = torch.ones(2, 6, dtype=torch.float64)
    return Vectors(weight, None, 0.5), torch.from_numpy(phi), labels, carries


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(2.0, 8.0), st.integers(0, 99))
def test_a_planted_feature_is_removed_whole_and_by_the_mean_only_in_part(share, gap, seed):
    model, phi, labels, carries = planted(share, gap, seed)
    npca = NeuralPCA(3).fit(FeatureHead(model, example=phi[:2, :, None, None]), phi, labels)
    x = phi[:, :, None, None]
    left = {}
    with torch.no_grad():
        z = model(x)[:, 1]
        for reference in ("mean", "absent"):
            fixed = SpuFix(model, npca, {1: [0]}, reference=reference)(x)
            assert (fixed[:, 1] <= z + 1e-5).all()
            assert torch.equal(fixed[:, 0], model(x)[:, 0])
            own = torch.from_numpy(labels == 1)
            with_it, without = (fixed[own & torch.from_numpy(c), 1].mean() for c in (carries, ~carries))
            left[reference] = float(with_it - without) / (gap / 0.5)
    own_share = carries[labels == 1].mean()
    assert left["absent"] == pytest.approx(0.0, abs=0.1)
    assert left["mean"] == pytest.approx(own_share, abs=0.1)


def test_the_image_that_has_only_the_feature_loses_it():
    """Regression: a feature in 90 % of a class kept 90 % of its gap, and SpuFix cut 32 % of triggered images to 29 %."""
    model, phi, labels, _ = planted(0.9, 4.0)
    npca = NeuralPCA(3).fit(FeatureHead(model, example=phi[:2, :, None, None]), phi, labels)
    bare = torch.zeros(1, 6, 1, 1, dtype=torch.float64)
    only = bare.clone()
    only[:, 0] = 4.0
    with torch.no_grad():
        plain, fixed = model, SpuFix(model, npca, {1: [0]}, reference="absent")
        assert plain(only)[0, 1] - plain(bare)[0, 1] == pytest.approx(8.0)
        assert abs(fixed(only)[0, 1] - plain(bare)[0, 1]) < 0.5
        published = SpuFix(model, npca, {1: [0]})
        assert published(only)[0, 1] - plain(bare)[0, 1] > 6.5


def test_what_lacks_the_feature_is_the_lower_group(fitted):
    _, npca, store = fitted
    for k in npca.classes_:
        alpha = npca.alpha_features(store.of_class(k), k).double().numpy()
        for c, (level, threshold) in enumerate(npca.absent_[k].tolist()):
            split = best_split(alpha[:, c])
            if split.separation > 0:
                assert level == pytest.approx(alpha[alpha[:, c] <= threshold, c].mean(), abs=1e-5)
                assert level == pytest.approx(-split.share * split.gap, abs=1e-5)  # α has mean 0
            else:
                assert (level, threshold) == (0.0, float("inf"))
        if k in CHOSEN:
            assert (alpha[:, 0] <= npca.absent_[k][0, 1].item()).mean() == pytest.approx(1 - SHARE)


def test_absent_subtracts_no_less_than_the_mean(fitted):
    head, npca, _ = fitted
    fixes = [SpuFix(head, npca, CHOSEN, reference=r) for r in ("mean", "absent")]
    with torch.no_grad():
        mean, absent = (fix(X) for fix in fixes)
        assert (absent <= mean + 1e-5).all()
        assert (absent[:, [2, 4]] < mean[:, [2, 4]] - 1e-3).any()
        assert torch.equal(absent[:, [0, 1, 3]], head(X)[:, [0, 1, 3]])
    assert torch.equal(fixes[0].head.weight_fix, fixes[1].head.weight_fix)  # only the offset differs
    with torch.no_grad():
        assert torch.equal(SpuFix(head, npca, {}, reference="absent")(X), head(X))


def test_one_group_is_measured_from_the_mean_and_said(fitted):
    head, npca, _ = fitted
    alone = next(c for c in range(1, 8) if npca.absent_[2][c, 1].isinf())
    with pytest.warns(PfungstWarning, match=f"component {alone} of class 2 does not fall into two groups"):
        absent = SpuFix(head, npca, {2: [alone]}, reference="absent")
    with torch.no_grad():
        torch.testing.assert_close(absent(X), SpuFix(head, npca, {2: [alone]})(X), atol=1e-6, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PfungstWarning)
        SpuFix(head, npca, CHOSEN, reference="absent")


def test_a_component_that_adds_nothing_to_the_logit():
    """Σ_j v[j] = 0: α is 0 in every image, and what lacks the feature has no place in ψ."""
    phi = torch.tensor([[1.0, -1.0], [-1.0, 1.0]] * 20, dtype=torch.float64)
    model = Vectors(torch.ones(2, 2, dtype=torch.float64))
    npca = NeuralPCA(1).fit(FeatureHead(model, example=phi[:2, :, None, None]), phi, np.arange(40) // 20)
    with pytest.warns(PfungstWarning, match="two groups"):
        fix = SpuFix(model, npca, {1: [0]}, reference="absent")
    with torch.no_grad():
        torch.testing.assert_close(fix(phi[:, :, None, None]), model(phi[:, :, None, None]))


def test_transfer_takes_the_images_that_lack_the_feature_by_identifier(fitted, tmp_path):
    head, npca, store = fitted
    other = FeatureHead(small_net(seed=7, width=20), example=X[:2])
    fix = SpuFix(head, npca, CHOSEN, reference="absent")
    order = np.random.default_rng(0).permutation(len(ROWS))
    shuffled = extract_features(
        other, [ROWS[i] for i in order], tmp_path / "b", dtype="float32", progress=False
    )
    moved = fix.transfer(other, source=store, target=shuffled)
    assert moved.reference == "absent"
    phi, beta = other.features(X), {}
    with torch.no_grad():
        for row, k in enumerate(CHOSEN):
            beta[k] = moved.head.beta(phi)[:, row]
            rows = [i for i, (_, _, label) in enumerate(ROWS) if label == k]
            without = [i for i in rows if (i // 5) % 10 >= 10 * SHARE]
            assert float(beta[k][without].mean()) == pytest.approx(0.0, abs=1e-5)
            assert float(beta[k][list(set(rows) - set(without))].min()) > 0.01
        published = SpuFix(head, npca, CHOSEN).transfer(other, source=store, target=shuffled)
        assert (moved(X) <= published(X) + 1e-5).all()
    full = [row for i, row in enumerate(ROWS) if (i // 5) % 10 < 10 * SHARE]
    part = extract_features(other, full, tmp_path / "c", progress=False)
    with (
        pytest.warns(PfungstWarning, match="no counterpart"),
        pytest.raises(InputError, match=r"components \[0\]"),
    ):
        fix.transfer(other, source=store, target=part)


def test_components_saved_before_there_was_a_reference(fitted, tmp_path):
    head, npca, _ = fitted
    npca.save(tmp_path / "new")
    again = NeuralPCA.load(tmp_path / "new", head)
    assert all(torch.equal(again.absent_[k], npca.absent_[k]) for k in npca.classes_)
    tensors = {k: t for k, t in load_file(tmp_path / "new.safetensors").items() if not k.startswith("absent")}
    save_file(tensors, str(tmp_path / "new.safetensors"))
    old = NeuralPCA.load(tmp_path / "new", head)
    with torch.no_grad():
        assert torch.equal(SpuFix(head, old, CHOSEN)(X), SpuFix(head, npca, CHOSEN)(X))
    with pytest.raises(InputError, match="fit NeuralPCA again"):
        SpuFix(head, old, CHOSEN, reference="absent")
    with pytest.raises(InputError, match="'median'"):
        SpuFix(head, npca, CHOSEN, reference="median")


def test_a_saved_fix_says_its_reference_and_an_old_one_is_the_papers(fitted, tmp_path):
    head, npca, _ = fitted
    fix = SpuFix(head, npca, CHOSEN, reference="absent")
    fix.save(tmp_path / "fix")
    loaded = SpuFix.load(tmp_path / "fix", small_net())
    assert loaded.reference == "absent"
    with torch.no_grad():
        assert torch.equal(loaded(X), fix(X))
    meta = json.loads((tmp_path / "fix.json").read_text())
    del meta["reference"]
    (tmp_path / "fix.json").write_text(json.dumps(meta))
    assert SpuFix.load(tmp_path / "fix", small_net()).reference == "mean"
