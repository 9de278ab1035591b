"""Burnt-in text is proved where it lies, and a class is parted by what removal costs."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from pfungst.audit.findings.topics import written
from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.discover import ClassSubject, Explanations, Judge, find
from pfungst.discover.find import LOST
from pfungst.spurious import FeatureHead, Witness

SIDE = 32


class Bright(nn.Module):
    """Class 1 is decided by bright pixels, and by a stripe across the middle, by so much."""

    def __init__(self, bright, stripe):
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2)
        weight = torch.zeros(3, SIDE, SIDE)
        weight[:, 2:6, 2:14] = bright
        weight[:, 14:18] = stripe
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.bias.zero_()
            self.fc.weight[1] = weight.flatten()
            self.fc.bias[1] = -2.0

    def forward(self, x):
        return self.fc(self.flat(x))


def images(n, text, seed=0):
    """Grey noise; class images have a stripe, every other one text at the top left."""
    rng = torch.Generator().manual_seed(seed)
    x = 0.2 + 0.02 * torch.rand(n, 3, SIDE, SIDE, generator=rng)
    mask = torch.zeros(n, SIDE, SIDE)
    if text:
        x[:, :, 14:18] += 0.3
        mask[::2, 2:6, 2:14] = 1
        x = torch.where(mask[:, None] > 0, torch.tensor(0.9), x)
    return x, mask


def blank(n):
    return Explanations(
        np.zeros((n, 4, 4), np.float32), np.zeros((n, 8), np.float32), np.zeros(n), np.zeros(n, bool)
    )


@pytest.mark.parametrize(("bright", "survives"), [(0.05, True), (0.0, False)])
def test_text_is_found_where_it_is_read_and_only_there(bright, survives):
    x, mask = images(60, True)
    others, _ = images(60, False, 1)
    head = FeatureHead(Bright(bright, 0.05).eval(), example=x[:2])
    marks = lambda rows: mask[np.asarray(list(rows))]
    found, _ = find(
        ClassSubject(head, 1),
        blank(60),
        lambda r: x[np.asarray(list(r))],
        others,
        views=[],
        text=marks,
        n_images=30,
    )
    assert [(f.view, f.kind, f.share) for f in found] == [("file: text = text", "text", 0.5)]
    assert (found[0].regions[0] == mask[0].bool().numpy()).all()
    assert set(found[0].rows) == set(range(0, 60, 2))
    proof = found[0].proof
    assert (proof.remove.low > 0 and proof.insert.low > 0.1 and proof.p < 1e-4) == survives


def test_of_text_only_the_letters_are_put_into_others():
    """Not what lies beside them: a patch of lungs once hid what the letters carry."""
    head = FeatureHead(Bright(0.05, 0.0).eval(), example=torch.rand(2, 3, SIDE, SIDE))
    x, mask = torch.full((8, 3, SIDE, SIDE), 0.2), torch.zeros(8, SIDE, SIDE)
    x[:, :, 3:5, 4:12] = 0.9
    mask[:, 2:6, 2:14] = 1
    others = torch.full((8, 3, SIDE, SIDE), 0.6)
    judge = Judge(ClassSubject(head, 1), x, others)
    pairs = judge.regions(x, mask, None, letters=True).pairs
    np.testing.assert_allclose(pairs.put[..., 8:, :], 0.6, atol=1e-5)
    assert pairs.put[..., 3:5, 4:12].min() > 0.95  # 0.6 + 0.9 − 0.2, clipped
    assert pairs.put[..., 2, 2:14].mean() == pytest.approx(0.6, abs=0.05)  # beside the letters as it was
    patch = judge.regions(x, mask, None).pairs
    assert patch.put[..., 2, 5:11].mean() < 0.5


def test_of_patients_with_many_images_each_is_changed_before_a_second_image_of_any(monkeypatch):
    x, mask = images(60, True)
    mask[:], seen = 1, []
    head = FeatureHead(Bright(0.05, 0.05).eval(), example=x[:2])
    patients = np.repeat(np.arange(15), 4)
    real = Judge.regions
    monkeypatch.setattr(Judge, "regions", lambda self, x, *a, **k: seen.append(x) or real(self, x, *a, **k))
    monkeypatch.setattr(sys.modules["pfungst.discover.find"], "WRITTEN", 15)
    loaded = []
    load = lambda r: (loaded.append(list(r)), x[np.asarray(list(r))])[1]
    find(
        ClassSubject(head, 1), blank(60), load, images(20, False)[0], views=[],
        text=lambda r: mask[np.asarray(list(r))], units=patients, n_images=15,
    )  # fmt: skip
    changed = next(rows for rows in loaded if len(rows) == 15)
    assert sorted(patients[changed]) == list(range(15))


@pytest.mark.parametrize("drawn", [100, 30])
def test_a_class_decided_as_a_whole_is_parted_into_images_with_the_artefact_and_without(drawn, monkeypatch):
    from pfungst.discover.explain import View

    x, mask = images(80, True)
    others, _ = images(60, False, 1)
    head = FeatureHead(Bright(0.05, 0.03).eval(), example=x[:2])
    witness = Bright(0.0, 0.03).eval()  # reads the stripe only
    monkeypatch.setattr(
        sys.modules["pfungst.discover.find"], "_MEASURED", drawn
    )  # of more than twice as many
    heat = np.zeros((80, 16, 16), np.float32)
    heat[:, 1:3, 1:7] = 1
    explained = Explanations(heat, np.zeros((80, 8), np.float32), np.zeros(80), np.zeros(80, bool))
    found, _ = find(
        ClassSubject(head, 1, [Witness(witness, 1)]),
        explained,
        lambda r: x[np.asarray(list(r))],
        others,
        views=[View("one", np.zeros((80, 3)), ("place",))],
        n_images=30,
    )
    whole, part = found
    assert (whole.n_clusters, part.n_clusters, part.view) == (1, 2, LOST)
    assert set(part.rows) == set(np.flatnonzero(mask.flatten(1).any(1).numpy()))
    assert part.rank > whole.rank


def test_masks_of_text_are_prepared_as_the_images_are():
    pixels = np.full((80, 100, 3), 40, np.uint8)
    from PIL import Image

    item = Item("a.png", Image.fromarray(pixels))
    boxes = np.array([[0.5, 0.5, 1.0, 0.75]])
    marks = written(lambda i: boxes, [item, item], Condition.parse("pillow-bilinear"), 40)
    mask = marks([0, 1])
    assert mask.shape == (2, 40, 40)
    assert mask[0].mean() == pytest.approx(0.125, abs=0.02)
    assert mask[0, 22:29, 22:39].all()
    assert not written(lambda i: np.zeros((0, 4)), [item], Condition.parse("pillow-bilinear"), 40)([0]).any()
    assert written(None, [item], Condition.parse("pillow-bilinear"), 40) is None
