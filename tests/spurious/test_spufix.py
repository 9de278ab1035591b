import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pfungst.errors import DataError, InputError, PfungstWarning
from pfungst.spurious import FeatureHead, LinearHead, NeuralPCA, SpuFix, extract_features
from pfungst.spurious.spufix import fold
from spurious_toys import Vectors, items, small_net

pytestmark = pytest.mark.filterwarnings("ignore:.*does not fall into two groups")  # random images do not
ROWS = items(150)
X = torch.stack([image for _, image, _ in ROWS])
CHOSEN = {0: [0, 2], 3: [1]}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    head = FeatureHead(small_net(), example=X[:2])
    store = extract_features(head, ROWS, tmp_path_factory.mktemp("s") / "a", dtype="float32", progress=False)
    return head, NeuralPCA(8).fit(head, store), store


@pytest.fixture(params=["mean", "absent"])
def reference(request):
    return request.param


def by_hand(head, npca, x, components, reference="mean"):
    """The definition, one class and component after the other."""
    logits = head(x).clone()
    for k, part in components.items():
        alpha = npca.alpha(x, k)
        if reference == "absent":
            alpha = alpha - npca.absent_[k][:, 0].to(alpha)
        for component in part:
            logits[:, k] -= alpha[:, component].clamp_min(0)
    return logits


def test_subtracts_positive_alphas_only_from_their_class(fitted, reference):
    head, npca, _ = fitted
    fix = SpuFix(head, npca, CHOSEN, reference=reference)
    with torch.no_grad():
        fixed, plain = fix(X), head(X)
        torch.testing.assert_close(fixed, by_hand(head, npca, X, CHOSEN, reference), atol=1e-5, rtol=1e-5)
    assert torch.equal(fixed[:, [1, 2, 4]], plain[:, [1, 2, 4]])
    assert (fixed[:, 0] < plain[:, 0]).any()
    assert (fixed[:, 0] <= plain[:, 0]).all()


def test_leaves_the_model_as_it_was_and_shares_its_weights(fitted):
    head, npca, _ = fitted
    before = {name: type(m) for name, m in head.model.named_modules()}
    fix = SpuFix(head, npca, CHOSEN)
    assert {name: type(m) for name, m in head.model.named_modules()} == before
    assert fix.head.weight.data_ptr() == head.module.weight.data_ptr()
    fix.double()
    with torch.no_grad():
        assert fix(X[:2].double()).dtype == torch.float64
        assert head(X[:2]).dtype == torch.float32


def test_identity_without_components(fitted):
    head, npca, _ = fitted
    for components in ({}, {2: []}):
        with torch.no_grad():
            assert torch.equal(SpuFix(head, npca, components)(X), head(X))


def test_transfer_to_itself_is_the_original_fix(fitted, reference):
    head, npca, store = fitted
    fix = SpuFix(head, npca, CHOSEN, reference=reference)
    again = fix.transfer(head.model, ROWS)
    stores = fix.transfer(head, source=store, target=store)
    with torch.no_grad():
        torch.testing.assert_close(again(X), fix(X), atol=1e-5, rtol=0)
        torch.testing.assert_close(stores(X), fix(X), atol=1e-5, rtol=0)


def test_transfer_matches_images_by_identifier_not_by_order(fitted, tmp_path):
    head, npca, store = fitted
    other = FeatureHead(small_net(seed=7, width=20), example=X[:2])
    fix = SpuFix(head, npca, CHOSEN)
    order = np.random.default_rng(0).permutation(len(ROWS))
    shuffled = extract_features(
        other, [ROWS[i] for i in order], tmp_path / "b", dtype="float32", progress=False
    )
    direct = fix.transfer(other, ROWS)
    matched = fix.transfer(other, source=store, target=shuffled)
    with torch.no_grad():
        torch.testing.assert_close(matched(X), direct(X), atol=1e-5, rtol=0)
        assert (direct(X)[:, [0, 3]] - other(X)[:, [0, 3]]).abs().max() > 1e-3
    part = extract_features(other, ROWS[:100], tmp_path / "c", progress=False)
    with pytest.warns(PfungstWarning, match="20 of 60 images have no counterpart"):
        fix.transfer(other, source=store, target=part)
    tiny = extract_features(other, ROWS[:10], tmp_path / "d", progress=False)
    with pytest.raises(InputError, match="class 0 has 2 images with the same identifier"):
        fix.transfer(other, source=store, target=tiny)
    relabelled = [(name, image, (label + 1) % 5) for name, image, label in ROWS]
    wrong = extract_features(other, relabelled, tmp_path / "e", progress=False)
    with pytest.raises(DataError, match="label 0 in one store and 1 in the other"):
        fix.transfer(other, source=store, target=wrong)
    with pytest.raises(InputError, match="target store was made with another model"):
        fix.transfer(other, source=store, target=store)


def test_transfer_refuses_what_cannot_work(fitted):
    head, npca, _ = fitted
    fix = SpuFix(head, npca, CHOSEN)
    with pytest.raises(InputError, match="read only once"):
        fix.transfer(head, iter(ROWS))
    with pytest.raises(InputError, match="nothing to match"):
        fix.transfer(head)
    with pytest.raises(InputError, match="7 classes, this one 5"):
        fix.transfer(FeatureHead(small_net(classes=7), example=X[:2]), ROWS)
    with pytest.raises(InputError, match="fitted on another model"):
        SpuFix(FeatureHead(small_net(seed=1), example=X[:2]), npca, CHOSEN)
    with pytest.raises(InputError, match="no component 8"):
        SpuFix(head, npca, {0: [8]})


def test_temperature_is_kept(reference):
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 6), torch.randn(3)
    x = torch.rand(90, 6, 1, 1)
    x[::4] += 3 * weight[1, :, None, None]  # a feature in some images
    plain, scaled = Vectors(weight, bias), Vectors(weight, bias, 0.7156)
    labels = np.arange(90) % 3
    fixes = []
    for model in (plain, scaled):
        head = FeatureHead(model, example=x)
        npca = NeuralPCA(4).fit(head, x.flatten(1), labels)
        fix = SpuFix(head, npca, {1: [0, 1]}, reference=reference)
        with torch.no_grad():
            torch.testing.assert_close(
                fix(x), by_hand(head, npca, x, {1: [0, 1]}, reference), atol=1e-5, rtol=1e-5
            )
        fixes.append(fix)
    with torch.no_grad():
        torch.testing.assert_close(fixes[1](x), fixes[0](x) / 0.7156, atol=1e-4, rtol=1e-4)
        rows = [(str(i), image, int(label)) for i, (image, label) in enumerate(zip(x, labels, strict=True))]
        other = fixes[0].transfer(scaled, rows)
        torch.testing.assert_close(other(x), fixes[1](x), atol=1e-4, rtol=1e-4)


def test_batch_of_one_gradient_and_half_precision(fitted, reference):
    head, npca, _ = fitted
    fix = SpuFix(head, npca, CHOSEN, reference=reference)
    with torch.no_grad():
        torch.testing.assert_close(fix(X[:1])[0], fix(X)[0], atol=1e-6, rtol=1e-5)
        cast = torch.autocast("cpu", torch.bfloat16)
        with cast:
            assert (fix(X) - fix(X).float()).abs().max() == 0
    x = X[:2].double().requires_grad_(True)
    double = SpuFix(head, npca, CHOSEN, reference=reference).double()
    assert torch.autograd.gradcheck(lambda v: double(v), (x[:, :, :5, :5],), atol=1e-4, eps=1e-6)


def test_everything_is_in_the_state_dict(fitted):
    head, npca, _ = fitted
    fix, other = SpuFix(head, npca, CHOSEN), SpuFix(head, npca, {1: [3, 4], 2: [0]})
    with torch.no_grad():
        assert not torch.equal(fix(X), other(X))
        other.load_state_dict(fix.state_dict())
        assert torch.equal(fix(X), other(X))


def test_save_and_load(fitted, reference, tmp_path):
    head, npca, _ = fitted
    fix = SpuFix(head, npca, CHOSEN, reference=reference)
    fix.save(tmp_path / "fix")
    loaded = SpuFix.load(tmp_path / "fix", small_net())
    with torch.no_grad():
        assert torch.equal(loaded(X), fix(X))
    assert loaded.components == CHOSEN
    with pytest.raises(InputError, match="made for another model"):
        SpuFix.load(tmp_path / "fix", small_net(seed=1))
    with pytest.raises(InputError, match="cannot be read"):
        SpuFix.load(tmp_path / "none", small_net())
    with pytest.raises(InputError, match="loaded without its components"):
        loaded.transfer(head, ROWS)


def test_nearly_collinear_directions_share_and_are_reported():
    d = torch.randn(8, dtype=torch.float64)
    pair = torch.stack([d, d + 1e-7 * torch.randn(8, dtype=torch.float64)])
    pair /= pair.norm(dim=1, keepdim=True)
    head, mean = LinearHead(torch.rand(1, 8).double() + 0.5), torch.zeros(8).double()
    with pytest.warns(
        PfungstWarning, match=r"2 directions of class 0 are nearly dependent .*cosine\| 1.0000"
    ):
        weight, offset, _ = fold(head, {0: pair}, {0: mean})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single, _, _ = fold(head, {0: pair[:1]}, {0: mean})
    torch.testing.assert_close(weight[0], single[0] / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weight.sum(0), single[0], atol=1e-5, rtol=1e-5)
    assert offset.tolist() == [0, 0]


def test_convolutional_head():
    torch.manual_seed(0)
    model = timm.create_model("resnetv2_50x1_bit", num_classes=3).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    x = torch.rand(12, 3, 32, 32)
    head = FeatureHead(model, example=x)
    with torch.no_grad():
        npca = NeuralPCA(2).fit(head, head.features(x), np.arange(12) % 3)
        fix = SpuFix(head, npca, {1: [0, 1]})
        torch.testing.assert_close(fix(x), by_hand(head, npca, x, {1: [0, 1]}), atol=1e-4, rtol=1e-4)


def test_hugging_face_output_stays_what_it_was():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=12, patch_size=4,
        num_labels=5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    head = FeatureHead(model, example=X[:2])
    with torch.no_grad():
        npca = NeuralPCA(3).fit(head, head.features(X), [label for _, _, label in ROWS])
        fix = SpuFix(head, npca, {2: [0]})
        torch.testing.assert_close(fix(X).logits, by_hand(head, npca, X, {2: [0]}), atol=1e-5, rtol=1e-4)


def test_torch_export_and_onnx(fitted, reference, tmp_path):
    head, npca, _ = fitted
    fix = SpuFix(head, npca, CHOSEN, reference=reference)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(fix, (X[:4],), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        for n in (1, 9):
            torch.testing.assert_close(program.module()(X[:n]), fix(X[:n]), atol=1e-5, rtol=1e-5)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "fix.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fix,
            (X[:4],),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["x"],
            verbose=False,
        )
    session = runtime.InferenceSession(str(path))
    for n in (1, 9):
        (out,) = session.run(None, {"x": X[:n].numpy()})
        np.testing.assert_allclose(out, fix(X[:n]).detach(), atol=1e-5, rtol=1e-4)
