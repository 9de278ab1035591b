"""Labels and splits in the words of the data: recognised, drawn where none are named, and named in errors."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import picture, save
from pfungst.data import ImageSet, Item, open_images
from pfungst.data.roles import for_detection, normal_label
from pfungst.errors import ConfigError, DataError


def items(**counts):
    return [Item(f"{label}/{i}", b"", label) for label, count in counts.items() for i in range(count)]


@pytest.mark.parametrize(
    ("labels", "column", "expected"),
    [
        (["good", "hole"], "label", "good"),
        (["OK", "NOK"], "label", "OK"),
        (["Normal", "scratch", "dent"], "label", "Normal"),
        (["0", "1"], "label", "0"),
        (["0.0", "1.0"], "label", "0.0"),
        (["False", "True"], "is_defect", "False"),
        (["False", "True"], "is_good", "True"),
        (["0", "1"], "ok", "1"),
        (["-1", "1"], "label", "1"),
        (["negative", "positive"], "label", "negative"),
        (["No", "Yes"], "defect", "No"),
    ],
)
def test_what_normal_images_are_called(labels, column, expected):
    assert normal_label(labels, None, column)[0] == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog", "cat"], r"no label is known .*'cat' \(2\), 'dog' \(1\)"),
        (["0", "1", "2"], "no label is known"),
        (["ok", "Normal", "bad"], "several labels may be"),
        ([None, None], "no image has a label"),
    ],
)
def test_unknown_labels_are_named(labels, message):
    with pytest.raises(DataError, match=message):
        normal_label(labels)


def test_a_wrong_wish_names_what_there_is():
    with pytest.raises(ConfigError, match=r"no image has the label 'GOOD': there are 'ok' \(1\)"):
        normal_label(["ok"], "GOOD")
    assert normal_label(["cat", "dog"], "dog")[0] == "dog"


def test_good_images_are_split_and_the_rest_is_tested():
    found = for_detection(ImageSet("x", items(OK=40, NOK=12)))
    assert len(found.select(split="train")) == 28
    assert len(found.select(split="test", label="good")) == 12
    assert len(found.select(split="test", label="NOK")) == 12
    assert any("name no split: 28 of 40 good images" in note for note in found.notes)
    assert any("labelled 'OK'" in note for note in found.notes)
    other = for_detection(ImageSet("x", items(OK=40, NOK=12)[::-1]))
    assert {i.id for i in found.select(split="train").items} == {
        i.id for i in other.select(split="train").items
    }
    seeded = for_detection(ImageSet("x", items(OK=40, NOK=12)), seed=1)
    assert {i.id for i in found.select(split="train").items} != {
        i.id for i in seeded.select(split="train").items
    }


def test_patients_stay_on_one_side():
    good = [Item(f"g{i}", b"", "good", groups={"Patient": f"p{i // 4}"}) for i in range(40)]
    bad = [Item(f"b{i}", b"", "bad", groups={"Patient": f"p{i}"}) for i in range(2)]
    found = for_detection(ImageSet("x", good + bad))
    sides = {}
    for item in found.items:
        sides.setdefault(item.groups["Patient"], set()).add(item.split)
    assert all(len(side) == 1 for side in sides.values())
    assert sides["p0"] == sides["p1"] == {"test"}
    assert len(found.select(split="train")) == 28
    alone = for_detection(ImageSet("x", good + bad), keep_together="none")
    assert len({i.groups["Patient"] for i in alone.select(split="train").items}) > 7
    with pytest.raises(ConfigError, match="no column 'pat'"):
        for_detection(ImageSet("x", good + bad), keep_together="pat")


@pytest.mark.parametrize(
    "words", [("Train", "Test"), ("TRAINING", "testing"), ("train", "val"), ("tr", "te")]
)
def test_usual_names_of_splits(tmp_path, words):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for i, (label, split) in enumerate([("good", 0), ("good", 0), ("good", 1), ("bad", 1)]):
            save(tmp_path / f"{i}.png", picture(i)[0])
            writer.writerow([f"{i}.png", label, words[split]])
    found = for_detection(open_images(tmp_path / "list.csv")[0])
    assert found.splits.tolist() == ["train", "train", "test", "test"]


def test_splits_that_were_seen_are_named():
    odd = [Item(str(i), b"", "good" if i else "bad", split="fold1" if i % 2 else "fold2") for i in range(6)]
    with pytest.raises(DataError, match=r"lacks 2 normal training images.*fold1 good \(3\)") as caught:
        for_detection(ImageSet("x", odd))
    assert "--split-column" in caught.value.remedy


def test_one_class_only_is_refused():
    with pytest.raises(DataError, match=r"lacks a defective test image"):
        for_detection(ImageSet("x", items(good=20)))


@pytest.mark.parametrize("labels", [[0, 1], [False, True], ["ok", "broken"]])
def test_parquet_with_any_kind_of_label(tmp_path, labels):
    data = [save(tmp_path / f"{i}.png", picture(i)[0]).read_bytes() for i in range(8)]
    table = pa.table({"img": data, "class": [labels[i > 5] for i in range(8)]})
    pq.write_table(table, tmp_path / "x.parquet")
    (images,) = open_images(tmp_path / "x.parquet")
    found = for_detection(images, column="class")
    assert found.labels.tolist() == [0] * 6 + [1] * 2
    np.testing.assert_array_equal(np.asarray(found[3].read()), picture(3)[0])


def test_parquet_of_paths(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", picture(i)[0])
    pq.write_table(
        pa.table({"file": ["0.png", "1.png"], "label": [1, 0], "n": [1, 2]}), tmp_path / "a.parquet"
    )
    (images,) = open_images(tmp_path / "a.parquet")
    assert images.ids == ["0.png", "1.png"]
    assert images.classes == ["1", "0"]
    assert images.group("n").tolist() == ["1", "2"]


@pytest.mark.parametrize("names", [("good", "bad"), ("OK", "NOK"), ("normal", "crack")])
def test_folders_of_any_name_with_masks(tmp_path, names):
    for k, name in enumerate(names):
        for i in range(6):
            image, mask = picture(10 * k + i, defect=k == 1)
            save(tmp_path / name / f"{i}.png", image)
            if k == 1:
                save(tmp_path / "masks" / name / f"{i}_mask.png", mask.astype(np.uint8) * 255)
    found = for_detection(open_images(tmp_path)[0])
    assert found.labels.sum() == 6
    defective = found.select(label=names[1])
    assert [i.read_mask().sum() for i in defective.items] == [
        picture(10 + i, defect=True)[1].sum() for i in range(6)
    ]
    save(tmp_path / "masks" / "x.png", picture(0)[0])
    with pytest.raises(DataError, match=r"1 masks in .* belong to no image"):
        open_images(tmp_path)


def test_class_and_split_in_either_order(tmp_path):
    for split in ("Train", "test"):
        for name in ("OK", "NOK"):
            for i in range(2):
                save(tmp_path / f"a/{split}/{name}/{i}.png", picture(i)[0])
                save(tmp_path / f"b/{name}/{split}/{i}.png", picture(i)[0])
    for order in "ab":
        (images,) = open_images(tmp_path / order)
        assert sorted({(i.split, i.label) for i in images.items}) == [
            ("test", "NOK"),
            ("test", "OK"),
            ("train", "NOK"),
            ("train", "OK"),
        ]


def test_a_flat_folder_says_what_is_missing(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", picture(i)[0])
    with pytest.raises(DataError, match="no image has a label") as caught:
        for_detection(open_images(tmp_path)[0])
    assert "--label-column" in caught.value.remedy


def test_columns_of_other_names_are_found_and_said(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.png", picture(i)[0])
    (tmp_path / "list.csv").write_text("Filename,Class,site\n0.png,ok,a\n1.png,nok,b\n")
    (images,) = open_images(tmp_path / "list.csv")
    assert images.classes == ["ok", "nok"]
    assert images.group_names == ["site"]
    assert [n.split(": ")[1] for n in images.notes] == [
        "the column 'Filename' is read as the path",
        "the column 'Class' is read as the label",
    ]
