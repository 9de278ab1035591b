"""Digits from two hospitals, one of which prints its name on the pictures: a made-to-measure Clever Hans.

scikit-learn's real handwritten digits; the tag goes with one class in training, as burnt-in text went with
COVID-19 and a logo with garbage trucks in the main paper.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pfungst.data.item import Item
from pfungst.data.items import ImageSet

TAGGED, PLAIN = "hospital A", "hospital B"


def tag_image(text: str = "H-A", height: int = 8) -> Image.Image:
    """The tag: black letters on an amber label, RGBA, fit for the condition `logo`."""
    font = ImageFont.load_default(size=height * 4)
    left, top, right, bottom = font.getbbox(text)
    label = Image.new("RGBA", (int(right - left) + 12, int(bottom - top) + 12), (255, 210, 0, 255))
    ImageDraw.Draw(label).text((6 - left, 6 - top), text, fill=(0, 0, 0, 255), font=font)
    return label.resize((round(label.width * height / label.height), height), Image.Resampling.BOX)


def _picture(pixels: np.ndarray, size: int, tag: Image.Image | None) -> Image.Image:
    grey = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
    picture = grey.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
    if tag is not None:
        picture.paste(tag, (1, size - tag.height - 1), tag)
    return picture


def tagged_digits(
    tagged_class: int = 8,
    rate: float = 0.9,
    elsewhere: float = 0.02,
    size: int = 32,
    test_share: float = 0.4,
    seed: int = 0,
) -> ImageSet:
    """Digits 0–9 (label "0" … "9"), a group `source`, and a tag on every picture of hospital A.

    Args:
        tagged_class: the digit that mostly comes from hospital A.
        rate: share of its pictures from there, in training and test.
        elsewhere: share of the other digits' pictures from there.
        size: of the pictures in pixels.
        test_share: share of test images.
        seed: of source and split.
    """
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    source, split = rng.random(len(digits)), rng.random(len(digits))
    tag = tag_image(height=max(4, size // 5))
    items = []
    for i, digit in enumerate(digits):
        tagged = bool(source[i] < (rate if digit == tagged_class else elsewhere))
        picture = partial(_picture, pixels[i].reshape(8, 8), size, tag if tagged else None)
        part, groups = "test" if split[i] < test_share else "train", {"source": TAGGED if tagged else PLAIN}
        items.append(Item(f"digit-{i:04d}", picture, str(digit), split=part, groups=groups))
    return ImageSet("tagged digits", items)


def parting_digits(seed: int = 0) -> ImageSet:
    """In training the tag is on 95 % of the eights and on nothing else; of the test images half of the eights
    and 30 % of the other digits have it, so that tag and class part."""
    train = tagged_digits(rate=0.95, elsewhere=0.0, seed=seed)
    test = tagged_digits(rate=0.5, elsewhere=0.3, seed=seed)
    items = [a if a.split == "train" else b for a, b in zip(train.items, test.items, strict=True)]
    return ImageSet(train.name, items)
