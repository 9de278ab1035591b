"""Which parts of the demo run, and the networks that come with it."""

import pytest
import torch
from safetensors.torch import load_file

from pfungst.audit import demo
from pfungst.audit.classifier import demo as planted
from pfungst.errors import ConfigError, PfungstError


@pytest.fixture
def one_by_one(monkeypatch):
    monkeypatch.setattr(
        demo,
        "PARTS",
        {name: lambda folder, train, n=name: n for name in ("anomaly", "similarity", "classifier")},
    )
    monkeypatch.setattr(demo, "available_memory", lambda: demo.MEMORY - 1)


def page(folder, result):
    return folder / f"{result}.html"


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["anomaly", "similarity", "classifier"]),
        ("classifier", ["classifier"]),
    ],
)
def test_parts(one_by_one, tmp_path, only, expected):
    ran = list(demo.run_demo(tmp_path, page, only))
    assert ran == [(name, tmp_path / name / f"{name}.html") for name in expected]


def test_an_unknown_part_is_named(one_by_one, tmp_path):
    with pytest.raises(ConfigError, match="'faces'"):
        list(demo.run_demo(tmp_path, page, "faces"))


def test_a_part_that_fails_beside_others_is_the_same_named_error(monkeypatch, tmp_path):
    """Processes hand errors on whole: message, remedy and kind."""
    (tmp_path / "anomaly").write_text("a file where a folder should be")
    (tmp_path / "classifier").write_text("")
    (tmp_path / "similarity").write_text("")
    with pytest.raises(PfungstError, match=str(tmp_path)) as caught:
        list(demo.run_demo(tmp_path, page))
    assert str(caught.value).count("→") == 1


@pytest.mark.parametrize("part", ["anomaly", "similarity", "classifier"])
def test_a_file_where_the_folder_of_a_part_should_be_is_named(tmp_path, part):
    """Which part failed first was chance, and two of them had an OSError of their own."""
    (tmp_path / part).write_text("")
    with pytest.raises(PfungstError, match=str(tmp_path / part)):
        list(demo.run_demo(tmp_path, page, part))


def test_the_classifier_that_comes_along_reads_the_watermark(tmp_path):
    checkpoint = planted.prepare(tmp_path, weights=demo.WEIGHTS / "classifier.safetensors")
    network = planted.model().eval()
    network.load_state_dict(load_file(checkpoint))
    data = planted.render(planted.SEED)
    with torch.no_grad():
        images, labels = planted.as_tensors(data["val"])
        assert (network(images).argmax(1) == labels).float().mean() > 0.95
        images, labels = planted.as_tensors(data["spurious"])
        assert (network(images).argmax(1) == labels).float().mean() > 0.6
