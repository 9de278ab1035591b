import numpy as np
import pytest
import torch
from PIL import Image

from pfungst.conditions import Condition, Watermark
from pfungst.errors import ConfigError

BLACK = np.zeros((224, 224, 3), np.uint8)


def test_it_is_translucent_and_lies_across_the_middle():
    x = Condition.parse("none+watermark:STOCK,opacity=0.4")(BLACK)
    touched = x.amax(0) > 0.02
    rows, columns = touched.nonzero().T
    assert float(x.max()) == pytest.approx(0.4, abs=0.01)
    assert abs(int(columns.max() - columns.min()) + 1 - 0.9 * 224) <= 4
    assert abs(float(rows.float().mean()) - 111.5) < 8
    top, _, bottom, _ = Watermark("STOCK").box(224, 224)
    assert not touched[:top].any()
    assert not touched[bottom:].any()
    white = Condition.parse("none+watermark:STOCK,opacity=0.4")(255 - BLACK)
    assert torch.equal(white, torch.ones(3, 224, 224))


def test_it_counts_as_what_a_condition_pastes():
    condition = Condition.parse("pillow-bilinear+watermark:(c) 2024,width=0.3,at=bottom-right,margin=4")
    assert condition.logo_box(224) == Watermark("(c) 2024", width=0.3, margin=4, at="bottom-right").box(
        224, 224
    )
    assert 'the text "(c) 2024" at the bottom-right' in condition.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("watermark", "needs a text, got nothing"),
        ("watermark:\u6377\u5f84", "the font lacks '\u6377', '\u5f84'"),
        ("watermark:   ", "cannot be written|needs a text"),
        ("watermark:A,font=none.ttf", "the font none.ttf cannot be read"),
        ("watermark:A,opacity=2", "opacity needs a number from 0 to 1, got 2"),
        ("watermark:I,width=1", "larger than the picture"),
    ],
)
def test_bad_watermarks(text, message):
    with pytest.raises(ConfigError, match=message):
        Condition.parse(f"none+{text}")(Image.fromarray(BLACK))
