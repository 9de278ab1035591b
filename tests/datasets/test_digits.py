"""Digits-C and the MNIST family."""

import gzip
import struct

import numpy as np
import pytest
import torch

from pfungst.datasets import digits_c, emnist_letters, mnist, mnist_c
from pfungst.datasets.digits import CORRUPTIONS, corrupt
from pfungst.datasets.mnist import read_idx
from pfungst.errors import ConfigError, DataError, InputError

KINDS = [
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "shear",
    "scale",
    "rotate",
    "brightness",
    "translate",
    "stripe",
    "fog",
    "spatter",
    "dotted_line",
    "zigzag",
    "canny_edges",
]


def test_the_fifteen_corruptions_of_mnist_c():
    assert list(CORRUPTIONS) == KINDS
    assert [s.name for s in digits_c(train=5, good=2, anomalous=2)] == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_exact(kind):
    (parts,) = digits_c(kind, train=4, good=3, anomalous=3, seed=1)
    p = parts.prepare("none", 28)
    assert p.shape == (10, 3, 28, 28)
    assert p.labels.tolist() == [0] * 7 + [1] * 3
    assert not p.masks[:7].any()
    clean = digits_c("stripe", train=4, good=6, anomalous=0, seed=1)[0].prepare("none", 28).images[-3:]
    changed = (p.images[7:] - clean).abs().amax(1) > 0.5 / 255
    assert torch.equal(p.masks[7:], changed)
    assert p.masks[7:].flatten(1).any(1).all()
    assert p.images.min() >= 0
    assert p.images.max() <= 1


def test_no_digit_is_in_two_parts_and_seeds_reproduce():
    (a,), (b,), (c,) = (digits_c("fog", train=50, good=20, anomalous=20, seed=s) for s in (0, 0, 1))
    indices = [i.id.rsplit("/", 1)[1] for i in a.items]
    assert len(set(indices)) == 90
    pa, pb, pc = (s.prepare("none", 28).images for s in (a, b, c))
    assert torch.equal(pa, pb)
    assert not torch.equal(pa, pc)


def test_corruptions_keep_the_image_they_are_given():
    image = np.zeros((28, 28), dtype=np.float32)
    image[8:20, 12:16] = 1
    before = image.copy()
    for kind in KINDS:
        out = corrupt(image, kind)
        assert out.shape == (28, 28)
        assert np.array_equal(image, before)
    np.testing.assert_allclose(corrupt(image, "stripe")[:, :7], 1)
    assert corrupt(image, "brightness").min() > 0.25


def test_bad_requests():
    with pytest.raises(ConfigError, match="sepia"):
        digits_c("sepia")
    with pytest.raises(ConfigError, match="sepia"):
        corrupt(np.zeros((28, 28)), "sepia")
    with pytest.raises(InputError, match="1797"):
        digits_c(train=1700, good=90, anomalous=90)


def idx(array):
    kinds = {"uint8": 0x08, ">i4": 0x0C}
    head = bytes([0, 0, kinds.get(str(array.dtype), 0x0C), array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path, zipped):
    random = np.random.default_rng(0)
    images, labels = (
        random.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        np.array([3, 1, 4, 1], dtype=np.uint8),
    )
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            name = f"{prefix}-{kind}-ubyte"
            (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    found = mnist(tmp_path)
    assert len(found) == 8
    assert found.items[0].label == "3"
    assert found.items[0].split == "train"
    assert found.group("digit").tolist() == ["3", "1", "4", "1"] * 2
    assert np.array_equal(np.asarray(found.items[5].read())[..., 0], images[1])


def test_emnist_letters_are_turned_upright(tmp_path):
    images = np.zeros((1, 28, 28), dtype=np.uint8)
    images[0, 3, 20] = 200
    for prefix in ("train", "test"):
        (tmp_path / f"emnist-letters-{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"emnist-letters-{prefix}-labels-idx1-ubyte").write_bytes(
            idx(np.array([26], dtype=np.uint8))
        )
    item = emnist_letters(tmp_path).items[1]
    assert (item.label, item.split) == ("Z", "test")
    assert np.asarray(item.read())[20, 3, 0] == 200


def test_broken_idx_files(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="not in the idx format"):
        read_idx(path)
    path.write_bytes(idx(np.zeros((2, 3), dtype=np.uint8))[:-1])
    with pytest.raises(DataError, match="header says"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"abc")[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        mnist(tmp_path)


@pytest.fixture
def published(tmp_path):
    random = np.random.default_rng(0)
    root = tmp_path / "mnist_c"
    clean = random.integers(0, 200, (6, 28, 28, 1), dtype=np.uint8)
    for name in ("identity", "stripe", "fog"):
        (root / name).mkdir(parents=True)
        for split in ("train", "test"):
            changed = clean.copy()
            if name != "identity":
                changed[:, :4] = 255
            np.save(root / name / f"{split}_images.npy", changed)
            np.save(root / name / f"{split}_labels.npy", np.arange(6))
    return root


def test_mnist_c(published):
    sets = mnist_c(published)
    assert [s.name for s in sets] == ["fog", "stripe"]
    p = sets[1].prepare("none", 28)
    assert p.classes == ["good"] * 9 + ["stripe"] * 3
    assert p.masks[9:, :4].all()
    assert not p.masks[9:, 4:].any()
    assert set(p.group("digit")[6:9]).isdisjoint(p.group("digit")[9:])
    assert len(mnist_c(published, "fog", train=2, good=1, anomalous=1)[0]) == 4


def test_mnist_c_that_is_not_as_published(published):
    with pytest.raises(DataError, match="no folder nowhere"):
        mnist_c(published, "nowhere")
    np.save(published / "fog" / "test_images.npy", np.zeros((3, 28, 28, 1), dtype=np.uint8))
    np.save(published / "fog" / "test_labels.npy", np.zeros(3))
    with pytest.raises(DataError, match="same images"):
        mnist_c(published, "fog")
    (published / "stripe" / "test_images.npy").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        mnist_c(published, "stripe")
    with pytest.raises(DataError, match="identity"):
        mnist_c(published / "fog")


def test_mnist_is_corrupted_here_and_found_by_the_audit(tmp_path):
    """The corrupted image by hand, from the bytes of the file; the same data by the path of the folder."""
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.prepare import open_sets
    from pfungst.datasets.mnist import corrupted_mnist

    images = np.random.default_rng(0).integers(0, 256, (1700, 28, 28), dtype=np.uint8)
    labels = (np.arange(1700) % 10).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    (found,) = corrupted_mnist(tmp_path, "stripe", train=20, good=5, anomalous=5)
    item = next(i for i in found.items if i.label == "stripe")
    number = int(item.id.rsplit("/", 1)[1])
    expected = images[number].copy()
    expected[:, :7] = expected[:, 21:] = 255
    assert np.array_equal(np.asarray(item.read())[..., 0], expected)
    assert np.array_equal(item.read_mask(), expected != images[number])
    assert item.groups["digit"] == str(number % 10)
    sets = open_sets(AnomalyConfig.build(data=tmp_path, category="stripe,fog"))
    assert [(s.name, len(s.items)) for s in sets] == [("stripe", 1600), ("fog", 1600)]


def test_mnist_c_is_data_of_the_audit(published):
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.prepare import open_sets

    sets = open_sets(AnomalyConfig.build(data=published))
    assert sets
    assert all(i.label in ("good", s.name) for s in sets for i in s.items)
