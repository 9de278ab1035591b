import hashlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfungst.data import open_images
from pfungst.datasets.synthetic import CATEGORIES, Camera, camera, make_parts, write
from pfungst.errors import ConfigError, DataError

NAMES = sorted(CATEGORIES)


def test_counts_and_ids_by_default():
    sets = make_parts()
    assert len(sets) >= 5
    for s in sets:
        assert len(s.select(split="train", label="good")) >= 60
        assert len(s.select(split="test", label="good")) >= 30
        kinds = set(s.classes) - {"good"}
        assert len(kinds) >= 3
        assert int(s.labels.sum()) >= 30
        assert all((i.mask is None) == (i.label == "good") for i in s.items)


@pytest.mark.parametrize("name", NAMES)
def test_the_full_resolution_is_at_least_900(name):
    assert min(make_parts(name, train=1, good=0, defective=0)[0][0].read().size) >= 900


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_images_whatever_else_is_made(name):
    def digest(**options):
        s = make_parts(name, size=128, **options)[0]
        items = {i.id: i for i in s.items}
        return hashlib.sha256(np.asarray(items["train/good/001.png"].read()).tobytes()).hexdigest()

    a = digest(train=2, good=1, defective=1)
    assert a == digest(train=3, good=0, defective=0)
    assert a != digest(train=2, good=1, defective=1, seed=1)
    s = make_parts(name, train=2, good=0, defective=0, size=128)[0]
    assert not np.array_equal(np.asarray(s[0].read()), np.asarray(s[1].read()))


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_where_the_damage_is(name):
    """The same specimen in the same picture, with and without its damage: they differ inside the mask alone."""
    part = CATEGORIES[name](300)
    for kind in part.defects:
        for seed in range(3):
            good = part.render(None, np.random.default_rng(seed))[0].astype(float)
            bad, mask = part.render(kind, np.random.default_rng(seed))
            change = np.abs(bad - good).max(2)
            assert 0 < mask.mean() < 0.2, (kind, seed)
            near = dilate(mask, 17)
            assert change[mask].mean() > 10, (kind, seed)
            assert change[mask].mean() > 8 * change[~near].mean(), (kind, seed)
            assert np.median(change[~near]) == 0, (kind, seed)


def dilate(mask: np.ndarray, width: int) -> np.ndarray:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_can_be_had_before_and_after_the_image(name):
    item = make_parts(name, train=0, good=0, defective=1, size=128)[0][0]
    before = item.read_mask()
    item.read()
    np.testing.assert_array_equal(before, item.read_mask())
    assert before.any()


def test_the_camera_knows_nothing_of_labels():
    assert list(inspect.signature(Camera.photograph).parameters) == ["self", "scene", "mask", "rng"]
    scene = np.full((128, 128, 3), 0.2, np.float32)
    empty, full = np.zeros((128, 128), bool), np.ones((128, 128), bool)
    a = Camera().photograph(scene, empty, np.random.default_rng(0))[0]
    b = Camera().photograph(scene, full, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(a, b)


def test_shot_noise_grows_with_the_signal_and_shrinks_with_electrons():
    def linear_noise(level: float, electrons: float) -> float:
        still = Camera(
            electrons=electrons, read=0, lens=0, shift=0, turn=0, zoom=0, flicker=0, slope=0, vignette=0
        )
        scene = np.full((256, 256, 3), level, np.float32)
        picture = still.photograph(scene, np.zeros((256, 256), bool), np.random.default_rng(1))[0]
        return float(((picture[1::2, 0::2, 1] / 255.0) ** 2.2).std())  # green sites that were measured

    assert linear_noise(0.4, 1000) == pytest.approx(np.sqrt(0.4 / 1000), rel=0.1)
    assert linear_noise(0.1, 1000) == pytest.approx(np.sqrt(0.1 / 1000), rel=0.1)
    assert linear_noise(0.4, 250) == pytest.approx(np.sqrt(0.4 / 250), rel=0.1)


def test_grain_of_neighbours_correlates_as_on_a_mosaic_sensor():
    still = Camera(shift=0, turn=0, zoom=0, flicker=0, slope=0, vignette=0)
    scene = np.full((256, 256, 3), 0.3, np.float32)
    x = still.photograph(scene, np.zeros((256, 256), bool), np.random.default_rng(2))[0][..., 0].astype(float)
    x -= x.mean()
    near = (x[:, 1:] * x[:, :-1]).mean() / x.var()
    far = (x[:, 8:] * x[:, :-8]).mean() / x.var()
    assert 0.3 < near < 0.8
    assert abs(far) < 0.05
    assert camera.grid(8)[0].shape == (8, 8)


def test_what_is_written_opens_as_mvtec(tmp_path: Path):
    sets = make_parts(["wood_stripes", "turned_ring"], train=2, good=1, defective=4, size=96)
    write(tmp_path / "parts", sets)
    opened = {s.name: s for s in open_images(tmp_path / "parts")}
    for s in sets:
        o = opened[s.name]
        assert sorted(o.ids) == sorted(s.ids)
        assert not o.notes
        by_id = {i.id: i for i in o.items}
        for item in s.items:
            np.testing.assert_array_equal(np.asarray(by_id[item.id].read()), np.asarray(item.read()))
            if item.mask is not None:
                np.testing.assert_array_equal(by_id[item.id].read_mask(), item.read_mask())
    with pytest.raises(DataError, match="not an empty folder"):
        write(tmp_path / "parts", sets)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError):
        write(tmp_path / "file" / "under", sets)


def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match=r"no rendered category 'ring'\n.*turned_ring"):
        make_parts("ring")
    with pytest.raises(ConfigError, match="61 px"):
        make_parts(size=61)
    with pytest.raises(ConfigError, match="-1"):
        make_parts(train=-1)


def test_antialiasing_lowers_the_distance_between_good_parts():
    """The cause of the effect, for every category: nearest keeps grain, antialiasing removes it."""
    for s in make_parts(train=6, good=0, defective=0, size=512):
        near, anti = s.prepare_many(["opencv-nearest", "pillow-bilinear"], 128)
        distance = lambda p: float(((p.images[:3] - p.images[3:]) ** 2).sum((1, 2, 3)).mean())
        assert distance(anti) < 0.8 * distance(near), s.name


assert Image.MAX_IMAGE_PIXELS  # the limit of Pillow stays in force: nothing of ours switches it off
