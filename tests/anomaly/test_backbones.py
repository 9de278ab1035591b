"""Backbones by name: their layers, and those with weights from packages."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pfungst.anomaly import DeepOneClass, PatchCore
from pfungst.anomaly.patch_features import middle_layers
from pfungst.encoders import load, packages
from pfungst.encoders.packages import PACKAGES, installed
from pfungst.errors import ConfigError, PfungstWarning


def images(n, size=64, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def need(name):
    if installed(PACKAGES[name].distribution.replace("-", "_")) is None:
        pytest.skip(f"needs {PACKAGES[name].distribution}")


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("resnet18", ("layer2", "layer3")),
        ("efficientnet-lite0", ("blocks.2", "blocks.4")),
        ("mobilenetv2", ("features.6", "features.13")),
        ("vgg11", ("features.14", "features.19")),
        ("densenet121", ("features.denseblock2", "features.denseblock3")),
        ("inception_v3", ("Mixed_5d", "Mixed_6e")),
    ],
)
def test_default_layers_divide_the_image_by_8_and_16(spec, layers):
    assert middle_layers(load(spec, "backbone", weights=False).features) == layers


def test_networks_without_such_layers_are_told_to_name_some():
    for network in (nn.Conv2d(3, 2, 3), load("timm:vit_tiny_patch16_224").features):
        with pytest.raises(ConfigError, match="no layers that divide images"):
            middle_layers(network)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mobilenetv2"])
@pytest.mark.parametrize("kind", [PatchCore, DeepOneClass])
def test_backbones_with_weights(name, kind, tmp_path, monkeypatch):
    need(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PfungstWarning)
        model = kind(name, device="cpu").fit(images(6))
    x = images(2, seed=1)
    found = model.explain(x)
    torch.testing.assert_close(found.sum() + found.bias, found.score, rtol=1e-4, atol=1e-4)
    encoder = load(name)
    assert model.chain_.normalise.mean.flatten().tolist() == pytest.approx(encoder.preprocessing.mean)
    own = {k: v for k, v in encoder.features.state_dict().items() if v.is_floating_point()}
    assert all(torch.equal(v, model.backbone_.state_dict()[k]) for k, v in own.items())
    model.save(tmp_path / "model")
    monkeypatch.setattr(packages, "installed", lambda module: None)  # the saved detector holds the weights
    again = kind.load(tmp_path / "model")
    assert torch.equal(again.anomaly_score(x), model.anomaly_score(x))


@pytest.mark.parametrize("spec", ["resnet18", "torchvision:resnet18", "timm:resnet18"])
def test_random_weights_are_said_whatever_the_name(spec):
    """Only plain names of torchvision were; `torchvision:resnet18` passed as if it were trained."""
    with pytest.warns(PfungstWarning, match="random weights"):
        DeepOneClass(spec, device="cpu").fit(images(4, 32))


def test_trained_weights_find_magnetic_tiles_that_random_ones_do_not(shared):
    from csv import DictReader

    from PIL import Image

    from pfungst.measure import auroc

    need("mobilenetv2")
    root, random = shared / "data" / "magnetic_tile", np.random.default_rng(0)
    rows = list(DictReader((root / "mixed.csv").open()))
    parts = [[r for r in rows if (r["split"] == "train") == train] for train in (True, False)]
    counts = (80, 100)
    train, test = ([p[i] for i in random.permutation(len(p))[:n]] for p, n in zip(parts, counts, strict=True))

    def read(rows):
        files = [Image.open(root / r["path"]).convert("RGB").resize((128, 128), Image.BICUBIC) for r in rows]
        return torch.stack([torch.from_numpy(np.array(f)) for f in files]).permute(0, 3, 1, 2) / 255

    bad = np.array([r["label"] != "good" for r in test])
    areas = []
    for spec in ("mobilenetv2", "torchvision:mobilenet_v2"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PfungstWarning)
            model = PatchCore(spec, coreset=0.05, dim=256, layer_dim=256, device="cpu").fit(read(train))
        areas.append(auroc(bad, model.anomaly_score(read(test)).numpy()))
    assert areas[0] > 0.8 > 0.65 > areas[1], areas
