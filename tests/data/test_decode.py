import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories import broken_files, picture, png_bomb
from pfungst.data.decode import Undecodable, read_image, read_mask

RAMP = np.linspace(0, 255, 64).astype(np.uint8)[None, :].repeat(16, 0)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def pixels(data: bytes, **options: int) -> np.ndarray:
    image = read_image(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_sixteen_bits_are_scaled_not_clipped():
    wide = (RAMP.astype(np.uint16) * 257)[:, :]
    got = pixels(stored(Image.fromarray(wide), "PNG"))
    np.testing.assert_array_equal(got, np.stack([RAMP] * 3, 2))
    got = pixels(stored(Image.fromarray(wide), "TIFF"))
    np.testing.assert_array_equal(got[..., 1], RAMP)


def test_thirty_two_bit_integers_are_scaled_or_refused():
    np.testing.assert_array_equal(
        pixels(stored(Image.fromarray(RAMP.astype(np.int32) * 257), "TIFF"))[..., 0], RAMP
    )
    with pytest.raises(Undecodable, match="outside 0 to 65,535"):
        read_image(stored(Image.fromarray(RAMP.astype(np.int32) * 100_000), "TIFF"))


def test_floats_from_0_to_1_are_scaled_and_others_refused():
    np.testing.assert_array_equal(
        pixels(stored(Image.fromarray((RAMP / 255).astype(np.float32)), "TIFF"))[..., 0], RAMP
    )
    for bad in (RAMP.astype(np.float32), np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(Undecodable, match="float image"):
            read_image(stored(Image.fromarray(bad), "TIFF"))


def test_palette_grey_and_one_bit():
    rgb = Image.fromarray(picture(0)[0])
    palette = rgb.quantize(32)
    np.testing.assert_array_equal(pixels(stored(palette, "PNG")), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(pixels(stored(Image.fromarray(RAMP), "PNG"))[..., 2], RAMP)
    bits = Image.fromarray(RAMP > 100)
    assert set(np.unique(pixels(stored(bits, "PNG")))) == {0, 255}


def test_transparency_is_composited_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 128
    got = pixels(stored(Image.fromarray(rgba), "PNG"))
    assert (got[:2] == (200, 0, 0)).all()
    assert (got[3] == 255).all()
    assert np.abs(got[2].astype(int) - (227, 127, 127)).max() <= 1
    palette = Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P")
    assert (pixels(stored(palette, "PNG", transparency=0))[0, 1] == 255).all()


def test_cmyk_and_exif_rotation():
    image, _ = picture(3, (48, 32))
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    cmyk = pixels(stored(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - flat).mean() < 4
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pixels(stored(Image.fromarray(image), "PNG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(image, -1))


def test_every_broken_file_is_refused_with_its_reason(tmp_path: Path):
    reasons = {}
    for path in broken_files(tmp_path):
        with pytest.raises(Undecodable) as e:
            read_image(path)
        reasons[path.name] = str(e.value)
    assert "truncated" in reasons["truncated.jpg"]
    assert "more than the limit of 178,000,000" in reasons["bomb.png"]
    assert "empty" in reasons["empty.png"]
    assert "not an image" in reasons["text.png"]
    with pytest.raises(Undecodable, match="does not exist"):
        read_image(tmp_path / "absent.png")


def test_the_limit_is_a_parameter_and_reads_the_header_only():
    with pytest.raises(Undecodable, match="9,000 × 9,000 pixels are more than the limit of 1,000,000"):
        read_image(png_bomb(9_000), max_pixels=1_000_000)
    data = stored(Image.fromarray(picture(0, 40)[0]), "PNG")
    assert read_image(data, max_pixels=1600).size == (40, 40)
    with pytest.raises(Undecodable):
        read_image(data, max_pixels=1599)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "RGBA", "I;16"])
def test_masks_of_any_mode(mode):
    mask = picture(1, 32, defect=True)[1]
    if mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 65535)
    elif mode == "P":
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([0, 0, 0, 200, 0, 0])
    else:
        image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    np.testing.assert_array_equal(read_mask(stored(image, "PNG")), mask)
