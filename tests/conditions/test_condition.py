import dataclasses
import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from pfungst.conditions import RESIZERS, Condition
from pfungst.conditions.step import Range, Resize
from pfungst.errors import ConfigError, DataError
from pfungst.registry import CONDITIONS

PIXELS = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)


def to_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(2, 0, 1))).float() / 255


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("opencv-nearest", cv2.INTER_NEAREST),
        ("opencv-bilinear", cv2.INTER_LINEAR),
        ("opencv-cubic", cv2.INTER_CUBIC),
        ("opencv-area", cv2.INTER_AREA),
    ],
)
def test_opencv_resizers_are_opencvs(name, flag):
    expected = to_tensor(cv2.resize(PIXELS, (40, 40), interpolation=flag))
    assert torch.equal(Condition.parse(name)(PHOTO, 40), expected)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pillow_resizers_are_pillows(name):
    expected = to_tensor(PHOTO.resize((40, 40), Image.Resampling[name.upper()]))
    assert torch.equal(Condition.parse(f"pillow-{name}")(PHOTO, 40), expected)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_torch_resizers_are_torchvisions(name, antialias):
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    expected = resize(to_tensor(PIXELS), [40, 40], InterpolationMode(name), antialias=antialias)
    got = Condition.parse(f"torch-{name}" + "-antialias" * antialias)(PHOTO, 40)
    torch.testing.assert_close(got, expected.clamp(0, 1), atol=1e-6, rtol=0)


def test_antialiasing_lowers_the_variance_of_noise_and_nearest_keeps_it():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    full = to_tensor(np.asarray(noise)).std()
    for name, resizer in RESIZERS.items():
        if name != "none":
            share = float(Condition.parse(name)(noise, 64).std() / full)
            assert (share < 0.4) == resizer.antialias, (name, share)


def test_jpeg_is_pillows():
    small = PHOTO.resize((40, 40), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=30)
    expected = to_tensor(np.asarray(Image.open(buffer)))
    assert torch.equal(Condition.parse("pillow-bilinear+jpeg:30")(PHOTO, 40), expected)


def test_a_step_before_the_resizer_acts_on_the_original_resolution():
    buffer = io.BytesIO()
    PHOTO.save(buffer, "JPEG", quality=30)
    expected = to_tensor(Image.open(buffer).resize((40, 40), Image.Resampling.BILINEAR))
    assert torch.equal(Condition.parse("jpeg:30+pillow-bilinear")(PHOTO, 40), expected)


def test_blur_agrees_with_scipy():
    from scipy.ndimage import gaussian_filter

    got = Condition.parse("none+blur:1.5")(PHOTO)
    expected = gaussian_filter(PIXELS / 255, (1.5, 1.5, 0), mode="mirror")
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, atol=2e-3)


def test_sharpening_agrees_with_pillow_up_to_its_approximation():
    smooth = PHOTO.filter(ImageFilter.GaussianBlur(3))
    got = Condition.parse("none+sharpen:1")(smooth)
    expected = to_tensor(
        np.asarray(smooth.filter(ImageFilter.UnsharpMask(radius=1, percent=100, threshold=0)))
    )
    assert (got - expected).abs().mean() < 0.004
    assert got.std() > to_tensor(np.asarray(smooth)).std()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0, 0.4, 1, 1.7])
def test_tones_agree_with_pillow(name, theirs, factor):
    expected = to_tensor(np.asarray(theirs(PHOTO).enhance(factor)))
    got = Condition.parse(f"none+{name}:{factor}")(PHOTO)
    assert (got - expected).abs().max() <= (1 + abs(1 - factor)) / 255  # Pillow rounds the grey too


def test_noise_has_its_strength_and_follows_the_key():
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    c = Condition.parse("none+noise:0.05")
    a, b = c(grey, key="a"), c(grey, key="b")
    assert torch.equal(a, c(grey, key="a"))
    assert not torch.equal(a, b)
    assert not torch.equal(a, c(grey, key="a", seed=1))
    assert abs(float(a.std()) - 0.05) < 0.001
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02


def test_salt_and_pepper_changes_its_share_of_pixels():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    x = Condition.parse("none+saltpepper:0.1")(grey)
    salt, pepper = (x == 1).all(0), (x == 0).all(0)
    assert abs(float(salt.float().mean()) - 0.05) < 0.006
    assert abs(float(pepper.float().mean()) - 0.05) < 0.006
    assert torch.equal(salt | pepper, (x - 128 / 255).abs().amax(0) > 1e-6)


@pytest.mark.parametrize("levels", [2, 5, 16])
def test_quantising_leaves_so_many_levels(levels):
    x = Condition.parse(f"none+quantize:{levels}")(PHOTO)
    torch.testing.assert_close(x.unique(), torch.linspace(0, 1, levels))
    assert (x - to_tensor(PIXELS)).abs().max() <= 0.5 / (levels - 1) + 1e-6


def test_dithering_keeps_the_mean_where_quantising_does_not():
    ramp = np.full((64, 64, 3), (40, 90, 200), np.uint8)
    plain = Condition.parse("none+quantize:2")(Image.fromarray(ramp)).mean((1, 2))
    dithered = Condition.parse("none+dither:2")(Image.fromarray(ramp))
    assert set(dithered.unique().tolist()) == {0.0, 1.0}
    assert plain.tolist() == [0, 0, 1]
    torch.testing.assert_close(dithered.mean((1, 2)), torch.tensor([40, 90, 200]) / 255, atol=0.02, rtol=0)


def test_no_size_keeps_the_size():
    for name in RESIZERS:
        assert torch.equal(Condition.parse(name)(PHOTO), to_tensor(PIXELS))


def test_none_refuses_another_size():
    with pytest.raises(DataError, match="131 × 97"):
        Condition.parse("none")(PHOTO, 40)


def values(allowed: Range):
    if allowed.whole:
        return st.integers(int(allowed.low), int(min(allowed.high, 1000)))
    return st.floats(allowed.low, min(allowed.high, 1e6), exclude_min=allowed.above)


NUMERIC = {  # the steps of one number
    name: (cls, fields[0].metadata["allowed"])
    for name, cls in CONDITIONS.items()
    if len(fields := dataclasses.fields(cls)) == 1 and isinstance(fields[0].metadata["allowed"], Range)
}
steps = st.one_of(*[st.builds(cls, values(allowed)) for cls, allowed in NUMERIC.values()])
later_steps = steps.filter(lambda step: not step.crops)  # a crop comes before the resizer


@given(
    before=st.lists(steps, max_size=2),
    resizer=st.sampled_from(sorted(RESIZERS)),
    after=st.lists(later_steps, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_text_and_dictionary_read_back(before, resizer, after):
    c = Condition((*before, Resize(resizer), *after), name="deployed")
    assert Condition.parse(str(c)) == c
    assert Condition.from_dict(c.to_dict()) == c
    assert Condition.from_dict(c.to_dict()).name == "deployed"
    assert str(Condition.parse(str(c))) == str(c)
    assert hash(Condition.parse(str(c))) == hash(c)
    assert c.describe()


@given(text=st.lists(later_steps, max_size=3), size=st.integers(4, 24))
@settings(deadline=None, max_examples=40)
def test_every_chain_stays_in_range(text, size):
    x = Condition((Resize("torch-bicubic"), *text))(PHOTO, size)
    assert x.shape == (3, size, size)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


def test_whitespace_case_and_instances_are_accepted():
    c = Condition.parse(" Pillow-Bilinear + JPEG:50 ")
    assert str(c) == "pillow-bilinear+jpeg:50"
    assert Condition.parse(c) is c
    assert Condition.parse(c, name="new").name == "new"
    assert Condition.parse(c.to_dict()) == c
    assert c.antialias
    assert not Condition.parse("opencv-nearest").antialias


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pilow-bilinear", "did you mean 'pillow-bilinear'"),
        ("opencv-nearst+jpeg:5", "did you mean 'opencv-nearest'"),
        ("none+jpg:50", "did you mean 'jpeg'"),
        ("jpeg:50", "exactly one resizer, got none"),
        ("none+opencv-nearest", "exactly one resizer, got none, opencv-nearest"),
        ("none+jpeg", "needs a whole number from 1 to 100, got nothing"),
        ("none+jpeg:0", "got 0"),
        ("none+jpeg:50.5", "got 50.5"),
        ("none+noise:nan", "got nan"),
        ("none+noise:-1", "got -1"),
        ("none+saltpepper:1.5", "from 0 to 1"),
        ("none+jpeg:high", "is not a number"),
        ("none+jpeg:none", "got None"),
        ("none+jpeg:50,size=3", "is no option"),
        ("none+logo:a.png,at=middle", "at needs one of bottom-left"),
        ("nowhere.py:gamma:2+none", "there is no file"),
        ("opencv-nearest:3", "takes no value"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(ConfigError, match=message):
        Condition.parse(text)


def test_a_bad_dictionary_is_refused():
    with pytest.raises(ConfigError, match="unknown keys resize"):
        Condition.from_dict({"resize": "none", "steps": []})
    with pytest.raises(ConfigError, match="'steps' is missing"):
        Condition.from_dict({"name": "x"})
