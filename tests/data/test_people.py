import csv
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pfungst.audit.sources import group_columns
from pfungst.data import ImageSet, Item, open_images, people
from pfungst.data.people import FaceCascade, FasterRCNNPeople, mark_people
from pfungst.errors import CheckpointError, ConfigError, UnreadableImages


def picture(value):
    return lambda: Image.new("RGB", (40, 30), (value, value, value))


def bright(image):
    return np.asarray(image).mean() > 100


def test_the_group_and_the_note():
    s = ImageSet("set", [Item("a", picture(200), groups={"x": "1"}), Item("b", picture(10))], ["old"])
    out = mark_people(s, bright)
    assert out.group("human").tolist() == ["human", "no human"]
    assert out.items[0].groups["x"] == "1"
    assert out.notes[0] == "old"
    assert "1 of 2 images show a human (function)" in out.notes[1]
    assert s.group_names == ["x"]


def test_unreadable_images_are_named():
    with pytest.raises(UnreadableImages, match="broken"):
        mark_people(ImageSet("set", [Item("broken", b"no image"), Item("a", picture(9))]), bright)


def test_faster_rcnn_reads_persons_of_high_score(tmp_path):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    save_file(model.state_dict(), str(tmp_path / "fasterrcnn.safetensors"))
    detector = FasterRCNNPeople(tmp_path / "fasterrcnn.safetensors", device="cpu")
    detector.model.transform.min_size = (48,)
    assert detector(Image.new("RGB", (64, 48))) is False  # random weights find nothing with 0.9
    for label, score, expected in ((1, 0.95, True), (1, 0.85, False), (17, 0.99, False)):
        result = {"labels": torch.tensor([3, label]), "scores": torch.tensor([0.99, score])}
        assert detector.found(result) is expected
    assert "0.9" in detector.name
    with pytest.raises(CheckpointError, match="does not exist"):
        FasterRCNNPeople(tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="no probability"):
        FasterRCNNPeople(tmp_path / "fasterrcnn.safetensors", score=0.0)


def test_the_command_writes_a_column_that_audits_read(tmp_path, monkeypatch):
    """Every image by its id, in a CSV that --groups-file joins; weights that are not there are refused."""
    from pfungst.cli import main
    from pfungst.data import join_columns, open_images

    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i, value in enumerate((10, 200)):
            picture(value)().save(tmp_path / "images" / label / f"{i}.png")
    monkeypatch.setattr("pfungst.data.people.FasterRCNNPeople", lambda file, device: bright)
    words = [
        "people",
        str(tmp_path / "images"),
        "--detector",
        "rcnn.pth",
        "--out",
        str(tmp_path / "human.csv"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    (images,) = open_images(tmp_path / "images")
    items, _ = join_columns(images.items, tmp_path / "human.csv")
    assert [i.groups["human"] for i in items] == [
        "human" if bright(i.read()) else "no human" for i in images.items
    ]
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


@pytest.mark.skipif(hasattr(cv2, "CascadeClassifier"), reason="this OpenCV has cascades")
def test_opencv_without_cascades_says_what_to_do():
    with pytest.raises(ConfigError, match="no face cascade") as caught:
        FaceCascade()
    assert "Faster R-CNN" in caught.value.remedy


@pytest.mark.skipif(not hasattr(cv2, "CascadeClassifier"), reason="OpenCV 5 has no cascades")
def test_bundled_cascade_finds_no_face_in_grey():
    detector = FaceCascade()
    assert "haarcascade_frontalface_default.xml" in detector.name
    assert detector(Image.new("RGB", (64, 64), (90, 90, 90))) is False


def test_cascade_is_asked_on_grey_pixels(monkeypatch, tmp_path):
    """The calls into OpenCV 4, which has cascades."""
    seen = []

    class Cascade:
        def __init__(self, file):
            self.file = file

        def detectMultiScale(self, grey, *args, **kwargs):
            seen.append(grey.shape)
            return [(0, 0, 5, 5)] if grey.mean() > 100 else ()

    (tmp_path / "haarcascade_frontalface_default.xml").write_text("<x/>")
    monkeypatch.setattr(cv2, "CascadeClassifier", Cascade, raising=False)
    monkeypatch.setattr(cv2, "data", types.SimpleNamespace(haarcascades=str(tmp_path)), raising=False)
    detector = FaceCascade()
    assert detector(picture(200)()) is True
    assert detector(picture(10)()) is False
    assert seen == [(30, 40), (30, 40)]
    with pytest.raises(ConfigError, match="does not exist"):
        FaceCascade(tmp_path / "other.xml")


def test_the_detector_that_is_installed_gives_a_column_by_itself(monkeypatch, tmp_path):
    """A stand-in for facenet-pytorch: it sees somebody in bright pictures, and doubts grey ones."""

    class MTCNN:
        def __init__(self, **how):
            assert how == {"keep_all": True, "device": "cpu"}

        def detect(self, image):
            bright = np.asarray(image).mean() / 255
            return ([[0, 0, 1, 1]], [bright]) if bright > 0.3 else (None, [None])

    monkeypatch.setitem(sys.modules, "facenet_pytorch", types.SimpleNamespace(MTCNN=MTCNN))
    lines = ["path,label"]
    for i in range(24):
        Image.new("RGB", (16, 16), ((255,) * 3, (128,) * 3, (0,) * 3)[i % 3]).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2}")
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    (images,) = open_images(tmp_path / "all.csv")
    columns = group_columns(images.items, ["people"])
    assert columns["file: people"].tolist() == [
        "unreadable" if i == 0 else "human" if i % 3 == 0 else "no human" for i in range(24)
    ]
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    monkeypatch.setattr(people, "FaceCascade", people.MTCNNFaces)
    with pytest.raises(ConfigError, match="no detector of people is installed"):
        group_columns(images.items, ["people"])


def test_mtcnn_sees_the_faces_that_the_table_names(shared):
    """people.csv comes from MTCNN on the same photographs; scores near the limit may differ by version."""
    pytest.importorskip("facenet_pytorch")
    folder = shared / "data/imagenette"
    (images,) = open_images(folder / "val.parquet")
    known = {r["path"]: int(r["faces"]) > 0 for r in csv.DictReader((folder / "people.csv").open())}
    items = [i for i in images.items if i.id in known][::8]
    seen = people.people_column(items, people.MTCNNFaces()) == "human"
    assert np.mean(seen == [known[i.id] for i in items]) > 0.8
