import numpy as np
import pytest
import torch
from PIL import Image

from pfungst.conditions import Condition, Logo
from pfungst.errors import ConfigError


@pytest.fixture
def tag(tmp_path):
    """A 40 × 10 logo: red, its right half transparent."""
    array = np.zeros((10, 40, 4), np.uint8)
    array[..., 0] = 255
    array[:, :20, 3] = 255
    Image.fromarray(array).save(tmp_path / "tag.png")
    return str(tmp_path / "tag.png")


GREY = np.full((300, 400, 3), 100, np.uint8)


def test_defaults_are_the_papers(tag):
    x = Condition.parse(f"pillow-bilinear+logo:{tag}")(Image.fromarray(GREY), 224)
    changed = (x - 100 / 255).abs().amax(0) > 1e-3
    rows, cols = changed.nonzero().T
    assert (rows.max().item(), cols.min().item()) == (213, 10)  # 10 px from the bottom and the left
    assert abs(rows.max().item() - rows.min().item() + 1 - 22) <= 1  # 40 % of 224 is 90 wide, 22 high
    assert 44 <= cols.max().item() - 10 + 1 <= 47  # the visible half, its edge blended over a pixel or two
    assert torch.allclose(x[:, 205, 20], torch.tensor([1.0, 0.0, 0.0]))  # opaque: the logo's own colour
    assert torch.allclose(x[:, 205, 90], torch.full((3,), 100 / 255))  # transparent: the picture


@pytest.mark.parametrize(
    ("at", "box"),
    [
        ("bottom-left", (85, 5, 95, 45)),
        ("bottom-right", (85, 55, 95, 95)),
        ("top-left", (5, 5, 15, 45)),
        ("top-right", (5, 55, 15, 95)),
        ("top", (5, 30, 15, 70)),
        ("bottom", (85, 30, 95, 70)),
        ("left", (45, 5, 55, 45)),
        ("right", (45, 55, 55, 95)),
        ("center", (45, 30, 55, 70)),
    ],
)
def test_places(tag, at, box):
    assert Logo(tag, margin=5, at=at).box(100, 100) == box


def test_types_are_kept_and_half_transparency_mixes(tmp_path):
    Image.fromarray(np.full((4, 4, 4), (0, 255, 0, 128), np.uint8)).save(tmp_path / "half.png")
    logo = Logo(str(tmp_path / "half.png"), width=1, margin=0)
    out = logo.paste(np.full((8, 8, 3), 200, np.uint8))
    assert out.dtype == np.uint8
    assert np.abs(out.reshape(-1, 3).astype(int) - [100, 227, 100]).max() <= 1
    assert logo.paste(np.full((8, 8, 3), 0.5, np.float32)).dtype == np.float32


def test_without_transparency_the_whole_logo_is_pasted(tmp_path):
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "black.jpg")
    out = Logo(str(tmp_path / "black.jpg"), width=0.5, margin=0).paste(np.full((16, 16, 3), 255, np.uint8))
    assert (out[12:, :8] == 0).all()
    assert (out == 255).mean() == 1 - 32 / 256


@pytest.mark.parametrize("options", ["", ",width=0.25", ",margin=3,at=top-right", ",width=0.5,margin=0"])
def test_round_trip(tag, options):
    condition = Condition.parse(f"crop:0.5+opencv-area+logo:{tag}{options}+jpeg:80")
    assert str(condition) == f"crop:0.5+opencv-area+logo:{tag}{options}+jpeg:80"
    assert Condition.from_dict(condition.to_dict()) == condition
    assert hash(Condition.parse(str(condition))) == hash(condition)
    assert "the logo" in condition.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logo:", "needs a text, got nothing"),
        ("logo", "needs a text, got nothing"),
        ("logo:absent.png", "does not exist"),
        ("logo:{tag},width=2", "width needs a number above 0 to 1, got 2"),
        ("logo:{tag},width=wide", "not a number"),
        ("logo:{tag},margin=-1", "margin needs a whole number from 0 up, got -1"),
        ("logo:{tag},at=middle", "at needs one of"),
        ("logo:{tag},colour=red", "no option"),
        ("logo:{tag},margin=95", "larger than the picture of 100 × 100 px"),
        ("logo:{tag},width=1", "larger than the picture"),
        ("logo:{text}", "cannot be read"),
    ],
)
def test_bad_logos(tag, tmp_path, text, message):
    (tmp_path / "text.png").write_text("no image")
    text = text.format(tag=tag, text=tmp_path / "text.png")
    with pytest.raises(ConfigError, match=message):
        Condition.parse(f"opencv-area+{text}")(GREY, 100)


def test_a_tall_logo_is_larger_than_the_image(tmp_path):
    Image.fromarray(np.zeros((100, 10, 4), np.uint8)).save(tmp_path / "tall.png")
    with pytest.raises(ConfigError, match="larger than the picture"):
        Condition.parse(f"opencv-area+logo:{tmp_path / 'tall.png'}")(GREY, 64)


def test_crop_is_torchvisions_resize_then_centre_crop():
    from torchvision.transforms import functional as F

    rng = np.random.default_rng(0)
    smooth = rng.random((6, 8, 3)) * 255
    image = Image.fromarray(smooth.astype(np.uint8)).resize((400, 300), Image.Resampling.BICUBIC)
    ours = Condition.parse("crop:0.875+pillow-bilinear")(image, 224)
    theirs = F.to_tensor(F.center_crop(F.resize(image, 256), 224))
    assert (ours - theirs).abs().mean() < 2 / 255
    assert torch.equal(Condition.parse("crop:1+none")(GREY), torch.full((3, 300, 300), 100 / 255))


def test_crop_comes_first():
    with pytest.raises(ConfigError, match="crops after resizing"):
        Condition.parse("opencv-area+crop:0.5")
    with pytest.raises(ConfigError, match="crop"):
        Condition.parse("crop:0+opencv-area")
