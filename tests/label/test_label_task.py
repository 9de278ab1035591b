import json
import os
from pathlib import Path

import pytest

from label_sample import component_task, image_task, picture
from pfungst.errors import DataError
from pfungst.label import read_task, write_task


def edit(folder: Path, change) -> None:
    path = folder / "label-task.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_both_kinds_come_back_as_written(tmp_path):
    for make in (component_task, image_task):
        task = make(tmp_path / make.__name__)
        assert read_task(tmp_path / make.__name__) == task
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "/etc/secret.png",
        "images/../../secret.png",
        "..\\secret.png",
        "C:/secret.png",
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "task"
    component_task(folder, 1)
    picture(tmp_path / "secret.png", 0)
    edit(folder, lambda c: c["items"][0].update(npfv=name))
    with pytest.raises(DataError, match="names"):
        read_task(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "task"
    component_task(folder, 1)
    picture(tmp_path / "secret.png", 0)
    os.symlink(tmp_path / "secret.png", folder / "images" / "link.png")
    edit(folder, lambda c: c["items"][0].update(npfv="images/link.png"))
    with pytest.raises(DataError, match="not a file inside"):
        read_task(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(kind="words"), "kind is 'words'"),
        (lambda c: c.update(format="pfungst.label-task/2"), "format"),
        (lambda c: c.update(items=[]), "items"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c["items"].append(c["items"][0]), "two items have the id"),
        (lambda c: c["items"].append({**c["items"][0], "id": "other"}), "appears twice"),
        (lambda c: c["items"][0].update(alpha=[1.0]), "5 images but 1 alpha"),
        (lambda c: c["items"][0]["alpha"].__setitem__(0, float("nan")), "finite"),
        (lambda c: c["items"][0]["confidence"].__setitem__(0, 1.5), "less than or equal to 1"),
        (lambda c: c["items"][0].update(class_index="207"), "class_index"),
        (lambda c: c["items"][0].update(npfv="images/absent.png"), "no such file"),
        (lambda c: c["items"][0].update(npfv="images"), "not an image"),
        (lambda c: c["items"][0].update(npfv="images/x.svg"), "not an image"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, message):
    component_task(tmp_path, 1)
    edit(tmp_path, change)
    with pytest.raises(DataError, match=message):
        read_task(tmp_path)


def test_a_folder_without_task_and_a_broken_file(tmp_path):
    with pytest.raises(DataError, match=r"no label-task\.json"):
        read_task(tmp_path)
    (tmp_path / "label-task.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_task(tmp_path)


def test_a_task_with_absent_images_is_not_written(tmp_path):
    task = component_task(tmp_path / "a", 1)
    with pytest.raises(DataError, match="no such file"):
        write_task(tmp_path / "a" / "images", task)
    assert not (tmp_path / "a" / "images" / "label-task.json").exists()
