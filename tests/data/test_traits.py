"""What files tell by themselves."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfungst.data import Item, read_image
from pfungst.data.decode import Undecodable
from pfungst.data.traits import BurntInText, file_columns, traits, without_boxes
from pfungst.errors import ConfigError


def _file(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _noise(shape: tuple[int, ...] = (40, 50, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


@pytest.mark.parametrize("quality", [5, 20, 50, 75, 90, 95])
def test_jpeg_quality_is_the_one_it_was_saved_with(quality: int):
    found = traits(Item("a", _file(_noise(), "JPEG", quality=quality))).numbers["jpeg quality"]
    assert abs(found - quality) <= 1


def test_size_and_aspect_are_of_the_file():
    numbers = traits(Item("a", _file(_noise((40, 60, 3))))).numbers
    assert (numbers["width"], numbers["height"], numbers["aspect"]) == (60, 40, 1.5)


def test_a_grey_picture_in_a_colour_file_is_grey():
    grey = np.repeat(_noise((20, 20, 1)), 3, axis=2)
    assert traits(Item("a", _file(grey))).words["colour"] == "grey"
    assert traits(Item("a", _file(_noise()))).words["colour"] == "colour"


def test_the_border_is_the_area_around_the_picture():
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[4:36, 5:45] = _noise((32, 40, 3))
    assert traits(Item("a", _file(pixels))).numbers["border"] == pytest.approx(1 - 32 * 40 / 2000)
    assert traits(Item("a", _file(_noise()))).numbers["border"] == 0


def test_a_flat_image_has_numbers_and_no_error():
    numbers = traits(Item("a", _file(np.zeros((9, 9, 3), np.uint8)))).numbers
    assert all(np.isfinite(list(numbers.values())))


def test_camera_and_year_come_from_exif():
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Siemens", "Fluorospot", "2019:03:01 10:00:00"
    words = traits(Item("a", _file(_noise(), "JPEG", exif=exif))).words
    assert (words["camera"], words["year"]) == ("Siemens Fluorospot", "2019")


def test_files_of_two_sources_fall_into_two_groups():
    items = [Item(f"a{i}", _file(_noise(seed=i), "JPEG", quality=70)) for i in range(6)]
    items += [Item(f"b{i}", _file(_noise(seed=i), "PNG")) for i in range(7)]
    columns = file_columns(items)
    assert columns["file: format"].tolist() == ["JPEG"] * 6 + ["PNG"] * 7
    assert "file: width" not in columns  # one value is no group


def test_many_values_are_cut_at_their_quartiles():
    items = [Item(str(i), _file(_noise((20, 20 + i, 3)))) for i in range(40)]
    values, counts = np.unique(file_columns(items, ["width"])["file: width"], return_counts=True)
    assert len(values) == 4
    assert counts.tolist() == [10] * 4


def test_an_unreadable_file_is_a_value_of_its_own():
    items = [Item(str(i), b"no image") for i in range(5)] + [Item(f"b{i}", _file(_noise())) for i in range(5)]
    assert file_columns(items)["file: format"].tolist() == ["unreadable"] * 5 + ["PNG"] * 5


def test_an_unknown_column_is_refused_by_name():
    with pytest.raises(ConfigError, match="no column 'colr'"):
        file_columns([Item("a", _file(_noise()))], ["colr"])


def test_postscript_named_png_is_not_handed_to_an_interpreter(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n")
    with pytest.raises(Undecodable, match="not an image"):
        read_image(file)


def test_burnt_in_text_is_found_and_ribs_are_not(tmp_path: Path):
    pytest.importorskip("rapidocr_onnxruntime", reason="needs the extra marks")
    import cv2

    size = 400
    y, x = np.mgrid[:size, :size]
    ribs = (128 + 90 * np.sin((y + 0.002 * (x - 200) ** 2) / 9)).astype(np.uint8)  # taken for lines of text
    plain = np.repeat(ribs[:, :, None], 3, axis=2)
    marked = np.full((size, size, 3), 60, np.uint8)
    cv2.putText(marked, "PORTABLE", (230, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)
    find = BurntInText(tmp_path / "text.json")
    items = [Item("ribs", _file(plain)), Item("text", _file(marked))]
    assert len(find(items[0])) == 0
    ((left, top, right, bottom),) = find(items[1])
    assert (left, right, top, bottom) == pytest.approx((0.57, 0.94, 0.04, 0.11), abs=0.03)
    erased = without_boxes(marked, find(items[1]))
    assert np.abs(erased.astype(int) - 60).max() <= 20
    find.keep()
    again = BurntInText(tmp_path / "text.json")
    again._reader = None  # nothing is read twice
    np.testing.assert_array_equal(again(items[1]), find(items[1]))


def test_without_the_extra_the_word_text_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(ConfigError, match="RapidOCR"):
        BurntInText()


def test_erasing_leaves_the_rest_of_the_picture():
    pixels = _noise((40, 50, 3))
    erased = without_boxes(pixels, np.array([[0.2, 0.25, 0.4, 0.5]]))
    changed = (erased != pixels).any(2)
    assert changed[10:20, 10:20].mean() > 0.9
    assert not changed[22:].any()
    assert not changed[:, 22:].any()
    assert without_boxes(pixels, np.zeros((0, 4))) is pixels
