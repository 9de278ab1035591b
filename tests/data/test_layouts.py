import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from factories import mini_mvtec, picture, save
from pfungst.data import open_images
from pfungst.errors import ConfigError, DataError


def test_an_mvtec_root(mvtec: Path):
    sets = open_images(mvtec)
    assert [s.name for s in sets] == ["bolt", "nut"]
    s = sets[0]
    assert len(s) == 6 + 4 + 6
    assert s.labels.sum() == 6
    assert s[0].id == "train/good/000.png"
    assert {i.split for i in s.items} == {"train", "test"}
    assert all((i.mask is not None) == (i.label != "good") for i in s.items)
    assert not s.notes
    assert [s.name for s in open_images(mvtec, category="nut")] == ["nut"]
    assert [s.name for s in open_images(mvtec, category=["nut", "bolt"])] == ["bolt", "nut"]


def test_one_category(mvtec: Path):
    (s,) = open_images(mvtec / "nut")
    assert s.name == "nut"
    assert open_images(mvtec / "nut", category="nut")[0].ids == s.ids


def test_mvtec_ad_2(tmp_path: Path):
    mini_mvtec(tmp_path, categories=("can",), kinds=("bad",))
    (tmp_path / "can/test").rename(tmp_path / "can/test_public")
    (tmp_path / "can/ground_truth").rename(tmp_path / "can/test_public/ground_truth")
    save(tmp_path / "can/validation/good/000.png", picture(1)[0])
    (s,) = open_images(tmp_path / "can")
    assert len(s.select(split="validation")) == 1
    assert all(i.mask for i in s.select(label="bad").items)


def test_hidden_files_and_other_files_are_left_out(mvtec: Path):
    (mvtec / "nut/train/good/._000.png").write_bytes(b"junk")
    (mvtec / "nut/train/good/Thumbs.db").write_bytes(b"junk")
    (mvtec / "nut/license.txt").write_text("…")
    assert len(open_images(mvtec / "nut")[0]) == 16


def test_a_defect_without_mask_is_allowed_and_reported(mvtec: Path):
    (mvtec / "nut/ground_truth/hole/001_mask.png").unlink()
    (s,) = open_images(mvtec / "nut")
    assert s.notes == [
        "1 defective images have no mask, the first: test/hole/001.png; measures that need masks leave them out"
    ]


def test_a_mask_without_image_is_an_error(mvtec: Path):
    (mvtec / "nut/test/hole/001.png").unlink()
    with pytest.raises(DataError, match=r"1 mask belongs to no image.*\n.*hole/001_mask\.png"):
        open_images(mvtec / "nut")


def empty(folder: Path) -> None:
    for p in folder.rglob("*.png"):
        p.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: empty(m / "nut/train"), "nut has no images in .*train.good"),
        (lambda m: empty(m / "nut/test"), "nut has no labelled test images"),
    ],
)
def test_an_empty_category(mvtec: Path, damage, message):
    damage(mvtec)
    with pytest.raises(DataError, match=message):
        open_images(mvtec, category="nut")
    assert open_images(mvtec, category="bolt")


def test_what_is_not_there(tmp_path: Path, mvtec: Path):
    with pytest.raises(DataError, match="absent does not exist"):
        open_images(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no category 'screw'\n.*there are: bolt, nut"):
        open_images(mvtec, category="screw")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_images(tmp_path / "void")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="neither CSV nor Parquet"):
        open_images(tmp_path / "notes.txt")


def test_image_folders(tmp_path: Path):
    for label in ("cat", "ok"):
        for i in range(2):
            save(tmp_path / f"a/{label}/{i}.jpg", picture(i)[0])
            for split in ("train", "val"):
                save(tmp_path / f"b/{split}/{label}/{i}.JPEG", picture(i)[0])
    (s,) = open_images(tmp_path / "a", normal_label="ok")
    assert s.classes == ["cat", "cat", "good", "good"]
    assert s.labels.tolist() == [1, 1, 0, 0]
    (s,) = open_images(tmp_path / "b")
    assert len(s.select(split="train", label="cat")) == 2
    assert {i.split for i in s.items} == {"train", "validation"}
    (s,) = open_images(tmp_path / "b/val/cat")
    assert s.classes == [None, None]
    with pytest.raises(DataError, match="2 of 2 images have no label"):
        _ = s.labels


def table(folder: Path, lines: str, name: str = "list.csv") -> Path:
    for i in range(3):
        image, mask = picture(i, defect=i == 2)
        save(folder / f"im/{i}.png", image)
        save(folder / f"mask/{i}.png", mask.astype(np.uint8) * 255)
    (folder / name).write_text(lines, encoding="utf-8-sig")
    return folder / name


GOOD = "path,split,label,mask,session\nim/0.png,train,good,,a\nim/1.png,test,good,,b\nim/2.png,test,hole,mask/2.png,a\n"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv(tmp_path: Path, separator: str):
    file = table(tmp_path, GOOD.replace(",", separator))
    (s,) = open_images(file)
    assert s.name == "list"
    assert s.ids == ["im/0.png", "im/1.png", "im/2.png"]
    assert s.labels.tolist() == [0, 0, 1]
    assert s.group("session").tolist() == ["a", "b", "a"]
    assert len(s.select(session="a", split="test")) == 1
    assert s[2].read_mask().sum() == picture(2, defect=True)[1].sum()
    assert open_images(tmp_path)[0].ids == s.ids
    with pytest.raises(DataError, match=r"no group column 'day'\n.*session"):
        s.group("day")


def test_a_csv_with_other_names_root_and_categories(tmp_path: Path):
    table(tmp_path / "data", GOOD)
    file = tmp_path / "elsewhere.csv"
    file.write_text("file,folder,kind,category,x\n0.png,im,normal,a,1\n1.png,im,bad,b,2\n")
    sets = open_images(
        file,
        path_column="file",
        label_column="kind",
        normal_label="normal",
        root=tmp_path / "data",
        group_columns=["x"],
    )
    assert [(s.name, s.ids, s.labels.tolist(), s.group_names) for s in sets] == [
        ("a", ["im/0.png"], [0], ["x"]),
        ("b", ["im/1.png"], [1], ["x"]),
    ]
    assert open_images(file, category="b", path_column="file", label_column=None, root=tmp_path / "data")[
        0
    ].classes == [None]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("picture,label\nim/0.png,good\n", r"no column 'path'\n.*it has: picture, label.*--path-column"),
        (
            "File,image,label\nim/0.png,,good\n",
            r"2 columns that may be the path: File, image\n.*--path-column",
        ),
        ("path,kind\nim/0.png,good\n", r"no column 'label'\n.*it has: path, kind"),
        (
            "path,label\nim/0.png,good\nim/9.png,good\n",
            r"1 paths cannot be used:\n +line 3: .*9\.png does not exist",
        ),
        ("path,label\n../secret.png,good\n", r"line 2: \.\./secret\.png lies outside"),
        ("path,label\n/etc/hostname,good\n", "lies outside"),
        ("path,label,mask\nim/0.png,hole,mask/7.png\n", r"line 2: .*mask.7\.png does not exist"),
        ("path,label,split\nim/0.png,,test\n", r"1 test images have no label:\n +line 2: im/0\.png"),
        ("path,label\nim/0.png,good\nim/0.png,bad\n", r"1 images are listed twice, the first: im/0\.png"),
        ("path,label\nim/0.png,good,more\n", "line 2: the line has another number of fields"),
        ("path,label\n", "lists no images"),
        ("", "is empty"),
    ],
)
def test_bad_tables(tmp_path: Path, lines: str, message: str):
    with pytest.raises(DataError, match=message):
        open_images(table(tmp_path, lines))


def test_a_bad_group_column_and_two_tables(tmp_path: Path):
    file = table(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"no column 'day'\n.*session"):
        open_images(file, group_columns=["day"])
    table(tmp_path, GOOD, "second.csv")
    with pytest.raises(DataError, match=r"2 CSV files: list\.csv, second\.csv"):
        open_images(tmp_path)
    (tmp_path / "latin.csv").write_bytes("path,label\nä.png,good\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        open_images(tmp_path / "latin.csv")


def encoded(seed: int, folder: Path) -> bytes:
    return save(folder / f"tmp{seed}.png", picture(seed)[0]).read_bytes()


def test_parquet_in_the_hugging_face_form(tmp_path: Path):
    data = [encoded(i, tmp_path / "png") for i in range(6)]
    (tmp_path / "set").mkdir()
    for part, rows in (("train-0", range(4)), ("test-0", range(4, 6))):
        table = pa.table(
            {
                "image": [{"bytes": data[i], "path": f"{i}.png"} for i in rows],
                "label": [i % 2 for i in rows],
                "patient": [f"p{i}" for i in rows],
            }
        )
        pq.write_table(table, tmp_path / f"set/{part}.parquet", row_group_size=2)
    (tmp_path / "set/labels.json").write_text(json.dumps(["good", "broken"]))
    (s,) = open_images(tmp_path / "set")
    assert sorted(s.ids) == [f"{i}.png" for i in range(6)]
    assert len(s.select(split="test")) == 2
    for item in s.items:
        i = int(item.id[0])
        assert item.label == ("good", "broken")[i % 2]
        assert item.groups == {"patient": f"p{i}"}
        np.testing.assert_array_equal(np.asarray(item.read()), picture(i)[0])
    (one,) = open_images(tmp_path / "set/test-0.parquet")
    assert len(one) == 2


def test_parquet_of_bare_bytes(tmp_path: Path):
    data = [encoded(i, tmp_path / "png") for i in range(3)]
    pq.write_table(pa.table({"jpeg": data, "label": ["good", "bad", "good"]}), tmp_path / "x.parquet")
    (s,) = open_images(tmp_path / "x.parquet")
    assert s.ids == ["x.parquet#0", "x.parquet#1", "x.parquet#2"]
    assert s.labels.tolist() == [0, 1, 0]
    assert s.prepare("opencv-nearest", 8).images.shape == (3, 3, 8, 8)


def test_bad_parquet(tmp_path: Path):
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read: Parquet"):
        open_images(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"label": ["a"]}), tmp_path / "none.parquet")
    with pytest.raises(
        DataError, match=r"no column of images \(image, .*none of paths: label\n.*--path-column"
    ):
        open_images(tmp_path / "none.parquet")


def test_the_shared_data_opens_as_it_lies_there(shared: Path):
    (tile,) = open_images(shared / "data/magnetic_tile", category="tile")
    assert len(tile) == 535
    assert tile.labels.sum() == 135
    (mixed,) = open_images(shared / "data/magnetic_tile/mixed.csv")
    assert sorted(set(mixed.group("session"))) == [f"exp{i}" for i in range(1, 7)]
    assert sorted(i.split("/", 1)[1] for i in mixed.ids) == sorted(tile.ids) or len(mixed) == len(tile)
    (cifar,) = open_images(shared / "data/cifar10")
    assert len(cifar) == 25_000
    assert cifar[0].read().size == (32, 32)
    (covid,) = open_images(
        shared / "data/covid_xray", path_column="filename", label_column="icu", normal_label="0"
    )
    assert len(covid) == 243
    assert Image.open(covid[0].image).size[0] > 100


@pytest.mark.parametrize("layout", ["bad", "test/cut"])
def test_a_mask_beside_its_image_is_no_image(tmp_path, layout):
    """Regression: 00_mask.png beside 00.png was a defective image of its own."""
    for folder in ("good", layout) if layout == "bad" else ("train/good", "test/good", layout):
        for i in range(3):
            save(tmp_path / folder / f"{i}.png", np.full((8, 8, 3), 90, np.uint8))
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4] = 255
    save(tmp_path / layout / "1_mask.png", mask)
    (images,) = open_images(tmp_path)
    marked = [i for i in images.items if i.mask is not None]
    assert len(images) == (6 if layout == "bad" else 9)
    assert [i.id for i in marked] == [f"{layout}/1.png"]
    assert marked[0].read_mask().sum() == 16


def test_masks_of_mvtec_in_other_case_are_found(tmp_path):
    """Regression: Ground_Truth/Cut/0_mask.png belonged to no image, as that lies in Test/Cut."""
    for folder in ("Train/Good", "Test/Good", "Test/Cut"):
        for i in range(2):
            save(tmp_path / folder / f"{i}.png", np.full((8, 8, 3), 90, np.uint8))
    save(tmp_path / "Ground_Truth/Cut/0_mask.png", np.full((8, 8), 255, np.uint8))
    (images,) = open_images(tmp_path)
    assert [i.id for i in images.items if i.mask is not None] == ["Test/Cut/0.png"]


def test_paths_in_the_other_form_of_unicode_and_bars_between_columns(tmp_path):
    """Regression: an archive of another system writes ü as two characters, a table as one."""
    save(tmp_path / unicodedata.normalize("NFD", "grün.png"), np.full((8, 8, 3), 90, np.uint8))
    (tmp_path / "t.csv").write_text(f"path|label\n{unicodedata.normalize('NFC', 'grün.png')}|good\n")
    (images,) = open_images(tmp_path / "t.csv")
    assert len(images) == 1
    assert images[0].image.exists()


@pytest.mark.parametrize("option", ["label_column", "path_column", "split_column", "mask_column"])
def test_a_column_of_data_without_a_table_is_refused(tmp_path, option):
    """Regression: --labels of an image folder did nothing, and the folders' names were audited."""
    save(tmp_path / "good/0.png", np.full((8, 8, 3), 90, np.uint8))
    with pytest.raises(ConfigError, match="'nix' does nothing here: the data are recognised as image folder"):
        open_images(tmp_path, **{option: "nix"})
    with pytest.raises(ConfigError, match="the root"):
        open_images(tmp_path, root=tmp_path)


def test_what_an_audit_wrote_beside_the_images_is_no_data(tmp_path):
    """Regression: an audit with --out below its own data was data of the next one."""
    save(tmp_path / "good/0.png", np.full((8, 8, 3), 90, np.uint8))
    save(tmp_path / "pfungst-audit/images/0.png", np.full((8, 8, 3), 90, np.uint8))
    assert len(open_images(tmp_path)[0]) == 2
    for name in ("result.json", "report.html"):
        (tmp_path / "pfungst-audit" / name).write_text("")
    assert open_images(tmp_path)[0].ids == ["good/0.png"]
