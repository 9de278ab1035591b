import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pfungst.errors import InputError
from pfungst.relevance import colour_limit
from pfungst.report import images


def decode(uri: str) -> np.ndarray:
    kind, data = uri.split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_small_pictures_are_exact():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(images.data_uri(image)), image)


def test_large_pictures_are_reduced_but_never_enlarged():
    image = np.full((300, 150, 3), 77, np.uint8)
    assert decode(images.data_uri(image, side=100)).shape == (100, 50, 3)
    assert decode(images.data_uri(image, side=400)).shape == (300, 150, 3)
    assert abs(int(decode(images.data_uri(image)).mean()) - 77) <= 2


def test_only_bytes_are_pictures():
    with pytest.raises(InputError, match="float32"):
        images.data_uri(np.zeros((4, 4), np.float32))


def test_red_supports_and_blue_contradicts():
    heat = np.zeros((8, 8))
    heat[0, 0], heat[7, 7] = 5.0, -5.0
    shown = images.overlay(heat, np.full((8, 8, 3), 128, np.uint8)).astype(int)
    assert shown[0, 0, 0] > shown[0, 0, 2] + 60
    assert shown[7, 7, 2] > shown[7, 7, 0] + 60
    assert np.ptp(shown[3, 3]) == 0


def test_limit_is_where_colour_is_full():
    heat = np.random.default_rng(1).normal(size=(16, 16))
    image = np.zeros((16, 16, 3), np.uint8)
    limit = colour_limit(heat)
    np.testing.assert_array_equal(images.overlay(heat, image), images.overlay(heat, image, limit))
    full = images.overlay(np.full((2, 2), limit), image[:2, :2], limit)
    np.testing.assert_allclose(full[0, 0] / 255, images.SUPPORTS, atol=0.003)


def test_values_that_are_not_finite_are_no_relevance():
    heat = np.array([[np.nan, np.inf], [-np.inf, 1.0]])
    shown = images.overlay(heat, np.full((2, 2, 3), 90, np.uint8)).astype(int)
    assert np.ptp(shown[0, 0]) == np.ptp(shown[0, 1]) == np.ptp(shown[1, 0]) == 0


def test_heat_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        images.overlay(np.zeros((2, 3)), np.zeros((4, 4, 3), np.uint8))


def polygons(path: str) -> list[np.ndarray]:
    return [
        np.array([[float(v) for v in p.split()] for p in part.rstrip("Z").split("L")])
        for part in path.split("M")[1:]
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
def test_outline_of_a_rectangle_encloses_its_area(width, height, left, top):
    mask = np.zeros((32, 32), np.uint8)
    mask[top : top + height, left : left + width] = 255
    (points,) = polygons(images.outline(mask))
    assert points.min(0) == pytest.approx([left, top], abs=0.75)
    assert points.max(0) == pytest.approx([left + width, top + height], abs=0.75)


def test_outline_has_holes_and_parts_and_may_be_empty():
    assert images.outline(np.zeros((9, 9))) == ""
    mask = np.zeros((40, 40))
    mask[4:20, 4:20] = 1
    mask[9:14, 9:14] = 0
    mask[30:36, 30:36] = 1
    assert len(polygons(images.outline(mask))) == 3
    (wider,) = polygons(images.outline(mask[24:, 24:], margin=2))
    assert wider.min() < 5
