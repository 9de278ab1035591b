"""The picture of a pair in a real browser: pointer, slider, keyboard."""

import os
from pathlib import Path

import numpy as np
import pytest

from pair_factory import pair, standalone
from pfungst.report.pairs import token_pair

CHROMIUM = Path(os.environ.get("PFUNGST_CHROMIUM", "/usr/bin/chromium"))
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser, none at {CHROMIUM} (set PFUNGST_CHROMIUM)")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    words = token_pair(
        np.array([[3, 0.1, 0], [0, -2, 0.2]], np.float32),
        (["not", "safe"], ["is", "un", "safe"]),
        1.3,
        "words",
        ("a", "b"),
    )
    path = standalone(tmp_path_factory.mktemp("page"), pair(size=6)[1], words)
    problems: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1000, "height": 900}, offline=True)
        page = context.new_page()
        page.on("console", lambda m: problems.append(m.text))
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert problems == []


def lines(figure):
    return figure.locator(".lines path").count()


def test_pointing_at_a_patch_shows_its_matches(opened):
    figure = opened.locator("figure.pair").first
    figure.scroll_into_view_if_needed()
    before = lines(figure)
    box = figure.locator("svg.joined").bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.03, box["y"] + box["height"] * 0.08)
    assert lines(figure) == 8
    said = figure.locator(".said").inner_text()
    assert "First, row 1, column 1" in said
    values = pair(size=6)[0]
    best = int(np.abs(values[0]).argmax())
    assert f"matched most with row {best // 6 + 1}, column {best % 6 + 1}" in said
    opened.mouse.move(5, 5)
    assert lines(figure) == before


def test_the_slider_changes_the_number_of_lines(opened):
    figure = opened.locator("figure.pair").first
    slider = figure.locator("input[type=range]")
    slider.fill("5")
    assert lines(figure) <= 5
    slider.fill("0")
    assert lines(figure) == 0
    slider.fill("60")
    assert lines(figure) > 0


def test_the_keyboard_walks_over_patches_and_words(opened):
    figure = opened.locator("figure.pair").first
    figure.locator("input[type=range]").focus()
    opened.keyboard.press("Tab")
    opened.keyboard.press("ArrowRight")
    first = figure.locator(".said").inner_text()
    opened.keyboard.press("ArrowDown")
    assert figure.locator(".said").inner_text() != first
    opened.keyboard.press("Tab")
    assert figure.locator(".said").inner_text().startswith("Second, row")
    opened.keyboard.press("Escape")
    assert figure.locator(".marks rect").count() == 0
    words = opened.locator("figure.pair.reads")
    words.locator(".side").first.focus()
    opened.keyboard.press("ArrowLeft")
    assert "“not”" in words.locator(".said").inner_text()


@pytest.mark.parametrize("width", [1400, 480])
def test_nothing_reaches_out_of_the_page(opened, width):
    opened.set_viewport_size({"width": width, "height": 900})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
