import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pfungst.audit.result import Interval
from pfungst.report import plots


def parse(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def words(svg: str) -> str:
    return " ".join("".join(t.itertext()) for t in parse(svg).iter() if t.tag.endswith("text"))


RNG = np.random.default_rng(0)
SCORES, DEFECT = RNG.normal(size=60), np.arange(60) % 2 == 0
HOSTILE = "<b>$x^2$</b> & co"


def drawings() -> dict[str, str]:
    cells = [Interval(value=0.9, low=0.8, high=0.95), Interval(value=0.4), None]
    sample = plots.Sample(HOSTILE, SCORES, DEFECT, 0.5)
    return {
        "dots": plots.dots([HOSTILE, "b", "c"], [plots.Panel("F1", {"original": cells})], HOSTILE),
        "spectrum": plots.spectrum([0, 3, 9, 64], [0.5, 0.3, 0.2], [0.8, 0.2, 0.0], [1, 0.9, 0.1], HOSTILE),
        "histograms": plots.histograms([sample], HOSTILE),
        "groups": plots.groups(sample, np.where(SCORES > 0, HOSTILE, "b"), HOSTILE),
        "scatter": plots.scatter([plots.Point(HOSTILE, 0.4, 0.9), plots.Point("b", 0.2, 0.8)], "x", "y", HOSTILE),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["dots", "spectrum", "histograms", "groups", "scatter"])
def test_charts_are_clean_svg_in_the_colours_of_the_page(name):
    svg = drawings()[name]
    root = parse(svg)
    assert root.get("aria-label") == HOSTILE
    assert "var(--" in svg
    assert "#a1b2" not in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "http" not in svg
    if name != "spectrum":
        assert HOSTILE in words(svg)


def test_definitions_of_two_charts_do_not_clash():
    ids = [{node.get("id") for node in parse(svg).iter() if node.get("id")} for svg in drawings().values()]
    assert all(not a & b for i, a in enumerate(ids) for b in ids[i + 1 :])


def test_sessions_are_in_natural_order():
    names = np.array([f"session {n}" for n in (10, 2, 1)] * 10)
    sample = plots.Sample("session", RNG.normal(size=30), np.zeros(30, bool), 0.0)
    text = words(plots.groups(sample, names, "x"))
    assert text.index("session 1 ") < text.index("session 2") < text.index("session 10")


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.array([1e-6, 1.0, 2.0, 1e6]), np.array([-3.0, -2.0, -1.0, 5.0])]
)
def test_scores_of_any_range_can_be_drawn(scores):
    defect = np.array([True, False, True, False])
    sample = plots.Sample("a", scores, defect, float(scores[1]))
    assert "<svg" in plots.histograms([sample], "x")
    assert "<svg" in plots.groups(sample, np.array(list("aabb")), "x")


def test_ticks_keep_all_their_digits():
    """Regression: numbers in texts were cut to two digits like those of paths, so 0.825 was 0.82 on an axis."""
    points = [plots.Point(n, x, y) for n, x, y in (("a", 0.1, 0.82), ("b", 0.28, 0.86), ("c", 0.54, 0.83))]
    svg = plots.scatter(points, "x", "y", "points", ceiling=1)
    ticks = [word for word in words(svg).split() if word.replace(".", "").isdecimal()]
    vertical = [float(t) for t in ticks if float(t) > 0.7]
    assert len(vertical) > 2
    np.testing.assert_allclose(np.diff(vertical), vertical[1] - vertical[0])
    assert "0.825" in ticks
