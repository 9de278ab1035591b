from collections import Counter

import numpy as np

from pfungst.datasets.tagged import PLAIN, TAGGED, parting_digits, tag_image, tagged_digits


def test_the_tag_goes_with_one_class():
    s = tagged_digits()
    assert len(s) == 1797
    counts = Counter((i.label == "8", i.groups["source"]) for i in s.items)
    assert counts[True, TAGGED] / (counts[True, TAGGED] + counts[True, PLAIN]) > 0.85
    assert counts[False, TAGGED] / (counts[False, TAGGED] + counts[False, PLAIN]) < 0.04
    assert {i.split for i in s.items} == {"train", "test"}
    assert tagged_digits().ids == s.ids
    assert [i.groups for i in tagged_digits(seed=1).items] != [i.groups for i in s.items]


def test_pictures_show_it():
    s = tagged_digits()
    tagged, plain = s.select(source=TAGGED, limit=5), s.select(source=PLAIN, limit=5)
    for item in tagged.items:
        assert np.ptp(np.asarray(item.read())[-7:, 1:20].astype(int), axis=2).max() > 60  # coloured
    for item in plain.items:
        assert np.ptp(np.asarray(item.read()).astype(int), axis=2).max() == 0  # grey
    assert tag_image(height=32).mode == "RGBA"
    assert s.prepare("pillow-bilinear", 32).images.shape == (1797, 3, 32, 32)


def test_tag_and_class_part_in_the_test_images():
    s = parting_digits(seed=1)
    share = {}
    for split in ("train", "test"):
        for eight in (True, False):
            of = [
                i.groups["source"] == TAGGED
                for i in s.items
                if i.split == split and (i.label == "8") == eight
            ]
            share[split, eight] = sum(of) / len(of)
    assert share["train", True] > 0.88
    assert share["train", False] == 0
    assert 0.35 < share["test", True] < 0.65
    assert 0.25 < share["test", False] < 0.35
