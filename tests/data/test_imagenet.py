from collections import Counter

import pytest
from PIL import Image

from pfungst.data import open_imagenet, open_images
from pfungst.data.imagenet import FISHES, TRUCKS
from pfungst.errors import DataError


def make(root, classes, train=3, val=2):
    for split, count in (("train", train), ("val", val)):
        for wnid in classes:
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4, 3)).save(folder / f"{wnid}_{i}.JPEG")


def test_subsets_are_the_papers(tmp_path):
    assert (len(TRUCKS), len(FISHES)) == (8, 16)
    make(tmp_path, [*TRUCKS, *FISHES, "n01440010"])
    trucks = open_imagenet(tmp_path, "truck")
    assert Counter(i.split for i in trucks.items) == {"train": 24, "test": 16}
    assert set(trucks.classes) == set(TRUCKS.values())
    assert len(open_imagenet(tmp_path, "fish")) == 80
    assert len(open_imagenet(tmp_path)) == 125
    (same,) = open_images(tmp_path, category="truck")
    assert same.ids == trucks.ids
    chosen = open_imagenet(tmp_path, {"n03417042": "refuse lorry"})
    assert set(chosen.classes) == {"refuse lorry"}
    assert trucks.select(label="garbage truck").group("wnid")[0] == "n03417042"


def test_names_agree_with_a_published_list(shared):
    folder = shared / "data" / "imagenet_samples"
    published = {p.name[:9]: p.stem[10:].replace("_", " ") for p in folder.glob("n*.JPEG")}
    assert len(published) == 24
    ours = {**TRUCKS, **FISHES}
    assert set(published) == set(ours)
    for wnid, name in published.items():
        assert ours[wnid].replace(" ", "")[:3] == name.replace(" ", "")[:3]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="neither train nor val"):
        open_imagenet(tmp_path)
    make(tmp_path, list(TRUCKS)[:7])
    with pytest.raises(DataError, match=r"(?s)2 class folders .*trailer truck"):
        open_imagenet(tmp_path, "truck")
    with pytest.raises(DataError, match="'trucks'"):
        open_imagenet(tmp_path, "trucks")
