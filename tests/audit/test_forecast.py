"""--dry-run: what is forecast against what audits do, in images convolved, which do not depend on the machine."""

import re
import warnings

import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import similarity_factory
from classifier_factory import SIZE, make
from pfungst.audit.anomaly import forecast as anomaly
from pfungst.audit.anomaly import run as anomaly_run
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.prepare import check, open_sets
from pfungst.audit.classifier import forecast as classifier
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.prepare import Given
from pfungst.audit.classifier.run import dry_run, run
from pfungst.audit.recognised import Clock, Cost, some
from pfungst.audit.similarity import forecast as similarity
from pfungst.audit.similarity import run as similarity_run


class Convolved(TorchDispatchMode):
    """Counts the images of every convolution, forwards and backwards."""

    images = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            self.images += len(args[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return make(tmp_path_factory.mktemp("squares"), train=90, val=30)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return similarity_factory.mini_images(folder / "scans", per_class=60), similarity_factory.logo(
        folder / "tag.png"
    )


def config(data, out, **options):
    base = {"model": f"{data}/toy.py:biased", "train": data / "train", "val": data / "val", "size": SIZE}
    return ClassifierConfig.build(**base | {"out": out, "n_components": 4, "device": "cpu"} | options)


def test_parts_count_as_often_as_the_audit_does_them():
    ticks = iter([0, 2, 10, 13, 20, 25, 30, 31, 40, 43])
    clock = Clock(lambda: next(ticks))
    assert clock(lambda: "loaded") == "loaded"  # 2 s once
    assert clock.last == 2
    clock(lambda: None, 10)  # 3 s for a tenth
    assert clock.seconds == 2 + 30
    assert clock.repeated([lambda: 1, lambda: 2, lambda: 3], 4) == [1, 2, 3]  # 5 s, then 1 s and 3 s
    assert clock.last == 2
    assert clock.seconds == 32 + 4 * 2 + (5 - 2)


def test_a_cost_is_told_as_a_range():
    assert str(Cost(80, 1.24e9)) == "estimate: 64 s to 100 s, 1.2 GB of memory"
    told = str(Cost(3000, 5e7, 2e9, ["--ray", "--discover"]))
    assert (
        told
        == "estimate: 40 min to 62 min, 50 MB of memory, 2.0 GB on disk meanwhile; without --ray and --discover"
    )
    assert str(Cost(200, 1e9)) == "estimate: 2.7 min to 4.2 min, 1.0 GB of memory"


def test_some_rows_are_spread_evenly():
    assert some(np.arange(10), 3) == [0, 4, 9]
    assert some(np.arange(2), 5) == [0, 1]
    assert some(np.arange(0), 5) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shown": 2, "rule": "npfv", "steps": 20, "candidates": 4},
        {"condition": ["jpeg:30"], "classes": ["green"], "workers": 0},
    ],
)
def test_a_classifier_audit_convolves_as_many_images_as_forecast(squares, tmp_path, options):
    chosen = config(squares, tmp_path / "out", **options)
    with Convolved() as counted:
        run(chosen)
    with Convolved() as tried:
        cost = classifier.estimate(
            Given.check(chosen.model_copy(update={"overwrite": True})), lambda: tried.images
        )
    assert cost.seconds == pytest.approx(counted.images, rel=0.25)


@pytest.mark.parametrize(
    "options", [{"explain": 24}, {"condition": "LOGO", "mitigate": "prune:auto", "limit": 120}]
)
def test_a_similarity_audit_convolves_as_many_images_as_forecast(scans, tmp_path, options):
    data, logo = scans
    if "condition" in options:
        options = options | {"condition": [f"logo:{logo},width=0.6,margin=1"]}
    chosen = similarity_factory.config(data, tmp_path / "out", **options)
    with Convolved() as counted:
        similarity_run.run(chosen)
    again = chosen.model_copy(update={"overwrite": True})
    with Convolved() as tried:
        cost = similarity.estimate(again, *similarity_run.check(again), lambda: tried.images)
    assert cost.seconds == pytest.approx(counted.images, rel=0.25)


def test_a_detector_grows_by_the_power_that_twice_as_many_images_show():
    half, whole = anomaly._Tried(1.0, 1.0, 2.0, 0.0, 10.0), anomaly._Tried(4.0, 1.0, 4.0, 0.0, 20.0)
    assert whole.grown(half, 3.0) == pytest.approx((36.0, 1.0, 12.0, 0.0, 60.0))  # square, constant, linear


@pytest.mark.slow
def test_an_anomaly_audit_convolves_as_many_images_as_forecast(tmp_path):
    chosen = AnomalyConfig.build(
        data="synthetic", category=["turned_ring"], size=32, seeds=2, out=tmp_path / "out", device="cpu",
        model="patchcore:backbone=small:4,layers=stage2+stage3",
    )  # fmt: skip
    with warnings.catch_warnings(), Convolved() as counted:
        warnings.simplefilter("ignore")
        anomaly_run.run(chosen)
    again = chosen.model_copy(update={"overwrite": True})
    with warnings.catch_warnings(), Convolved() as tried:
        warnings.simplefilter("ignore")
        cost = anomaly.estimate(open_sets(again), check(again), again, lambda: tried.images)
    assert cost.seconds == pytest.approx(counted.images, rel=0.25)


def test_a_dry_run_writes_nothing(squares, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dry_run(config(squares, tmp_path / "out", features=tmp_path / "features"))
    assert "classes  blue 90, green 90, red 90" in said
    alike = similarity_run.dry_run(similarity_factory.config(scans[0], tmp_path / "out"))
    assert "scanner: " in alike
    for text in (said, alike):
        assert re.search(r"\n\nestimate: \S+ \w+ to \S+ \w+, \S+ [MG]B of memory", text)
    assert not list(tmp_path.iterdir())


def test_data_are_told_though_the_model_cannot_be_tried(squares, scans, tmp_path):
    (squares / "bad.py").write_text(
        "from torch import nn\nclass Bad(nn.Linear):\n    def forward(self, x):\n"
        "        raise RuntimeError('no rain')\ndef bad():\n    return Bad(3, 3)\n"
    )
    for model, why in ((f"{squares}/bad.py:bad", "no rain"), (f"{squares}/toy.py:nothing", "nothing")):
        said = dry_run(config(squares, tmp_path / "out", model=model))
        assert "classes  blue 90, green 90, red 90" in said
        assert "estimate: none, the audit could not be tried: " in said
        assert why in said
    alike = similarity_run.dry_run(similarity_factory.config(scans[0], tmp_path / "out", encoder="small:no"))
    assert "scanner: " in alike
    assert "estimate: none, the audit could not be tried: " in alike
