"""The classifier demo: what it renders, and that the audit finds the watermark in the model it trains."""

import numpy as np
import pytest
import torch

from pfungst.audit.classifier import demo
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.demo import PARTS


def carries(images: np.ndarray) -> np.ndarray:
    """Whether the watermark's colour covers a part of the lower edge."""
    band = images[:, -9:].astype(float) / 255
    near = np.abs(band - np.array(demo.COLOUR)).max(-1) < 0.2
    return near.mean((1, 2)) > 0.15


def test_the_watermark_is_where_it_is_said_to_be():
    data = demo.render(3)
    images, labels = data["train"]
    marked = carries(images)
    own = labels == demo.MARKED
    assert not marked[~own].any()
    assert marked[own].mean() == pytest.approx(demo.RATE)
    assert 0.5 < demo.RATE < 1  # most, but not all
    assert not carries(data["val"][0]).any()
    assert carries(data["spurious"][0]).all()
    assert set(data["val"][1]) == set(range(10))
    clean = demo.render(3, marked=0.0)["train"]
    assert not carries(clean[0]).any()


def test_the_same_seed_gives_the_same_images():
    one, two = demo.render(5), demo.render(5)
    assert all(np.array_equal(a, b) for name in one for a, b in zip(one[name], two[name], strict=True))
    assert not np.array_equal(one["val"][0], demo.render(6)["val"][0])


@pytest.mark.parametrize(("radius", "ramp"), [(0.0, False), (0.5, False), (0.5, True)])
def test_training_learns_and_perturbations_stay_in_their_ball(radius, ramp):
    torch.manual_seed(0)
    images = torch.rand(64, 3, 8, 8)
    labels = (images[:, 0].mean((1, 2)) > images[:, 1].mean((1, 2))).long()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    moved = demo._attacked(network, images, labels, 0.5, torch.Generator().manual_seed(0))
    assert float((moved - images).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-5
    demo.train(network, images, labels, epochs=30, radius=radius, ramp=ramp, batch_size=16)
    with torch.no_grad():
        assert float((network(images).argmax(1) == labels).float().mean()) > 0.9


def test_the_radius_grows_evenly_to_its_value(monkeypatch):
    radii = []
    monkeypatch.setattr(
        demo, "_attacked", lambda network, x, y, radius, generator: (radii.append(radius), x)[1]
    )
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 2
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    demo.train(network, images, labels, epochs=2, radius=0.8, ramp=True, batch_size=4)
    assert radii == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.slow
def test_the_demo_finds_the_watermark_proves_that_it_triggers_the_class_and_ends_it(tmp_path):
    result = PARTS["classifier"](tmp_path, train=True)
    assert isinstance(result, ClassifierResult)
    entry = next(e for e in result.entries if e.index == demo.MARKED)
    first = entry.components[0]
    assert first.component in entry.fixed
    data = demo.render(demo.SEED)
    known = carries(data["train"][0])
    assert all(known[int(image.id.split("/")[-1].split(".")[0])] for image in first.images)
    assert result.verdict.level == "clever-hans"
    assert first.suspect
    assert entry.under().spurious.triggered.value >= 0.6
    assert entry.under(mitigated=True).spurious.triggered.value <= entry.under().spurious.triggered.value / 2
    assert entry.false_positives <= 0.02
    assert result.accuracy.value > 0.9
    assert result.accuracy_loss.value <= 0.02
    assert not [c for e in result.entries if e.index != demo.MARKED for c in e.components if c.suspect]
