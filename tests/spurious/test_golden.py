"""Values of the published code on stated toy data (SPURIOUS_GOLDEN.md)."""

import numpy as np
import pytest
import torch

from pfungst.spurious import (
    FeatureHead,
    LinearHead,
    NeuralPCA,
    SpuFix,
    extract_features,
    neuron_importance,
    rank_neurons,
    score_probabilities,
    select,
    visualise,
)
from pfungst.spurious.spufix import fold, match_directions
from pfungst.spurious.visualise import apgd
from spurious_toys import ConvNet, Vectors, toy, toy_conv, toy_scores

COMPONENTS = {0: [0, 2], 2: [1]}
MANY = {0: [0, 1, 2, 3, 4], 1: [1], 2: [1, 3], 3: [4]}


@pytest.fixture(scope="module")
def gold(golden):
    return np.load(golden / "spurious_golden.npz")


@pytest.fixture(scope="module")
def inputs(gold):
    made = toy()
    for name, array in made.items():
        np.testing.assert_array_equal(array, gold[f"in_{name}"])
    return {name: torch.from_numpy(array).double() for name, array in made.items()}


@pytest.fixture(scope="module")
def labels():
    return np.repeat(np.arange(4), 60)


@pytest.fixture(scope="module")
def npca(inputs, labels):
    head = LinearHead(inputs["W"], inputs["b"])
    return NeuralPCA(n_components=None).fit(head, inputs["phi"].flatten(0, 1), labels)


@pytest.fixture(scope="module")
def second(inputs):
    return LinearHead(inputs["W2"], inputs["b2"])


def test_eigenvalues_vectors_and_means(npca, gold, inputs):
    for k in range(4):
        np.testing.assert_allclose(npca.explained_variance(k), gold["pca_eigenvalues"][k], rtol=1e-9)
        np.testing.assert_allclose(npca.mean_[k], gold["pca_mean"][k], atol=1e-12)
        cosine = (npca.components_[k].numpy() * gold["pca_eigenvectors"][k].T).sum(1)
        assert np.abs(cosine).min() >= 1 - 1e-9
        psi = npca.head_.psi(inputs["phi"][k], k)
        np.testing.assert_allclose(psi, gold["psi_train"][k], atol=1e-12)
        assert npca.explained_variance_ratio(k).sum().item() == pytest.approx(1)


def test_alpha(npca, gold, inputs):
    for k in range(4):
        for part, phi in (("train", inputs["phi"][k]), ("test", inputs["phi_test"])):
            alpha = npca.alpha_features(phi, k)
            np.testing.assert_allclose(alpha, gold[f"alpha_{part}_scaled"][k], atol=1e-9)
            unscaled = (alpha / npca.scale(k)).abs()
            np.testing.assert_allclose(unscaled, np.abs(gold[f"alpha_{part}_unscaled"][k]), atol=1e-9)


def test_single_precision_fit(inputs, labels, gold):
    head = LinearHead(inputs["W"].float(), inputs["b"].float())
    npca = NeuralPCA(n_components=None).fit(head, inputs["phi"].float().flatten(0, 1), labels)
    for k in range(4):
        alpha = npca.alpha_features(inputs["phi"][k].float(), k)
        np.testing.assert_allclose(alpha, gold["alpha_train_scaled_f32_fit"][k], atol=1e-4)


def test_top_images(npca, gold):
    for k in range(4):
        for component in range(32):
            top = npca.top_images(k, component, 5)
            assert [int(i) - 60 * k for i, _ in top] == gold["top5_train_idx_alpha"][k, component].tolist()
            assert [a for _, a in top] == sorted((a for _, a in top), reverse=True)


def test_fewer_points_than_dimensions(gold):
    x = torch.from_numpy(gold["pca_small_X"]).T.contiguous()
    npca = NeuralPCA(n_components=None).fit(LinearHead(torch.ones(1, 6).double()), x, np.zeros(4, dtype=int))
    np.testing.assert_allclose(npca.explained_variance(0), gold["pca_small_eigenvalues"][:3], rtol=1e-9)
    np.testing.assert_allclose(npca.mean_[0], gold["pca_small_mean"].ravel(), atol=1e-12)


@pytest.mark.parametrize("which", ["self", "transfer"])
def test_matched_directions(npca, gold, inputs, second, which):
    head, phi2 = (npca.head_, inputs["phi"]) if which == "self" else (second, inputs["phi2"])
    for k in range(4):
        directions, values = match_directions(npca, k, range(5), inputs["phi"][k], head, phi2[k])
        np.testing.assert_allclose(directions, gold[f"maxcov_{which}_direction"][k], atol=1e-9)
        np.testing.assert_allclose(values, gold[f"maxcov_{which}_value"][k], rtol=1e-9)


def model_of(head):
    return Vectors(head.weight, head.bias)


def corrected(head, directions, means, phi, clip=True):
    """Logits through the module that users get."""
    feature_head = FeatureHead(model_of(head), example=phi[:, :, None, None])
    fix = SpuFix.__new__(SpuFix)
    torch.nn.Module.__init__(fix)
    fix._install(feature_head, {k: [] for k in directions}, directions, means, clip)
    with torch.no_grad():
        return fix(phi[:, :, None, None])


@pytest.mark.parametrize(("components", "suffix"), [(COMPONENTS, ""), (MANY, "_many")])
def test_spufix_on_the_original_model(npca, gold, inputs, components, suffix):
    x = inputs["phi_test"][:, :, None, None]
    model = model_of(npca.head_)
    np.testing.assert_allclose(model(x).detach(), gold["logits_plain_original"], atol=1e-9)
    fix = SpuFix(FeatureHead(model, example=x), npca, components)
    with torch.no_grad():
        np.testing.assert_allclose(fix(x), gold[f"spufix_logits_original{suffix}"], atol=1e-9)
        one = fix(x[:1])
    np.testing.assert_allclose(one[0], gold[f"spufix_logits_original{suffix}"][0], atol=1e-9)


def test_spufix_without_clipping_and_with_matched_directions(npca, gold, inputs):
    x = inputs["phi_test"][:, :, None, None]
    head = FeatureHead(model_of(npca.head_), example=x)
    with torch.no_grad():
        logits = SpuFix(head, npca, COMPONENTS, clip=False)(x)
    np.testing.assert_allclose(logits, gold["spufix_logits_original_notonlypos"], atol=1e-9)
    directions = {
        k: match_directions(npca, k, part, inputs["phi"][k], npca.head_, inputs["phi"][k])[0]
        for k, part in COMPONENTS.items()
    }
    logits = corrected(npca.head_, directions, npca.mean_, inputs["phi_test"])
    np.testing.assert_allclose(logits, gold["spufix_logits_original_matched"], atol=1e-9)


@pytest.mark.parametrize(
    ("components", "clip", "suffix"),
    [(COMPONENTS, True, ""), (COMPONENTS, False, "_notonlypos"), (MANY, True, "_many")],
)
def test_spufix_transferred(npca, gold, inputs, second, components, clip, suffix):
    directions = {
        k: match_directions(npca, k, part, inputs["phi"][k], second, inputs["phi2"][k])[0]
        for k, part in components.items()
    }
    means = {k: second.psi(inputs["phi2"][k], k).mean(0) for k in components}
    np.testing.assert_allclose(torch.stack([means[k] for k in means]), gold["mean2"][list(means)], atol=1e-12)
    logits = corrected(second, directions, means, inputs["phi2_test"], clip)
    np.testing.assert_allclose(logits, gold[f"spufix_logits_transfer{suffix}"], atol=1e-9)


def test_the_whole_way_through_stores_in_single_precision(gold, inputs, labels, tmp_path):
    models, stores = [], []
    for w, b, phi in (("W", "b", "phi"), ("W2", "b2", "phi2")):
        x = inputs[phi].float().flatten(0, 1)[:, :, None, None]
        models.append(FeatureHead(Vectors(inputs[w].float(), inputs[b].float()), example=x))
        rows = [(str(i), image, int(k)) for i, (image, k) in enumerate(zip(x, labels, strict=True))]
        stores.append(extract_features(models[-1], rows, tmp_path / phi, dtype="float32", progress=False))
    npca = NeuralPCA(n_components=5).fit(models[0], stores[0])
    fix = SpuFix(models[0], npca, COMPONENTS).transfer(models[1], source=stores[0], target=stores[1])
    with torch.no_grad():
        logits = fix(inputs["phi2_test"].float()[:, :, None, None])
    np.testing.assert_allclose(logits, gold["spufix_logits_transfer_f32_pipeline"], atol=1e-4)


def test_beta_of_each_component(npca, gold, inputs, second):
    for which, head, phi, phi2, test in (
        ("original", npca.head_, inputs["phi"], inputs["phi"], inputs["phi_test"]),
        ("transfer", second, inputs["phi"], inputs["phi2"], inputs["phi2_test"]),
    ):
        directions = {
            k: match_directions(npca, k, part, phi[k], head, phi2[k])[0] for k, part in COMPONENTS.items()
        }
        means = {k: head.psi(phi2[k], k).mean(0) for k in COMPONENTS}
        weight, offset, classes = fold(head, directions, means)
        assert classes.tolist() == [0, 0, 2]
        np.testing.assert_allclose(test @ weight.T + offset, gold[f"spufix_beta_{which}"], atol=1e-9)


def test_spurious_score(gold):
    positives, negatives = {}, {}
    for k, (z_in, z_out) in toy_scores().items():
        for side, z, name in ((positives, z_in, "val"), (negatives, z_out, "spurious")):
            probabilities = torch.from_numpy(z).softmax(1)
            np.testing.assert_allclose(probabilities[:, k], gold[f"score_prob_{name}_{k}"], atol=2e-6)
            side[k] = gold[f"score_prob_{name}_{k}"]
            share = (probabilities.argmax(1) == k).double().mean().item()
            index = gold["score_class_ids"].tolist().index(k)
            assert share == pytest.approx(gold[f"score_frac_{name}_as_class"][index])
    score = score_probabilities(positives, negatives)
    ids = gold["score_class_ids"].tolist()
    for i, k in enumerate(ids):
        entry = score.classes[k]
        assert entry.average_precision == pytest.approx(gold["score_class_ap"][i], abs=1e-9)
        assert entry.auc == pytest.approx(gold["check_roc_auc_sklearn"][i], abs=1e-9)
        assert entry.mean_positive == pytest.approx(gold["score_mean_prob_val"][i], abs=2e-6)
        assert entry.mean_negative == pytest.approx(gold["score_mean_prob_spurious"][i], abs=2e-6)
        assert entry.low < entry.auc < entry.high
    assert score.published_mAP == pytest.approx(float(gold["score_mean_ap"]), abs=1e-9)
    assert score.joint_average_precision == pytest.approx(float(gold["score_joint_ap"]), abs=1e-9)
    assert score.mauc == pytest.approx(gold["check_roc_auc_sklearn"].mean(), abs=1e-9)


@pytest.mark.parametrize(("by", "key"), [("predicted", "pred"), ("label", "label")])
def test_neuron_ranking(inputs, labels, gold, by, key):
    head = LinearHead(inputs["W"], inputs["b"])
    phi = inputs["phi"].flatten(0, 1)
    np.testing.assert_array_equal(head.logits(phi).argmax(1), gold["singla_pred_train"])
    importance = neuron_importance(head, phi, labels, by=by)
    np.testing.assert_allclose(importance, gold[f"singla_importance_{key}"], atol=1e-9)
    np.testing.assert_array_equal(rank_neurons(importance), gold[f"singla_rank_{key}"])


# --- feature visualisation --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conv(gold):
    p = toy_conv()
    for key, value in (("train_images", "conv_train_images_sum"), ("x_init", "conv_x_init_sum")):
        assert p[key].astype(np.float64).sum() == pytest.approx(float(gold[value]), rel=1e-12)
    head = FeatureHead(ConvNet(p), example=torch.from_numpy(p["train_images"]))
    phi = head.features(torch.from_numpy(p["train_images"])).detach()
    npca = NeuralPCA(n_components=None).fit(head, phi, np.zeros(60, dtype=int))
    return npca, torch.from_numpy(p["x_init"]), phi


def test_conv_components(conv, gold):
    npca, _, phi = conv
    cosine = (npca.components_[0].numpy() * gold["conv_pca_eigenvectors"].T).sum(1)
    assert np.abs(cosine).min() > 0.999999
    np.testing.assert_allclose(npca.alpha_features(phi, 0), gold["conv_alpha_train_scaled"], atol=1e-4)
    with torch.no_grad():
        grey = npca.alpha(torch.full((1, 3, 32, 32), 0.5), 0)[0]
    np.testing.assert_allclose(grey, gold["conv_alpha_gray"], atol=1e-4)


def ascend(conv, kind, start, radius, steps, background=0.5, which=(0, 1, 2)):
    npca, x_init, _ = conv
    v = npca.components_[0][list(which)]
    scale = v.sum(1) if kind == "obj_full" else v.sum(1).sign()
    d = v * npca.head_.weight[0] * scale[:, None]
    grey = torch.full((1, 3, 32, 32), background)
    begin = (x_init if start == "xinit" else grey).expand(len(which), -1, -1, -1)
    result = apgd(lambda x: (npca.model.features(x) * d).sum(1), begin, grey, radius, steps)
    with torch.no_grad():
        alpha = npca.alpha(result.images, 0)[range(len(which)), list(which)]
    return result, alpha, (result.images - grey).flatten(1).norm(dim=1)


@pytest.mark.parametrize("kind", ["obj_full", "obj"])
@pytest.mark.parametrize("start", ["xinit", "gray"])
def test_visualisation_follows_the_published_ascent(conv, gold, kind, start):
    result, alpha, moved = ascend(conv, kind, start, 3.0, 50)
    for c in range(3):
        key = f"vis_{kind}_c{c}_{start}"
        grey = gold["conv_alpha_gray"][c]
        assert alpha[c] - grey >= 0.99 * (gold[f"{key}_alpha"] - grey)
        assert moved[c] <= 3 * (1 + 1e-5)
        assert result.values[c].item() == pytest.approx(float(gold[f"{key}_objective"]), rel=2e-4)
        np.testing.assert_allclose(result.trace[c], gold[f"{key}_trace"], rtol=2e-3)
    assert alpha[0] >= 0.1016


def test_visualisation_in_a_larger_ball_and_at_the_box(conv, gold):
    for start in ("xinit", "gray"):
        result, alpha, moved = ascend(conv, "obj_full", start, 12.0, 200, which=(0, 2))
        for row, c in enumerate((0, 2)):
            key = f"vis_eps12_obj_full_c{c}_{start}"
            grey = gold["conv_alpha_gray"][c]
            assert alpha[row] - grey >= 0.99 * (gold[f"{key}_alpha"] - grey)
            assert moved[row] <= 12 * (1 + 1e-5)
            assert result.values[row].item() == pytest.approx(float(gold[f"{key}_objective"]), rel=1e-3)
            np.testing.assert_allclose(result.trace[row], gold[f"{key}_trace"], rtol=5e-3)
    result, _, moved = ascend(conv, "obj_full", "gray", 12.0, 100, background=0.97, which=(2,))
    key = "vis_box_obj_full_c2_bg97"
    assert result.values[0].item() == pytest.approx(float(gold[f"{key}_objective"]), rel=1e-3)
    at_box = ((result.images == 0) | (result.images == 1)).double().mean().item()
    assert at_box == pytest.approx(float(gold[f"{key}_frac_at_box"]), abs=0.01)
    assert moved[0] <= 12 * (1 + 1e-5)


def test_random_starts_and_selection(conv, gold):
    npca = conv[0]
    shown = visualise(npca, [(0, 0), (0, 1)], (3, 32, 32), radius=3.0, steps=50)
    grey = gold["conv_alpha_gray"]
    assert shown.alpha[0] - grey[0] >= 0.97 * (gold["vis_entrypoint_c0_alpha"] - grey[0])
    alone = visualise(npca, [(0, 1)], (3, 32, 32), radius=3.0, steps=50)
    torch.testing.assert_close(alone.images[0], shown.images[1], atol=5e-3, rtol=0)
    best = select(npca, 0, n=3, candidates=6, shape=(3, 32, 32), radius=3.0, steps=20)
    everything = visualise(npca, [(0, c) for c in range(6)], (3, 32, 32), radius=3.0, steps=20)
    order = everything.confidence.argsort(descending=True)[:3]
    assert best.pairs == [(0, int(c)) for c in order]
    assert "robust" in best.note
