"""The mended model that leaves: loaded anew, exported, and compared with what was audited on 100 images."""

import json
import runpy
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import classifier_factory
import similarity_factory
from factories import mini_mvtec
from pfungst.anomaly import KDE, Autoencoder, Bag, D2Neighbors, PatchCore, Tiled
from pfungst.anomaly.module import as_module
from pfungst.anomaly.one_class import DeepOneClass
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run as run_anomaly
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.run import run as run_classifier
from pfungst.audit.mended import Mended, export_mended, folders
from pfungst.audit.similarity.run import run as run_similarity
from pfungst.encoders.edits import folded_state
from pfungst.errors import ConfigError, DataError, InputError
from pfungst.mitigate import GaussianBlur, LowPass, export
from pfungst.relevance import Pixels

FORMATS = list(export.FORMATS)


def images(n=100, size=16, seed=1):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", [GaussianBlur(5, 1.2), LowPass(40)], ids=["blur", "low-pass"])
def test_the_adjoint_of_a_filter_is_that_of_its_matrix(layer):
    x, y = images(2, 12)
    x, y = x[None], y[None]
    assert torch.allclose((layer(x) * y).sum(), (x * layer.adjoint(y)).sum(), rtol=1e-5)


FITTED = {
    "d2": lambda: D2Neighbors(device="cpu"),
    "d2 blurred": lambda: D2Neighbors(features=GaussianBlur(5, 1.0), device="cpu"),
    "d2 low-pass, sequence": lambda: D2Neighbors(
        features=nn.Sequential(GaussianBlur(3, 1.0), LowPass(60)), device="cpu"
    ),
    "d2 p=1": lambda: D2Neighbors(p=1, device="cpu"),
    "d2 p=4": lambda: D2Neighbors(p=4, device="cpu"),
    "kde student": lambda: KDE(kernel="student", features=GaussianBlur(5, 1.0), device="cpu"),
}


@pytest.mark.parametrize("name", FITTED)
def test_the_module_of_prototypes_gives_score_and_explanation(name):
    detector = FITTED[name]().fit(images(20, seed=0))
    module = as_module(detector)
    x = torch.cat([images(8), images(20, seed=0)[:1]])  # the last one is a prototype itself
    score, found = module(x)
    expected = detector.explain(x, Pixels())
    assert export.gap([score], [expected.score]) < 1e-5
    assert export.gap([found], [expected.values]) < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: PatchCore(
            "resnet18", coreset=0.5, reweight=3, neighbours=2, dim=64, layer_dim=64, device="cpu"
        ),
        lambda: Autoencoder(epochs=1, device="cpu", features=GaussianBlur(3, 1.0)),
        lambda: DeepOneClass("small:4", device="cpu"),
        lambda: Bag([D2Neighbors(device="cpu"), KDE(device="cpu")]),
        lambda: Tiled(D2Neighbors(device="cpu"), tile=24, overlap=8),
    ],
    ids=["patchcore", "autoencoder", "one-class", "bag", "tiled"],
)
@pytest.mark.filterwarnings("ignore")
def test_detectors_leave_as_torch_programs_and_onnx(make, tmp_path):
    detector = make().fit(images(12, 40, seed=0))
    x = images(100, 40)
    module = as_module(detector).eval()
    with torch.no_grad():
        found = module(x)
    assert export.gap(found[:1], [detector.anomaly_score(x)]) < 1e-4
    if isinstance(detector, PatchCore):
        assert export.gap(found[1:], [detector.anomaly_map(x)]) < 1e-4
    program = export.trace(module, x[:2])
    export.write_onnx(program, tmp_path / "m.onnx", module.outputs, {"name": "m"})
    export.write_torch_export(program, tmp_path / "m.pt2", {"name": "m"})
    assert export.gap(export.run_onnx(tmp_path / "m.onnx", x), found) < 1e-4
    assert export.gap(export.run_torch_export(tmp_path / "m.pt2", x), found) < 1e-4


@pytest.fixture(scope="module")
def anomaly(tmp_path_factory):
    root = tmp_path_factory.mktemp("anomaly")
    data = mini_mvtec(root / "data", ("bolt",), train=8, good=50, defective=25, size=40)
    config = AnomalyConfig.build(
        data=data, size=32, seeds=2, out=root / "out", model="d2neighbors", examples=1, mitigate="blur:5,1.0"
    )
    return run_anomaly(config), root / "out"


def test_the_mended_detector_is_written_and_exported(anomaly):
    result, out = anomaly
    (folder,) = folders(out)
    about = json.loads((folder / "mended.json").read_text())
    assert about["images"] == 100
    assert about["gap"] <= 1e-5
    assert any("the mended model is in mended/" in n for n in result.entries[0].notes)
    loaded = runpy.run_path(str(folder / "load.py"))["model"]
    assert len((folder / "load.py").read_text().splitlines()) <= 10
    arrays = np.load(out / result.entries[0].arrays)
    data = out.parent / "data" / "bolt" / "test"
    for id_, score in list(zip(arrays["ids"], arrays["scores_deployed-mended"], strict=True))[::30]:
        said = loaded.read(next(data.parent.rglob(str(id_).removeprefix("bolt/"))))
        assert said["score"] == pytest.approx(score, rel=1e-5)
        assert said["abnormal"] == (score > arrays["threshold_deployed-mended"])
    found = export_mended(folder, FORMATS, folder)
    assert sorted(p.name for p in found) == sorted(export.FORMATS.values())
    assert max(found.values()) <= 1e-4
    x = images(100, 32)
    expected = loaded(x)
    assert export.gap(export.run_onnx(folder / "model.onnx", x), expected) <= 1e-4
    assert export.gap(export.run_torch_export(folder / "model.pt2", x), expected) <= 1e-4


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    data = classifier_factory.make(tmp_path_factory.mktemp("classifier"), val=34)
    config = ClassifierConfig.build(
        model=f"{data / 'toy.py'}:biased", train=data / "train", val=data / "val", size=16,
        original="pillow-bilinear", spurious=data / "spurious", n_components=4, batch_size=16, witness="none",
        components=None, out=data / "out",
    )  # fmt: skip
    return run_classifier(config), data / "out"


def test_the_mended_classifier_is_written_and_exported(classifier):
    result, out = classifier
    assert result.chosen_by == "evidence"
    (folder,) = folders(out)
    model = Mended.load(folder)
    assert model.about.images == 100
    assert model.check() <= 1e-5
    found = export_mended(folder, FORMATS, out / "exported")
    assert max(found.values()) <= 1e-4
    x = images(100)
    with torch.no_grad():
        expected = [model(x)]
    assert export.gap(export.run_onnx(out / "exported/model.onnx", x), expected) <= 1e-4
    assert export.gap(export.run_torch_export(out / "exported/model.pt2", x), expected) <= 1e-4
    # the state dict, run by a head written here
    state = load_file(out / "exported/state_dict.safetensors")
    assert {"conv.weight", "conv.bias", "fc.weight", "fc.bias"} < set(state)
    phi = torch.relu(nn.functional.conv2d(x, state["conv.weight"], state["conv.bias"])).mean((2, 3))
    logits = phi @ state["fc.weight"].T + state["fc.bias"]
    for a, c, k in zip(state["fc.weight_fix"], state["fc.offset_fix"], state["fc.class_fix"], strict=True):
        logits[:, k] -= (phi @ a + c).clamp_min(0)
    assert export.gap([logits], expected) <= 1e-4


def test_an_unclipped_spufix_folds_into_a_plain_linear_layer():
    from pfungst.spurious.spufix import FixedHead

    linear = nn.Linear(5, 3)
    head = FixedHead(linear, torch.randn(4, 5), torch.randn(4), torch.tensor([0, 2, 2, 1]), clip=False)
    plain = nn.Linear(5, 3)
    weight, bias = head.folded()
    plain.load_state_dict({"weight": weight, "bias": bias})
    phi = torch.randn(7, 5)
    assert torch.allclose(plain(phi), head(phi), atol=1e-5)
    assert FixedHead(linear, *head.buffers(), clip=True).folded() is None
    assert {"weight", "bias"} < set(head.state_dict())


def test_a_model_that_differs_when_loaded_anew_is_not_written(classifier, tmp_path, monkeypatch):
    from pfungst.audit import mended
    from pfungst.files import write_tensors

    _, out = classifier
    model = Mended.load(out / "mended")

    def wrong(place):
        shutil.copytree(out / "mended", place, dirs_exist_ok=True)
        state = load_file(out / "mended/model.safetensors")
        write_tensors(place / "model.safetensors", state | {"conv.bias": state["conv.bias"] + 1e-2})

    x, expected = model.sample()
    note = mended.write_mended(tmp_path / "mended", model.about, wrong, x, expected, [])
    assert "could not be written" in note or "differs" in note
    assert not (tmp_path / "mended").exists()


@pytest.fixture(scope="module")
def similarity(tmp_path_factory):
    root = tmp_path_factory.mktemp("similarity")
    data = similarity_factory.mini_images(root / "data", per_class=34)
    logo = similarity_factory.logo(root / "logo.png")
    config = similarity_factory.config(
        data, root / "out", condition=[f"logo:{logo},width=0.5,margin=1"], mitigate="prune:auto:1"
    )
    return run_similarity(config), root / "out"


def test_the_pruned_encoder_is_written_and_exported(similarity):
    result, out = similarity
    (folder,) = folders(out)
    model = Mended.load(folder)
    assert model.about.images == 100
    assert model.about.gap <= 1e-5
    assert any("the mended model is in" in n for n in result.notes)
    x = images(100)
    assert model.about.outputs == ["embedding", "logits"]
    assert list(model.about.classes.values()) == result.classes
    with torch.no_grad():
        expected = list(model(x))
    found = export_mended(folder, ["onnx", "torch-export"], folder)
    assert max(found.values()) <= 1e-4
    assert export.gap(export.run_onnx(folder / "model.onnx", x), expected) <= 1e-4
    assert export.gap(export.run_torch_export(folder / "model.pt2", x), expected) <= 1e-4


def test_filters_that_are_off_everywhere_fold_into_the_weights():
    from pfungst.encoders import load
    from pfungst.encoders.edits import apply_edit
    from pfungst.mitigate import prunable_layers

    encoder = load("small:4", size=16)
    plain = load("small:4", size=16, seed=9)
    layer = prunable_layers(encoder, 16)[0]
    edit = {"layer": layer, "filters": [0, 2], "rows": None, "cols": None, "size": None}
    apply_edit(encoder, edit)
    state = folded_state(encoder)
    assert state is not None
    plain.features.load_state_dict(state, strict=True)
    x = images(4)
    assert torch.allclose(plain(x), encoder(x), atol=1e-6)
    apply_edit(encoder, edit | {"rows": [0, 2]})
    assert folded_state(encoder) is None


def test_nothing_mended_is_a_named_error(anomaly, tmp_path):
    _, out = anomaly
    shutil.copy(out / "result.json", tmp_path)
    with pytest.raises(DataError, match="holds no mended model"):
        folders(tmp_path)
    with pytest.raises(ConfigError, match="no mended model 'nut'"):
        folders(out, "nut")


def test_a_detector_without_a_form_says_so():
    class Odd(D2Neighbors.__mro__[2]):
        _fit = _score = _explain = _state = _restore = lambda self, *a: None

    with pytest.raises(InputError, match="has no form that torch can export"):
        as_module(Odd())
