"""Tar archives, made by hand with Python's tarfile, as folders and by the rules of WebDataset."""

import gzip
import io
import json
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from pfungst.audit.images import Labelled
from pfungst.conditions import Condition
from pfungst.data import open_images
from pfungst.data.tars import Member
from pfungst.errors import DataError
from pfungst.spurious import extract_features


def picture(seed, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pack(file, members, more=()):
    """A tar file of {name: bytes}, or of pairs where a name occurs twice; `more`: TarInfo without data."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return file


def shards(root, count=2, each=3):
    """Archives train-0000.tar … of samples with a class and an object of columns; numbered images throughout."""
    for number in range(count):
        members = {}
        for i in range(number * each, (number + 1) * each):
            members[f"{i:05d}.png"] = picture(i)
            members[f"{i:05d}.cls"] = str(i % 2).encode()
            members[f"{i:05d}.json"] = json.dumps({"site": f"s{i % 3}", "age": i, "none": None}).encode()
        pack(root / f"train-{number:04d}.tar", members)
    return root


def test_samples_of_a_folder_of_archives(tmp_path):
    (images,) = open_images(shards(tmp_path / "set"))
    assert (images.name, images.layout) == ("set", "tar shards")
    assert images.ids == [f"train-{i // 3:04d}.tar/{i:05d}.png" for i in range(6)]
    assert images.classes == ["0", "1"] * 3
    assert set(images.splits) == {"train"}
    assert images.group("site").tolist() == ["s0", "s1", "s2"] * 2
    assert images.group("age").tolist() == list("012345")
    assert images.group("none").tolist() == [""] * 6
    for i, item in enumerate(images):
        assert item.image() == picture(i)
        np.testing.assert_array_equal(np.asarray(item.read()), np.asarray(Image.open(io.BytesIO(picture(i)))))


def test_a_range_names_its_archives_and_those_that_are_missing(tmp_path):
    root = shards(tmp_path / "set", 12, 1)
    (images,) = open_images(root / "train-{0003..0010}.tar")
    assert (images.name, images.layout) == ("train", "tar")
    assert images.ids == [f"train-{i:04d}.tar/{i:05d}.png" for i in range(3, 11)]
    (one,) = open_images(root / "train-0003.tar")
    assert one.ids == images.ids[:1]
    with pytest.raises(DataError, match=r"2 of 4 archives of .* do not exist: .*0012\.tar, .*0013\.tar"):
        open_images(root / "train-{0010..0013}.tar")
    with pytest.raises(DataError, match=r"0 archives of .* do not exist"):
        open_images(root / "train-{0005..0003}.tar")


def test_numbers_get_the_names_beside_the_archive(tmp_path):
    root = shards(tmp_path / "set")
    (root / "labels.json").write_text('["cat", "dog"]')
    assert open_images(root)[0].classes == ["cat", "dog"] * 3


@pytest.mark.parametrize(
    ("members", "label", "groups"),
    [
        ({"a.jpg": picture(0, "JPEG"), "a.txt": b" a dog \n"}, "a dog", {}),
        ({"a.webp": picture(0, "WEBP"), "a.txt": b"a dog", "a.cls": b"7"}, "7", {"text": "a dog"}),
        ({"a.png": picture(0), "a.json": b'{"target": "x", "n": [1]}'}, "x", {"n": "[1]"}),
        ({"./train/cats/a.b.png".replace(".b", ""): picture(0)}, "cats", {}),
        ({"a.png": picture(0), "a.cls": "Käfer".encode()}, "Käfer", {}),
    ],
)
def test_what_becomes_of_texts(tmp_path, members, label, groups):
    (images,) = open_images(pack(tmp_path / "x.tar", members))
    assert (images[0].label, images[0].groups) == (label, groups)


def test_masks_and_hidden_files(tmp_path):
    mask = io.BytesIO()
    Image.fromarray(np.eye(12, dtype=np.uint8) * 255).save(mask, "PNG")
    members = {
        "a.png": picture(0),
        "a.mask.png": mask.getvalue(),
        "a.cls": b"x",
        "._a.png": b"",
        ".x/b.q": b"",
    }
    (images,) = open_images(pack(tmp_path / "x.tar", members))
    assert images.ids == ["x.tar/a.png"]
    np.testing.assert_array_equal(images[0].read_mask(), np.eye(12, dtype=bool))


def link():
    info = tarfile.TarInfo("b.png")
    info.type, info.linkname = tarfile.SYMTYPE, "a.png"
    return info


SOUND = {"a.png": picture(0), "a.cls": b"1", "b.png": picture(1), "b.cls": b"0"}


@pytest.mark.parametrize(
    ("members", "more", "message"),
    [
        ({**SOUND, "a.npy": b"x"}, (), "the ending of a.npy is not known"),
        ({**SOUND, "a.left.png": b"x"}, (), "the ending of a.left.png is not known"),
        ([*SOUND.items(), ("b.png", picture(1))], (), "b.png occurs twice"),
        ({**SOUND, "b.jpg": picture(1, "JPEG")}, (), "b.jpg is a second image"),
        ({**SOUND, "c.png": picture(2)}, (), "1 of 3 samples have no .cls:\n    c"),
        ({**SOUND, "d/c.cls": b"1"}, (), "1 of 3 samples have no image:\n    d/c"),
        ({"a.cls": b"1"}, (), "1 of 1 samples have no image:\n    a"),
        ({"a.png": picture(0), "a.cls": b"\xff"}, (), "the .cls of a.png cannot be read: 'utf-8'"),
        ({"a.png": picture(0), "a.json": b"{"}, (), "the .json of a.png cannot be read: Expecting"),
        ({"a.png": picture(0), "a.json": b"[1]"}, (), "the .json of a.png cannot be read: no object"),
        ({"a.png": picture(0), "a.cls": b"1"}, [link()], "b.png is a link"),
    ],
)
def test_wrong_archives_are_named_with_the_member_and_a_remedy(tmp_path, members, more, message):
    file = pack(tmp_path / "x.tar", members, more)
    with pytest.raises(DataError, match=rf"(?s){re.escape(str(file))}.*{re.escape(message)}") as caught:
        open_images(file)
    assert caught.value.remedy


def test_damaged_and_compressed_archives(tmp_path):
    file = pack(tmp_path / "x.tar", SOUND)
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        starts = [m.offset for m in tar.getmembers()] + [tar.getmembers()[-1].offset_data]
    for keep in starts[1:]:
        file.write_bytes(whole[: keep + 3])
        with pytest.raises(DataError, match=r"x\.tar .*(cut off|unexpected end|truncated)"):
            open_images(file)
    file.write_bytes(whole[: starts[2]])  # between two members
    with pytest.raises(DataError, match=r"x\.tar is cut off"):
        open_images(file)
    file.write_bytes(whole[: starts[1]] + b"x" * 512 + whole[starts[1] + 512 :])
    with pytest.raises(DataError, match=r"x\.tar is cut off or damaged"):
        open_images(file)
    for name in ("x.tar.gz", "x.tgz", "y.tar"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        with pytest.raises(DataError, match=rf"{name} is compressed(.|\n)*gunzip"):
            open_images(tmp_path / name)
    file.write_bytes(whole)
    assert open_images(file)[0].classes == ["1", "0"]


def test_an_archive_beside_what_was_unpacked_from_it_is_left_alone(tmp_path):
    pack(tmp_path / "set" / "all.tar", SOUND)
    (tmp_path / "set" / "cats").mkdir()
    (tmp_path / "set" / "cats" / "a.png").write_bytes(picture(0))
    (images,) = open_images(tmp_path / "set")
    assert (images.layout, images.ids) == ("image folder", ["cats/a.png"])


def test_an_archive_that_changes_changes_what_its_images_are(tmp_path):
    file = pack(tmp_path / "x.tar", SOUND)
    (images,) = open_images(file)
    before = [item.identity() for item in images]
    assert len(set(before)) == 2
    assert [item.identity() for item in pickle.loads(pickle.dumps(images.items))] == before
    with open(file, "ab") as stream:
        stream.write(bytes(512))
    assert not set(before) & {item.identity() for item in open_images(file)[0]}
    file.write_bytes(b"")
    with pytest.raises(Exception, match="shorter than when it was opened"):
        images[0].read()
    assert images[0].image == Member(file, 512, len(SOUND["a.png"]))


def test_two_processes_compute_the_bytes_of_a_folder(tmp_path):
    """Oracle: the same images as files."""
    (packed,) = open_images(shards(tmp_path / "set", 3, 20))
    for i in range(60):
        file = tmp_path / "plain" / str(i % 2) / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i))
    (plain,) = open_images(tmp_path / "plain")
    order = sorted(plain.items, key=lambda item: item.id.rpartition("/")[2])
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    net = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).eval()
    stores = []
    for name, items, workers in (("a", packed.items, 2), ("b", order, 0), ("c", packed.items, 0)):
        data = Labelled(items, [int(i.label) for i in items], Condition.parse("pillow-bilinear"), 12)
        stores.append(
            extract_features(net, data, tmp_path / name, batch_size=8, workers=workers, progress=False)
        )
    files = [(tmp_path / name / "features.npy").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    assert stores[0].labels.tolist() == stores[1].labels.tolist()
