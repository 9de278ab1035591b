"""What is wrong with the arguments is said before a model or an image is loaded, and nothing is written."""

import json
import shutil

import pytest

import classifier_factory
import pfungst.audit.anomaly.run as anomaly
import pfungst.audit.classifier.prepare as prepare
import pfungst.audit.classifier.run as classifier
import pfungst.audit.similarity.run as similarity
import similarity_factory
from factories import mini_mvtec
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.data import Item
from pfungst.errors import PfungstError
from pfungst.spurious import write_components


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(SimilarityConfig, "open_encoder", lambda self: pytest.fail("an encoder was loaded"))
    monkeypatch.setattr(prepare, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr(Item, "read", lambda *a, **k: pytest.fail("an image was read"))


def refused(run, config, says):
    with pytest.raises(PfungstError, match=says) as caught:
        run(config)
    assert caught.value.remedy
    assert not config.out.exists()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return mini_mvtec(tmp_path_factory.mktemp("parts"), train=3, good=2, defective=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"original": "opencv"}, "unknown condition 'opencv'"),
        ({"deployed": "pillow-bilinear+logo:none.png"}, "none.png does not exist"),
        ({"mitigate": "blurr"}, "unknown mitigation 'blurr'"),
        ({"mitigate": "blur:10,2"}, "not odd"),
        ({"mitigate": "blur:4.5,2"}, "not whole"),
        ({"mitigate": "blur:11,-1"}, "not positive"),
        ({"mitigate": "blur:71,2"}, "too small for a blur"),
        ({"mitigate": "lowpass:0"}, "keeps no frequency"),
        ({"model": "knn"}, "unknown detector 'knn'"),
        ({"model": "d2neighbors:q=1"}, "unknown parameter 'q'"),
        ({"model": "patchcore:checkpoint=none.pt"}, "none.pt does not exist"),
        ({"groups": "session"}, "no column 'session'"),
        ({"category": "screw"}, "screw"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"normal": "OK"}, "no image has the label 'OK': there are 'good'"),
        ({"window": "40"}, "window '40' cannot be read"),
        ({"window": "40,400"}, "a window does nothing here"),
    ],
)
def test_anomaly(parts, tmp_path, options, says):
    settings = {"data": parts, "out": tmp_path / "out", "size": 32, "seeds": 2, "device": "cpu"}
    refused(anomaly.run, AnomalyConfig.build(**settings | options), says)


def test_data_that_come_with_the_package_are_not_made_for_wrong_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(anomaly, "open_sets", lambda config: pytest.fail("data were made"))
    for options in ({"model": "knn"}, {"mitigate": "blur:10,2"}, {"original": "opencv"}):
        config = AnomalyConfig.build(data="digits-c", out=tmp_path / "out", **options)
        with pytest.raises(PfungstError):
            anomaly.run(config)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return similarity_factory.mini_images(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"checkpoint": "none.pt"}, "none.pt does not exist"),
        ({"condition": "jpeg:900"}, "jpeg"),
        ({"condition": "logo:none.png"}, "none.png does not exist"),
        ({"condition": ["jpeg:30", "jpeg:30"]}, "given twice"),
        ({"condition": "jpeg:30", "mitigate": "prune"}, "what to prune"),
        ({"condition": "jpeg:30", "mitigate": "prune:auto:region"}, "no logo"),
        ({"groups": "device"}, "no column 'device'"),
        ({"labels": "colour"}, "no column 'colour'"),
        ({"positive": "z"}, "no image has the label 'z'"),
        ({"keep_together": "ward"}, "no column 'ward'"),
        ({"split": "given"}, "--split folds"),
        ({"images": "nowhere"}, "nowhere"),
        ({"encoder": "sentence-transformers:none"}, "reads texts"),
        ({"images": None, "texts": "none.csv", "encoder": "sentence-transformers:none"}, "none.csv"),
        ({"images": None, "texts": "pairs.csv", "encoder": "timm:resnet18"}, "reads images"),
        ({"images": None, "texts": "pairs.csv", "encoder": "m:f", "positive": "like"}, "relation 'like'"),
    ],
)
def test_similarity(shapes, tmp_path, monkeypatch, options, says):
    (tmp_path / "pairs.csv").write_text("first,second,relation\na,b,same\na,c,other\n")
    monkeypatch.chdir(tmp_path)
    refused(similarity.run, similarity_factory.config(shapes, tmp_path / "out", **options), says)


def test_similarity_logo_that_does_not_fit_the_asked_size(shapes, tmp_path):
    condition = f"logo:{similarity_factory.logo(tmp_path / 'tag.png')},width=0.9,margin=12"
    config = similarity_factory.config(shapes, tmp_path / "out", condition=[condition])
    refused(similarity.run, config, "larger than the picture")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return classifier_factory.make(tmp_path_factory.mktemp("squares"))


def squares_config(data, out, **options):
    settings = {
        "model": f"{data}/toy.py:biased",
        "train": data / "train",
        "val": data / "val",
        "spurious": data / "spurious",
        "out": out,
        "device": "cpu",
        "n_components": 4,
    }
    return ClassifierConfig.build(**settings | options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"classes": "purple"}, "class 'purple'"),
        ({"classes": "green,7"}, "class 7"),
        ({"classes": "0,2"}, "none of which is audited"),
        ({"condition": "nearest"}, "unknown condition"),
        ({"checkpoint": "none.pt"}, "none.pt does not exist"),
        ({"masks": "nowhere"}, "nowhere is no folder"),
        ({"train": "nowhere"}, "nowhere"),
        ({"val": "nowhere"}, "nowhere"),
        ({"spurious": "nowhere"}, "spurious_class"),
        ({"class_names": "names.txt"}, "no class of the model: 'green'"),
        ({"class_names": "nowhere.txt"}, "nowhere.txt"),
        ({"components": "nowhere.json"}, "nowhere.json"),
        ({"components": "components.json"}, "beyond the 4"),
    ],
)
def test_classifier(squares, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("blue\nred\n")
    write_components(tmp_path / "components.json", {1: [9]}, {"head_sha256": "0", "name": "x"})
    refused(classifier.run, squares_config(squares, tmp_path / "out", **options), says)


def test_classifier_folders_that_do_not_match(squares, tmp_path):
    shutil.copytree(squares / "val", tmp_path / "val")
    (tmp_path / "val/red").rename(tmp_path / "val/crimson")
    refused(
        classifier.run, squares_config(squares, tmp_path / "out", val=tmp_path / "val"), "'crimson'.*'green'"
    )


def test_classifier_folders_named_by_class_index(squares, tmp_path, monkeypatch):
    """Folders 3 and 7 may be the classes 3 and 7 of a larger model, or those of a model with two."""
    loaded = []
    monkeypatch.setattr(prepare, "load", lambda *a, **k: loaded.append(a) or (1 / 0))
    for part in ("train", "val"):
        for name, index in (("blue", 3), ("green", 7)):
            shutil.copytree(squares / part / name, tmp_path / part / str(index))
    folders = {"train": tmp_path / "train", "val": tmp_path / "val", "spurious": None}
    for classes in ("3", "7,3", "0", "1", None):
        with pytest.raises(ZeroDivisionError):
            classifier.run(squares_config(squares, tmp_path / "out", classes=classes, **folders))
    assert len(loaded) == 5
    for classes in ("2", "green", "3,8"):
        refused(
            classifier.run, squares_config(squares, tmp_path / "out", classes=classes, **folders), "class "
        )
    assert len(loaded) == 5


def test_an_old_result_is_seen_first(parts, shapes, squares, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({}))
    for run, config in (
        (anomaly.run, AnomalyConfig.build(data=parts, out=tmp_path, model="none")),
        (similarity.run, similarity_factory.config(shapes, tmp_path, checkpoint="none.pt")),
        (classifier.run, squares_config(squares, tmp_path, classes="none")),
    ):
        with pytest.raises(PfungstError, match="already holds a result"):
            run(config)
