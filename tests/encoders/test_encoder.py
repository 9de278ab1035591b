import json
import types
import warnings

import pytest
import torch
from torch import nn

from pfungst.encoders import Encoder, Preprocessing, load
from pfungst.errors import CheckpointError, ConditionMismatch, ConfigError, InputError
from pfungst.features import Store

SMALL = Preprocessing(16, "pillow-bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += len(x)
        return x.mean((2, 3))


def images(n=5, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_normalisation_is_inside():
    encoder = Encoder(Mean(), SMALL)
    x = images()
    torch.testing.assert_close(encoder(x), (x.mean((2, 3)) - 0.5) / 0.25)
    torch.testing.assert_close(encoder.features(encoder.normalise(x)), encoder(x))


@pytest.mark.parametrize(
    ("spec", "size", "width", "condition"),
    [
        ("torchvision:resnet18", 64, 512, "crop:0.875+pillow-bilinear"),
        ("torchvision:vit_b_32", 64, 768, "crop:0.875+pillow-bilinear"),
        ("timm:resnet18", 64, 512, "crop:0.95+pillow-bicubic"),
        ("timm:vit_tiny_patch16_224", 64, 192, "crop:0.9+pillow-bicubic"),
        ("open_clip:RN50", 64, 1024, "crop:1+pillow-bicubic"),
        ("small:8", None, 32, "pillow-bilinear"),
    ],
)
def test_architectures(spec, size, width, condition):
    encoder = load(spec, size=size)
    assert encoder.preprocessing.condition == condition
    assert not encoder.trained
    assert not encoder.training
    out = encoder.encode(images(2, encoder.size))
    assert out.shape == (2, width)
    assert (out[0] - out[1]).abs().max() > 0


def test_random_weights_come_from_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = load("small:4"), load("small:4"), load("small:4", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert a.key() == b.key() != c.key()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet5O", "did you mean 'resnet50'"),
        ("timm:vit_tiny_patch16_242", "vit_tiny_patch16_224"),
        ("open_clip:RN5", "RN50"),
        ("small:wide", "no width"),
        ("small:0", "not positive"),
        ("no.such.package:make", "No module named"),
        ("json:nothing", "nothing"),
        ("absent.py:make", "no Python file"),
    ],
)
def test_specifications_that_name_nothing(spec, message):
    with pytest.raises(ConfigError, match=message):
        load(spec)


def test_function_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def make():\n    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
        "def wrong():\n    return 3\n"
    )
    encoder = load(f"{tmp_path / 'mine.py'}:make", size=16)
    assert encoder.encode(images()).shape == (5, 3)
    with pytest.raises(ConfigError, match="returned int"):
        load(f"{tmp_path / 'mine.py'}:wrong")
    folder = encoder.save(tmp_path / "saved")
    assert torch.equal(load(f"pfungst:{folder}")(images()), encoder(images()))


def test_saving_and_loading(tmp_path):
    encoder = load("small:8", size=16, seed=4, condition="opencv-nearest")
    encoder.trained, encoder.info = True, {"epochs": 3}
    folder = encoder.save(tmp_path / "encoder")
    again = load(f"pfungst:{folder}")
    assert torch.equal(again(images()), encoder(images()))
    assert (again.preprocessing, again.info, again.trained) == (encoder.preprocessing, {"epochs": 3}, True)
    assert sorted(p.name for p in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]
    with pytest.raises(CheckpointError, match=r"encoder\.json cannot be read"):
        load(f"pfungst:{tmp_path}")
    description = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(description | {"format": "other/9"}))
    with pytest.raises(CheckpointError, match="other/9"):
        load(f"pfungst:{folder}")
    with pytest.raises(ConfigError, match="not known how to build"):
        Encoder(Mean(), SMALL).save(tmp_path / "x")


def test_cache_is_keyed_by_content_and_survives(tmp_path):
    features = Mean()
    encoder, x = Encoder(features, SMALL), images(6)
    first = encoder.encode(x, cache=tmp_path, batch_size=4)
    assert features.calls == 6
    shuffled = torch.cat([x[[5, 2]], images(1, seed=9)])
    second = encoder.encode(shuffled, cache=tmp_path)
    assert features.calls == 7
    assert torch.equal(second[:2], first[[5, 2]])
    other = Encoder(Mean(), Preprocessing(16, "pillow-bilinear", (0.4, 0.4, 0.4), (0.25,) * 3))
    assert not torch.equal(other.encode(x, cache=tmp_path), first)


def test_cache_keeps_what_an_interrupted_run_computed(tmp_path):
    class Breaks(Mean):
        def forward(self, x):
            if self.calls >= 1024:
                raise KeyboardInterrupt
            return super().forward(x)

    x = images(1100, size=4)
    with pytest.raises(KeyboardInterrupt):
        Encoder(Breaks(), SMALL, "same").encode(x, cache=tmp_path, batch_size=64)
    (folder,) = tmp_path.iterdir()
    assert len(Store(folder)) == 1024


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(3, 16, 16), "shape"),
        (torch.rand(2, 1, 16, 16), "shape"),
        (torch.rand(0, 3, 16, 16), "shape"),
        (torch.rand(2, 3, 16, 16) * 255, "reach from"),
        (torch.rand(2, 3, 16, 16) - 0.5, "reach from"),
        (torch.full((2, 3, 16, 16), torch.nan), "reach from"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8"),
        ([torch.rand(3, 16, 16), torch.rand(3, 16, 20)], "different sizes"),
        ([], "shape"),
    ],
)
def test_bad_images(bad, message):
    with pytest.raises(InputError, match=message):
        Encoder(Mean(), SMALL).encode(bad)


def test_one_image_is_enough():
    assert Encoder(Mean(), SMALL).encode([images(1)[0]]).shape == (1, 3)


def module(function):
    made = nn.Identity()
    made.forward = function
    return made


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: x.mean((1, 2, 3)), "not a matrix"),
        (lambda x: x.mean((2, 3))[:1], "not a matrix"),
        (lambda x: x.mean((2, 3)).log(), "not finite for 5 images"),
        (lambda x: x.mean((2, 3)) if len(x) > 1 else x.flatten(1), "changing width"),
        (lambda x: x.reshape(len(x), 7, -1), "cannot read images"),
    ],
)
def test_bad_encoders(features, message):
    encoder = Encoder(module(features), Preprocessing(16, "none", (2.0,) * 3, (1.0,) * 3))
    with pytest.raises(InputError, match=message):
        encoder.encode(images(5), batch_size=2)


def test_tuples_are_refused():
    encoder = Encoder(module(lambda x: (x, x)), SMALL)
    with pytest.raises(InputError, match="gives tuple"):
        encoder.encode(images())


def test_condition_mismatch_warns():
    encoder = Encoder(Mean(), SMALL)

    def prepared(condition, size=16):
        return types.SimpleNamespace(images=images(2, size), condition=condition)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(prepared("pillow-bilinear"))
        encoder.encode(prepared("pillow-bilinear+jpeg:50"))
    with pytest.warns(ConditionMismatch, match="opencv-nearest"):
        encoder.encode(prepared("opencv-nearest"))
    with pytest.warns(ConditionMismatch, match="20 px"):
        encoder.encode(prepared("pillow-bilinear", 20))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"condition": "bilinear"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (0.5,)},
        {"mean": (float("nan"),) * 3},
    ],
)
def test_bad_preprocessing(settings):
    with pytest.raises(ConfigError):
        Preprocessing(**settings)


def test_preprocessing_round_trip():
    assert Preprocessing.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ConfigError, match="crop"):
        Preprocessing.from_dict({"crop": 3})


def test_a_file_changed_within_the_second_is_read_again(tmp_path):
    """Regression: its bytecode, found by size and second, gave the network of the text before."""
    file = tmp_path / "net.py"
    text = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear({}, 4))\n"
    for width in (12, 48, 27, 75):
        file.write_text(text.format(width))
        assert load(f"{file}:make").features[1].in_features == width
