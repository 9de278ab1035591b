"""One choice of devices: unknown and absent ones are named before anything is loaded."""

import numpy as np
import pytest
import torch
from torch import nn

from pfungst.device import check_device, choose_device
from pfungst.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    """As many CUDA GPUs as asked."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("count", "name", "kind"), [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu")]
)
def test_auto_is_the_gpu_where_there_is_one(gpus, count, name, kind):
    gpus(count)
    assert choose_device(name) == torch.device(kind)
    assert choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["tpu", "gpu", "", "cuda:x", "cuda:", "cuda:-1", "auto:0", "meta", "CUDA", "cpu,0"]
)
def test_unknown_devices_are_named(name):
    for check in (check_device, choose_device):
        with pytest.raises(ConfigError, match=r"unknown device .*\n.*known: auto, cpu, cuda"):
            check(name)


def test_absent_devices_and_indices_are_named(gpus):
    gpus(0)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=rf"'{name}' is not available.*\n.*use auto or cpu"):
            choose_device(name)
    check_device("cuda:7")
    gpus(2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="'cuda:2' does not exist: there is cuda:0 to cuda:1"):
        choose_device("cuda:2")
    with pytest.raises(ConfigError, match="'cpu:3' does not exist: there is only cpu:0"):
        choose_device("cpu:3")


@pytest.mark.parametrize("name", ["tpu", "xpu:9"])
def test_every_entry_point_names_it_before_it_looks_at_anything(tmp_path, name):
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.run import run as anomaly
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run as classifier
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run as similarity
    from pfungst.encoders import load
    from pfungst.spurious import extract_features
    from pfungst.spurious.score import class_probabilities

    absent, out = tmp_path / "absent", tmp_path / "out"
    calls = [
        lambda: anomaly(AnomalyConfig.build(data=absent, out=out, device=name)),
        lambda: similarity(SimilarityConfig.build(images=absent, encoder="small:8", out=out, device=name)),
        lambda: classifier(
            ClassifierConfig.build(model="absent.py:f", train=absent, val=absent, out=out, device=name)
        ),
        lambda: load("pfungst:absent", device=name),
        lambda: extract_features(nn.Linear(2, 2), [], out, device=name),
        lambda: class_probabilities(nn.Linear(2, 2), [], device=name),
        lambda: load("small:8").encode(torch.rand(2, 3, 32, 32), device=name),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="device"):
            call()
    assert not out.exists()


def test_the_pool_names_it_before_models_are_loaded(tmp_path):
    from PIL import Image

    from pfungst.pool import PoolModel, index, score

    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    index(tmp_path / "images", tmp_path / "pool")
    for workers in (0, 2):
        with pytest.raises(ConfigError, match="unknown device 'tpu'"):
            score(tmp_path / "pool", [PoolModel("m", "absent.py:f")], workers=workers, device="tpu")


class OnMPS(torch.Tensor):
    """A tensor that is said to lie on an MPS device, where float64 raises as it does there."""

    device = torch.device("mps")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return found.as_subclass(torch.Tensor)
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, cls) and one.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework does not")
        return found


def test_float64_is_made_on_the_cpu_where_the_device_has_none():
    from pfungst.device import double
    from pfungst.relevance.responses import Centres
    from pfungst.similarity import Decomposition, Sketch
    from pfungst.similarity.pairs import line_strength

    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    there = x.as_subclass(OnMPS)
    with pytest.raises(TypeError, match="float64"):
        there.double()
    assert double(there).dtype == torch.float64
    assert torch.equal(double(there), x.double())
    assert torch.allclose(line_strength(there).as_subclass(torch.Tensor), line_strength(x))
    ours, theirs = (Sketch.principal(values, 2, 2).directions(5) for values in (x, there))
    assert torch.allclose(ours, theirs)
    assert Decomposition(2).sums(3).dtype == torch.float64
    maps = torch.rand(4, 8, 3)
    assert np.array_equal(Centres.along(maps.as_subclass(OnMPS), 0).at, Centres.along(maps, 0).at)


def test_what_needs_float64_refuses_mps_by_name(monkeypatch, tmp_path):
    from pfungst.anomaly import KDE, D2Neighbors
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.run import run as anomaly
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run as classifier

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    absent, out = tmp_path / "absent", tmp_path / "out"
    for call in (
        lambda: anomaly(AnomalyConfig.build(data=absent, out=out, device="mps")),
        lambda: classifier(
            ClassifierConfig.build(model="absent.py:f", train=absent, val=absent, out=out, device="mps")
        ),
        lambda: D2Neighbors(device="mps").fit(torch.rand(4, 3, 8, 8)),
        lambda: KDE(device="mps").fit(torch.rand(4, 3, 8, 8)),
    ):
        with pytest.raises(ConfigError, match="'mps' has no float64"):
            call()
    assert not out.exists()
