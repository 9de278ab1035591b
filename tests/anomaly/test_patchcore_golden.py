"""PatchCore against the published reference implementation (golden outputs)."""

import numpy as np
import PIL
import pytest
import torch
import torchvision
from PIL import Image

from pfungst.anomaly import PatchCore
from pfungst.anomaly.coreset import covering_radius, greedy_coreset, random_coreset
from pfungst.anomaly.patch_features import PatchFeatures


@pytest.fixture(scope="module")
def reference(golden):
    path = golden / "patchcore_golden.npz"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def backbone(reference):
    """ResNet-18 with the weights that the golden description draws."""
    random = np.random.RandomState(0)
    network = torchvision.models.resnet18(weights=None).eval()
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(tensor.shape)
        if tensor.ndim == 4:
            draw = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name == "fc.weight":
            draw = 0.01 * random.randn(*shape)
        elif name == "fc.bias":
            draw = np.zeros(shape)
        elif name.endswith("weight") or name.endswith("running_var"):
            draw = np.ones(shape)
        else:
            draw = (0.05 if name.endswith("running_mean") else 0.1) * random.randn(*shape)
        state[name] = torch.tensor(draw, dtype=torch.float32)
    network.load_state_dict(state)
    sums = [float(t.double().sum()) for n, t in state.items() if not n.endswith("num_batches_tracked")]
    np.testing.assert_allclose(sums, reference["backbone_sums"], rtol=1e-4, atol=1e-3)
    return network


def detector(backbone, **options):
    settings = {
        "layer_dim": 64,
        "dim": 64,
        "coreset": 1.0,
        "distance": "squared",
        "batch_size": 2,
        "device": "cpu",
    }
    return PatchCore(backbone, **(settings | options))


@pytest.fixture(scope="module")
def noise():
    z = np.random.RandomState(1).randn(10, 3, 128, 128).astype(np.float32)
    z[8:, :, 40:88, 40:88] += 2
    return torch.from_numpy(z)


def raw(network_input):
    """Images that the normalisation turns into the given network input."""
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return network_input * std + mean


VARIANTS = {
    "": {},
    "_pre100_tgt70": {"layer_dim": 100, "dim": 70},
    "_ps5": {"patch": 5},
    "_ps4": {"patch": 4},
    "_stride2": {"stride": 2},
    "_layer2only": {"layers": ["layer2"]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_embeddings(reference, backbone, noise, name):
    options = {"layers": ["layer2", "layer3"], "layer_dim": 64, "dim": 64} | VARIANTS[name]
    with torch.no_grad():
        maps = PatchFeatures(backbone, **options)(noise[:1])
    key = "syn_embed_img0" if not name else f"syn_embed{name}"
    want = reference[key]
    np.testing.assert_allclose(maps[0].flatten(1).T.numpy(), want, rtol=1e-5, atol=1e-4)


def test_embedding_of_other_shapes(reference, backbone):
    z = torch.from_numpy(np.random.RandomState(2).randn(1, 3, 96, 160).astype(np.float32))
    with torch.no_grad():
        maps = PatchFeatures(backbone, layer_dim=64, dim=64)(z)
    assert maps.shape[-2:] == (12, 20)
    np.testing.assert_allclose(
        maps[0].flatten(1).T.numpy(), reference["syn_embed_nonsquare"], rtol=1e-5, atol=1e-4
    )


def test_the_order_of_layers_only_sets_the_grid(backbone, noise):
    with torch.no_grad():
        forward = PatchFeatures(backbone, ["layer2", "layer3"]).tap(noise[:1])
        backward = PatchFeatures(backbone, ["layer3", "layer2"]).tap(noise[:1])
    assert torch.equal(forward[0], backward[1])
    assert torch.equal(forward[1], backward[0])


class TestNoise:
    """Scores, maps and segmentation of synthetic images. They leave [0, 1], so the pieces are called directly."""

    @pytest.fixture(scope="class")
    def fitted(self, backbone, noise):
        model = detector(backbone, mean=(0.0,) * 3, std=(1.0,) * 3)
        return fit_unchecked(model, noise[:6])

    def test_bank(self, fitted, reference):
        bank = fitted.bank_.rows
        assert list(bank.shape) == reference["syn_bank_shape"].tolist()
        np.testing.assert_allclose([bank.mean(), bank.std()], reference["syn_bank_mean_std"], rtol=1e-4)

    def test_maps_and_scores(self, fitted, noise, reference):
        maps = torch.cat([fitted._patches(fitted._maps(z))[1].mean(2) for z in noise[6:].split(1)])
        np.testing.assert_allclose(
            maps.unflatten(1, (16, 16)), reference["syn_patch_maps"], rtol=1e-4, atol=1e-3
        )
        scores = fitted._score(noise[6:])
        np.testing.assert_allclose(scores, reference["syn_image_scores"], rtol=1e-5)

    def test_five_neighbours(self, backbone, noise, reference):
        model = detector(backbone, neighbours=5, mean=(0.0,) * 3, std=(1.0,) * 3)
        scores = fit_unchecked(model, noise[:6])._score(noise[6:])
        np.testing.assert_allclose(scores, reference["syn_image_scores_nn5"], rtol=1e-5)

    def test_segmentation(self, reference):
        from pfungst.anomaly.patchcore import gaussian_smooth

        maps = torch.from_numpy(reference["syn_patch_maps"][3]).float()[None, None]
        full = torch.nn.functional.interpolate(maps, size=(128, 128), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(gaussian_smooth(full, 4.0)[0, 0], reference["syn_seg_img9"], rtol=1e-5)

    def test_euclidean_is_the_root(self, backbone, noise, fitted):
        model = fit_unchecked(
            detector(backbone, distance="euclidean", mean=(0.0,) * 3, std=(1.0,) * 3), noise[:6]
        )
        np.testing.assert_allclose(model._score(noise[6:]) ** 2, fitted._score(noise[6:]), rtol=1e-5)


def fit_unchecked(model, x):
    """Fit on tensors outside [0, 1], which `fit` refuses."""
    model.sample_shape_ = tuple(x.shape[1:])
    model.training_scores_ = model._fit(x).numpy()
    model.threshold_ = float(np.quantile(model.training_scores_, model.quantile))
    model.condition_ = None
    return model


def tiles(shared, files):
    root = shared / "data" / "magnetic_tile" / "tile"
    if not root.is_dir():
        pytest.skip(f"needs {root}")
    if int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip(f"the reference's pictures were resized by Pillow 13, this is {PIL.__version__}")
    images = []
    for name in files:
        path = next((p for p in (root / str(name), root.parent / str(name)) if p.exists()), None)
        assert path is not None, name
        image = Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    return torch.stack(images)


@pytest.fixture(scope="module", params=["A", "B"])
def tile_set(request, shared, reference, backbone):
    name = request.param
    train = tiles(shared, reference[f"{name}_train_files"])
    test = tiles(shared, reference[f"{name}_test_files"])
    return name, detector(backbone, calibration=5).fit(train), test


def test_tiles_without_coreset(tile_set, reference):
    name, model, test = tile_set
    bank = model.bank_.rows
    assert list(bank.shape) == reference[f"{name}_bank_shape"].tolist()
    np.testing.assert_allclose([bank.mean(), bank.std()], reference[f"{name}_bank_mean_std"], rtol=1e-5)
    np.testing.assert_allclose(bank[:256], reference[f"{name}_embed_train0"], rtol=1e-5, atol=1e-4)
    maps = model.patch_scores(test)
    np.testing.assert_allclose(maps, reference[f"{name}_patch_maps"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(model.anomaly_score(test), reference[f"{name}_image_scores"], rtol=1e-5)
    if name == "A":
        found = torch.cat([model._patches(model._maps(x))[2][..., 0] for x in test.split(8)])
        agree = (found.unflatten(1, (16, 16)).numpy() == reference["A_nn_index"]).mean()
        assert agree >= 0.995
        seg = model.anomaly_map(test[reference["A_seg_idx"]])
        np.testing.assert_allclose(seg, reference["A_segs"], rtol=1e-4, atol=1e-3)


def test_coreset_covers_tiles_like_the_reference(tile_set, reference):
    name, model, _ = tile_set
    bank = model.bank_.rows
    core = greedy_coreset(bank, len(bank) // 10)
    limit = 1.05 * reference[f"{name}_coreset_greedynp_radius"].reshape(-1, 2)[:, 0].min()
    assert core.radius <= limit
    assert core.radius == pytest.approx(radius(bank, core.indices), rel=1e-4)
    for seed in range(3):
        assert random_coreset(bank, len(bank) // 10, seed).radius > limit


def test_small_coreset_task(reference):
    bank = torch.from_numpy(reference["cs_bank"]).float()
    size = len(reference["cs_greedy_noproj_idx"])
    core = greedy_coreset(bank, size)
    assert core.radius <= 1.05 * float(np.ravel(reference["cs_greedy_noproj_radius"])[0])
    assert covering_radius(bank, torch.from_numpy(reference["cs_greedy_noproj_idx"]).long()) == pytest.approx(
        float(np.ravel(reference["cs_greedy_noproj_radius"])[0]), rel=1e-4
    )
    assert random_coreset(bank, size).radius > 1.05 * float(np.ravel(reference["cs_greedy_noproj_radius"])[0])


def radius(x, indices):
    return float(torch.cdist(x.double(), x[indices].double()).amin(1).max())
