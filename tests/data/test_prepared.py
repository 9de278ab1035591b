from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from factories import broken_files, picture, save
from pfungst.conditions import RESIZERS, Condition
from pfungst.data import ImageSet, Item, open_images, resize_mask
from pfungst.errors import DataError, UnreadableImages


def test_prepared_images_are_those_of_the_condition_in_order(mvtec: Path):
    (s,) = open_images(mvtec / "nut")
    c = Condition.parse("pillow-bilinear+noise:0.01")
    p = s.prepare(c, 16)
    assert p.images.shape == (16, 3, 16, 16)
    assert p.condition == c
    for row, item in zip(p.images, s.items, strict=True):
        assert torch.equal(row, c(Image.open(item.image), 16, key=item.id))
    assert torch.equal(p.masks, s.masks(16))
    assert p.has_mask.tolist() == p.labels.astype(bool).tolist()
    assert (p.masks.flatten(1).any(1).numpy() == p.has_mask).all()
    assert s.prepare(c, 16, masks=False).masks is None
    assert torch.equal(p.images, s.prepare(c, 16, workers=1).images)


def test_many_conditions_decode_each_image_once():
    reads: list[int] = []

    def reader(i: int):
        def read() -> Image.Image:
            reads.append(i)
            return Image.fromarray(picture(i)[0])

        return read

    s = ImageSet("x", [Item(str(i), reader(i), "good") for i in range(5)])
    a, b = s.prepare_many(["opencv-nearest", "pillow-bilinear"], 8)
    assert sorted(reads) == [0, 1, 2, 3, 4]
    assert torch.equal(a.images, s.prepare("opencv-nearest", 8).images)
    assert torch.equal(b.images, s.prepare("pillow-bilinear", 8).images)
    assert (a.condition, b.condition) == (
        Condition.parse("opencv-nearest"),
        Condition.parse("pillow-bilinear"),
    )


def test_choosing_some(mvtec: Path):
    p = open_images(mvtec / "nut")[0].prepare("opencv-nearest", 8)
    test = p[p.splits == "test"]
    assert len(test) == 10
    assert test.condition is p.condition
    for index in (slice(0, 4, 2), [0, 2], np.array([0, 2]), torch.tensor([0, 2])):
        assert p[index].ids == [p.ids[0], p.ids[2]]
        assert torch.equal(p[index].images, p.images[[0, 2]])
        assert torch.equal(p[index].masks, p.masks[[0, 2]])
    assert p[-1].ids == [p.ids[-1]]
    assert len(p[np.zeros(16, bool)]) == 0
    assert [q.ids[0] for q in p] == p.ids
    with pytest.raises(IndexError):
        p[16]
    with pytest.raises(IndexError):
        p[np.ones(3, bool)]


def test_all_bad_images_are_named_together_before_anything_is_returned(mvtec: Path):
    bad = broken_files(mvtec / "nut/train/good")
    (s,) = open_images(mvtec / "nut")
    for attempt in (s.check, lambda: s.prepare("opencv-nearest", 8)):
        with pytest.raises(UnreadableImages) as e:
            attempt()
        assert sorted(p for p, _ in e.value.problems) == sorted(map(str, bad))
        assert all(p.name in str(e.value) for p in bad)
    p = s.prepare("opencv-nearest", 8, skip_bad=True)
    assert len(p) == 16
    assert sorted(i for i, _ in p.skipped) == sorted(f"train/good/{b.name}" for b in bad)
    assert len(p[0:2].skipped) == 4


def test_a_broken_mask_is_named_with_its_image(mvtec: Path):
    mask = mvtec / "nut/ground_truth/hole/000_mask.png"
    mask.write_bytes(b"")
    (s,) = open_images(mvtec / "nut")
    with pytest.raises(UnreadableImages, match=r"hole/000\.png: its mask .*000_mask\.png: the file is empty"):
        s.check()
    with pytest.raises(UnreadableImages):
        s.masks(8)
    s.prepare("opencv-nearest", 8, masks=False)


def test_a_mask_of_another_size(mvtec: Path):
    save(mvtec / "nut/ground_truth/hole/000_mask.png", np.ones((16, 20), np.uint8))
    (s,) = open_images(mvtec / "nut")
    for attempt in (s.check, lambda: s.prepare("opencv-nearest", 8)):
        with pytest.raises(
            DataError, match=r"000_mask\.png has 20 × 16 pixels, its image .*000\.png has 32 × 32"
        ):
            attempt()
    assert s.prepare("opencv-nearest", 8, skip_bad=True).skipped[0][0] == "test/hole/000.png"


def test_sizes():
    items = [Item(str(n), save_bytes(n), "good") for n in (10, 12)]
    s = ImageSet("x", items)
    assert s.prepare("pillow-bilinear", 6).images.shape == (2, 3, 6, 6)
    with pytest.raises(DataError, match="2 different sizes"):
        s.prepare("pillow-bilinear", None)
    wide = ImageSet("w", [Item("w", save_bytes((20, 10)), "good")])
    assert wide.prepare("pillow-bilinear", None).images.shape == (1, 3, 10, 20)
    assert wide.prepare("pillow-bilinear", 6).images.shape == (1, 3, 6, 6)


def save_bytes(size: int | tuple[int, int]) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture(0, size)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def test_nothing_left():
    with pytest.raises(DataError, match="no images to prepare"):
        ImageSet("x", []).prepare("opencv-nearest", 8)
    with pytest.raises(DataError, match="none of the 1 images"):
        ImageSet("x", [Item("a", b"")]).prepare("opencv-nearest", 8, skip_bad=True)


def test_progress_is_told(mvtec: Path):
    told: list[tuple[int, int]] = []
    open_images(mvtec / "nut")[0].prepare(
        "opencv-nearest", 8, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(i, 16) for i in range(1, 17)]
    assert len(open_images(mvtec / "nut")[0].prepare("opencv-nearest", 8, progress=True)) == 16


def test_masks_keep_what_covers_half_a_pixel_and_never_lose_a_hairline():
    mask = np.zeros((40, 40), bool)
    mask[8:16, 8:24] = True
    small = resize_mask(mask, 10)
    expected = np.zeros((10, 10), bool)
    expected[2:4, 2:6] = True
    np.testing.assert_array_equal(small, expected)
    hair = np.zeros((900, 900), bool)
    hair[450, 100:800] = True
    thin = resize_mask(hair, 224)
    assert thin[:, 30:190].any(0).all()
    assert thin.sum() < 2 * 224
    assert not resize_mask(np.zeros((9, 9), bool), 4).any()
    assert resize_mask(np.ones((9, 9), bool), 4).all()


def test_the_two_resizers_give_the_published_scores(golden: Path, shared: Path):
    """D2Neighbors of the published code on nearest and on antialiased tiles: both conditions must reproduce them."""
    from scipy.special import logsumexp

    z = np.load(golden / "d2neighbors_golden.npz")
    (tile,) = open_images(shared / "data/magnetic_tile", category="tile")
    by_end = {i.id: i for i in tile.items}

    def find(name: str) -> Item:
        return next(i for k, i in by_end.items() if k.endswith(str(name)))

    s = ImageSet("golden", [find(n) for n in [*z["train_files"], *z["test_files"]]])
    near, anti = s.prepare_many(["opencv-nearest", "pillow-bilinear"], 64)
    flat = lambda p: (2 * p.images.double() - 1).flatten(1).numpy()
    u, gamma = flat(near)[:60], float(z["l2_gamma"])
    for p, key in ((near, "l2_scores_nearest"), (anti, "l2_scores_antialias")):
        d = ((flat(p)[60:, None] - u[None]) ** 2).sum(2)
        score = -(logsumexp(-gamma * d, axis=1) - np.log(60)) / gamma
        np.testing.assert_allclose(score, z[key], rtol=1e-3)


def test_a_size_of_two_sides(tmp_path):
    """Height first, as torch has it; every resizer against its library called by hand."""
    image = picture(3, (50, 40))[0]
    wide = {"pillow-bilinear": Image.Resampling.BILINEAR, "pillow-lanczos": Image.Resampling.LANCZOS}
    for name in set(RESIZERS) - {"none"}:
        assert Condition.parse(name)(image, (16, 24)).shape == (3, 16, 24)
    for name, how in wide.items():
        by_hand = np.asarray(Image.fromarray(image).resize((24, 16), how)).transpose(2, 0, 1) / np.float32(
            255
        )
        np.testing.assert_array_equal(Condition.parse(name)(image, (16, 24)).numpy(), by_hand)
    by_hand = cv2.resize(image, (24, 16), interpolation=cv2.INTER_AREA).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(Condition.parse("opencv-area")(image, (16, 24)).numpy(), by_hand)
    mask = np.zeros((40, 50), bool)
    mask[:20, :25] = True
    assert resize_mask(mask, (16, 24)).shape == (16, 24)
    assert resize_mask(mask, (16, 24)).sum() == 8 * 12
