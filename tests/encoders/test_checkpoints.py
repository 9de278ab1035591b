"""Checkpoints in the layouts they are published in, made here."""

import argparse

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet50

from pfungst.encoders import load, read_checkpoint
from pfungst.encoders.checkpoints import best_prefix, load_state
from pfungst.errors import CheckpointError, ConfigError, PfungstWarning


@pytest.fixture(scope="module")
def trained_resnet50() -> nn.Module:
    torch.manual_seed(5)
    model = resnet50(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model


def expected(model: nn.Module, encoder, x: torch.Tensor) -> torch.Tensor:
    fc, model.fc = model.fc, nn.Identity()
    try:
        with torch.no_grad():
            return model(encoder.normalise(x))
    finally:
        model.fc = fc


X = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_vissl(tmp_path, trained_resnet50):
    trunk = {f"_feature_blocks.{k}": v for k, v in trained_resnet50.state_dict().items() if k[:3] != "fc."}
    nested = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(128, 2048)}}
    torch.save(
        {"classy_state_dict": {"base_model": {"model": nested, "meta": {}}}, "phase_idx": 99, "loss": 0.5},
        tmp_path / "simclr.torch",
    )
    encoder = load(f"vissl:{tmp_path / 'simclr.torch'}")
    assert encoder.trained
    assert encoder.name == "vissl:simclr.torch"
    assert encoder.preprocessing.condition == "crop:0.875+pillow-bilinear"
    torch.testing.assert_close(encoder(X), expected(trained_resnet50, encoder, X))


def test_barlow_twins_published_and_training_checkpoint(tmp_path, trained_resnet50):
    plain = {k: v for k, v in trained_resnet50.state_dict().items() if not k.startswith("fc.")}
    torch.save(plain, tmp_path / "resnet50.pth")
    training = {f"module.backbone.{k}": v for k, v in plain.items()}
    training["module.projector.0.weight"] = torch.zeros(8192, 2048)
    torch.save({"epoch": 1000, "model": training, "optimizer": {}}, tmp_path / "checkpoint.pth")
    first = load(f"barlowtwins:{tmp_path / 'resnet50.pth'}")
    second = load(f"barlowtwins:{tmp_path / 'checkpoint.pth'}")
    torch.testing.assert_close(first(X), expected(trained_resnet50, first, X))
    torch.testing.assert_close(first(X), second(X))


@pytest.fixture(scope="module")
def clip_rn50():
    torch.manual_seed(6)
    return open_clip.create_model("RN50", pretrained=None).eval()


def clip_expected(clip, encoder, x):
    with torch.no_grad():
        return clip.visual(encoder.normalise(x))


def test_openai_rn50_state_dict_and_pubmedclip(tmp_path, clip_rn50):
    x = torch.rand(1, 3, 224, 224)
    state = {k: v.half().float() for k, v in clip_rn50.state_dict().items()}
    clip_rn50.load_state_dict(state)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    extra = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77)}
    torch.save(half | extra, tmp_path / "RN50.pt")
    encoder = load("open_clip:RN50", checkpoint=tmp_path / "RN50.pt")
    assert encoder.preprocessing.condition == "crop:1+pillow-bicubic"
    torch.testing.assert_close(encoder(x), clip_expected(clip_rn50, encoder, x))

    torch.save({"epoch": 50, "state_dict": half, "best_dev_loss": 0.1}, tmp_path / "PubMedCLIP_RN50.pth")
    medical = load(f"pubmedclip:{tmp_path / 'PubMedCLIP_RN50.pth'}")
    assert medical.architecture["spec"] == "open_clip:RN50"
    torch.testing.assert_close(medical(x), encoder(x))


def test_openai_torchscript_archive_needs_trust(tmp_path):
    model = resnet18(weights=None).eval()
    torch.jit.trace(model, torch.rand(1, 3, 32, 32)).save(str(tmp_path / "archive.pt"))
    with pytest.raises(CheckpointError, match="TorchScript") as caught:
        load("torchvision:resnet18", checkpoint=tmp_path / "archive.pt")
    assert "trust_checkpoint" in caught.value.remedy
    encoder = load("torchvision:resnet18", checkpoint=tmp_path / "archive.pt", trust_checkpoint=True)
    model.fc = nn.Identity()
    torch.testing.assert_close(encoder(X), model(encoder.normalise(X)))


def test_unsafe_pickle_is_refused_with_reason_and_switch(tmp_path):
    model = resnet18(weights=None)
    path = tmp_path / "with_args.pth"
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace") as caught:
        read_checkpoint(path)
    assert "trust_checkpoint=True" in caught.value.remedy
    assert "conv1.weight" in read_checkpoint(path, trust_checkpoint=True)


def test_malicious_pickle_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_checkpoint(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04broken"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path / name)


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")
    torch.save({"epoch": 3, "note": "empty"}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="epoch, note"):
        read_checkpoint(tmp_path / "empty.pth")


def test_missing_tensors_and_wrong_shapes_are_named(tmp_path):
    state = resnet18(weights=None).state_dict()
    lacking = {k: v for k, v in state.items() if k not in ("layer3.0.conv1.weight", "bn1.bias")}
    save_file(lacking, str(tmp_path / "lacking.safetensors"))
    with pytest.raises(CheckpointError, match=r"lacks 2 of .* bn1.bias, layer3.0.conv1.weight"):
        load("torchvision:resnet18", checkpoint=tmp_path / "lacking.safetensors")
    wrong = state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    save_file(wrong, str(tmp_path / "wrong.safetensors"))
    with pytest.raises(CheckpointError, match=r"conv1.weight is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)"):
        load("torchvision:resnet18", checkpoint=tmp_path / "wrong.safetensors")
    save_file(state | {"bn1.bias": torch.full((64,), torch.nan)}, str(tmp_path / "nan.safetensors"))
    with pytest.raises(CheckpointError, match=r"not finite: bn1.bias"):
        load("torchvision:resnet18", checkpoint=tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="lacks"):
        load("torchvision:resnet50", checkpoint=tmp_path / "wrong.safetensors")


def test_nothing_is_loaded_when_something_is_missing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(CheckpointError):
        load_state(model, {"0.weight": torch.ones(2, 2)}, "memory")
    assert torch.equal(model.state_dict()["0.weight"], before)


def test_unexpected_tensors_warn_but_other_towers_do_not(tmp_path):
    state = resnet18(weights=None).state_dict()
    save_file(state | {"layer4.5.conv1.weight": torch.zeros(1)}, str(tmp_path / "more.safetensors"))
    with pytest.warns(PfungstWarning, match=r"layer4\.5\.conv1\.weight"):
        load("torchvision:resnet18", checkpoint=tmp_path / "more.safetensors")
    report = load_state(
        nn.Sequential(nn.Linear(2, 2)),
        {"net.0.weight": torch.ones(2, 2), "net.0.bias": torch.ones(2), "text.w": torch.ones(1)},
        "memory",
    )
    assert (report.prefix, report.loaded, report.unexpected, report.ignored) == ("net.", 2, [], 1)


def test_best_prefix():
    assert best_prefix(["a.b.conv.w", "a.b.bn.w", "conv.w"], ["conv.w", "bn.w"]) == "a.b."
    assert best_prefix(["conv.w"], ["conv.w"]) == ""


def test_checkpoints_of_unknown_networks(tmp_path):
    torch.save({"linear.weight": torch.zeros(2, 2)}, tmp_path / "mlp.pth")
    with pytest.raises(CheckpointError, match="holds no ResNet"):
        load(f"vissl:{tmp_path / 'mlp.pth'}")
    with pytest.raises(CheckpointError, match="no CLIP image encoder"):
        load(f"pubmedclip:{tmp_path / 'mlp.pth'}")
    with pytest.raises(ConfigError, match="brings its weights"):
        load(f"vissl:{tmp_path / 'mlp.pth'}", checkpoint="x.pth")


def test_depth_is_read_off_the_checkpoint(tmp_path):
    state = {f"backbone.{k}": v for k, v in resnet18(weights=None).state_dict().items() if k[:3] != "fc."}
    torch.save(state, tmp_path / "r18.pth")
    assert load(f"barlowtwins:{tmp_path / 'r18.pth'}").architecture["spec"] == "torchvision:resnet18"
