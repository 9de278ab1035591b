"""What a classifier audit says of other conditions, of classifiers that are none, and of too few images."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from classifier_factory import SIZE, make
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.prepare import Given, load_audited
from pfungst.audit.classifier.run import run
from pfungst.audit.classifier.verdict import Judge
from pfungst.audit.result import Interval, Variant, load
from pfungst.conditions import Condition
from pfungst.data import open_images
from pfungst.encoders import load as load_model
from pfungst.errors import ConfigError
from pfungst.measure.proportions import wilson_of
from pfungst.report import write

_RANDOM = """
import torch
from torch import nn


def untrained(classes=4):
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make(tmp_path_factory.mktemp("squares"))
    mark = np.zeros((6, 10, 4), np.uint8)
    mark[:] = 255
    Image.fromarray(mark).save(root / "mark.png")
    (root / "random.py").write_text(_RANDOM)
    return root


def config(data, out, model="biased", **options):
    base = {
        "model": f"{data}/toy.py:{model}", "train": data / "train", "val": data / "val", "out": out, "size": SIZE,
        "steps": 0, "n_components": 4, "candidates": 4, "shown": 2, "device": "cpu",
    }  # fmt: skip
    return ClassifierConfig.build(**base | options)


@pytest.fixture(scope="module")
def marked(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("marked")
    conditions = (f"logo:{data}/mark.png,width=0.5,margin=0", "jpeg:95")
    return out, run(config(data, out, spurious=data / "spurious", condition=conditions, fix=0))


def test_a_condition_that_costs_accuracy_is_measured_and_explained(data, marked):
    _, result = marked
    logo, jpeg = result.under("logo:mark"), result.under("jpeg:95")
    classifier = load_model(f"{data}/toy.py:biased", "classifier", size=SIZE)
    condition = Condition.parse(
        f"{classifier.preprocessing.condition}+logo:{data}/mark.png,width=0.5,margin=0"
    )
    predicted, labels = [], []
    for item in open_images(data / "val")[0].items:
        predicted.append(int(classifier.model(condition(item.read(), SIZE)[None]).argmax()))
        labels.append(("blue", "green", "red").index(item.label))
    right = np.array(predicted) == np.array(labels)
    assert logo.accuracy.value == pytest.approx(right.mean())
    assert logo.fall.value == pytest.approx(result.accuracy.value - right.mean())
    assert logo.fall.low > 0
    gain = logo.gains[0]
    assert gain.name == "green"
    assert gain.predicted == (10, predicted.count(1))
    assert gain.times > 2
    assert logo.rises.name == "green"
    assert logo.among is None  # the model knows no classes but those of the images
    assert jpeg.fall.value == pytest.approx(0.0, abs=0.05)
    assert list(result.conditions) == ["original", "logo:mark", "jpeg:95"]
    assert result.metrics["fall"].where == "logo:mark"
    assert result.metrics["fall"].value == logo.fall.value
    assert result.metrics["condition-accuracy"].value == logo.accuracy.value


def test_the_verdict_names_the_condition_and_the_class_that_gains(data, tmp_path, marked):
    result = run(
        config(
            data, tmp_path, condition=f"logo:{data}/mark.png,width=0.5,margin=0", classes="red,blue", fix=0
        )
    )
    assert result.verdict.level == "fragile"
    assert "green takes over" in result.verdict.headline
    assert result.verdict.about.condition == "logo:mark"
    assert result.verdict.about.entry == "green"
    assert result.verdict.about.numbers["fall"] == result.under("logo:mark").fall.value
    page = write(tmp_path, result).read_text(encoding="utf-8")
    assert "Accuracy by condition" in page
    assert "What each condition costs" in page


def test_spufix_is_measured_under_each_condition_too(data, tmp_path):
    conditions = f"logo:{data}/mark.png,width=0.5,margin=0"
    result = run(config(data, tmp_path, spurious=data / "spurious", condition=conditions))
    assert result.chosen_by == "evidence"
    variants = [s.variant for s in result.scores]
    assert variants == [
        Variant(condition=c, mitigated=m) for c in ("original", "logo:mark") for m in (False, True)
    ]
    before, after = (result.under("logo:mark", m).accuracy.value for m in (False, True))
    assert after > before
    assert load(tmp_path).scores == result.scores


def test_original_and_deployed_are_conditions_of_their_own(data, tmp_path):
    result = run(config(data, tmp_path, original="opencv-nearest", deployed="opencv-area+quantize:2"))
    assert result.conditions["original"].startswith("OpenCV nearest")
    assert list(result.conditions) == ["original", "deployed"]
    with pytest.raises(ConfigError, match="given twice"):
        run(config(data, tmp_path / "b", condition=("jpeg:30", "jpeg:30")))


def test_a_condition_that_changes_nothing_leaves_the_verdict(data, tmp_path):
    result = run(config(data, tmp_path, "clean", condition="jpeg:95"))
    assert result.verdict.level == "sound"
    assert result.under("jpeg:95").gains == []


# --- names of classes ------------------------------------------------------------------------------------


def test_imagenets_layout_is_sorted_by_wordnet_id_and_classes_are_chosen_by_any_name(data, tmp_path):
    """Regression: of ImageNet's layout some labels were names, others ids, and sorting mixed them up."""
    for part in ("train", "val"):
        for old, new in (("blue", "n01440764"), ("green", "n03000684"), ("red", "n03888257")):
            shutil.copytree(data / part / old, tmp_path / "root" / part / new)
    root = tmp_path / "root"
    options = {"train": root, "val": root, "witness": "none"}
    result = run(config(data, tmp_path / "out", "clean", classes="chain_saw,Tench", **options))
    assert [e.name for e in result.entries] == ["n01440764 tench", "n03000684 chain saw"]
    assert result.accuracy.value == 1.0
    assert result.named_by == "the labels in sorted order"
    for wanted, name in (("n03888257", "n03888257 parachute"), ("1", "n03000684 chain saw")):
        chosen = config(data, tmp_path / wanted, "clean", classes=wanted, **options)
        study = Given.check(chosen).study(load_audited(chosen))
        assert {study.names[k] for k in study.train.labels} == {name}


# --- no classifier, too few images -----------------------------------------------------------------------


def test_an_untrained_classifier_is_unfit(data, tmp_path):
    """Regression: an untrained classifier with 25 % accuracy on four classes was called sound."""
    for part in ("train", "val"):
        shutil.copytree(data / part, tmp_path / part)
        shutil.copytree(data / part / "red", tmp_path / part / "also")
    result = run(
        config(data, tmp_path / "out", model=f"{data}/random.py:untrained", train=tmp_path / "train", val=tmp_path / "val")
        .model_copy(update={"model": f"{data}/random.py:untrained"})
    )  # fmt: skip
    assert result.accuracy.low <= 0.25
    assert result.verdict.level == "unfit"
    assert result.verdict.about.numbers["chance"] == 0.25


@pytest.mark.parametrize(("right", "level"), [(66, "unfit"), (80, None)])
def test_an_untrained_classifier_whose_interval_just_excludes_chance_is_unfit(right, level):
    """Regression: one of three untrained networks was called sound as its accuracy began at 26 % of four classes."""
    accuracy = wilson_of(right / 200, 200)
    as_is = SimpleNamespace(accuracy=Interval(value=accuracy.value, low=accuracy.low, high=accuracy.high))
    measured = SimpleNamespace(as_is=as_is, chance=0.25, n_images=200, reordered=None)
    found = Judge(SimpleNamespace(fingerprint={"name": "net"}), measured, [], "nothing")._unfit()
    assert accuracy.low > 0.25
    assert (found and found.level) == level


def test_two_images_are_too_few(data, tmp_path):
    """Regression: a verdict was given on two validation images."""
    for name in ("blue", "red"):
        (tmp_path / "val" / name).mkdir(parents=True)
        shutil.copy(data / "val" / name / "00.png", tmp_path / "val" / name)
    result = run(config(data, tmp_path / "out", "clean", val=tmp_path / "val"))
    assert result.verdict.level == "too-few"
    assert "2 validation images" in result.verdict.headline


def test_classes_in_another_order_are_said(data, tmp_path):
    """A model whose outputs are in the order of other names is not quietly audited with the wrong ones."""
    (tmp_path / "names.txt").write_text("red\nblue\ngreen\n")
    result = run(config(data, tmp_path / "out", "clean", class_names=tmp_path / "names.txt"))
    assert result.verdict.level == "unfit"
    assert "another order" in result.verdict.headline
    assert "the labels sorted as text" in result.verdict.sentences[0]
    renamed = {"blue": "z", "green": "b", "red": "a"}
    for part in ("train", "val"):
        for old, new in renamed.items():
            shutil.copytree(data / part / old, tmp_path / part / new)
    result = run(config(data, tmp_path / "b", "clean", train=tmp_path / "train", val=tmp_path / "val"))
    assert result.verdict.level == "unfit"
    assert result.accuracy.value < 0.5
