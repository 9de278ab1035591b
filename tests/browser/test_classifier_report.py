"""The classifier's page in a real browser: a thousand classes, the keyboard, a phone."""

import pytest

from classifier_factory import SIZE, make, many
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.run import run
from pfungst.report import write

pytestmark = pytest.mark.browser
CLASSES = 1000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("classifier")
    data = make(root / "data")
    result = run(
        ClassifierConfig.build(
            model=f"{data}/toy.py:biased", train=data / "train", val=data / "val", spurious=data / "spurious",
            size=SIZE, steps=2, n_components=4, candidates=4, shown=2, out=root / "out", device="cpu",
        )
    )  # fmt: skip
    return root, result


@pytest.fixture(scope="module")
def small(folders):
    root, result = folders
    return write(root / "out", result)


@pytest.fixture(scope="module")
def large(folders):
    root, result = folders
    return write(root / "large", many(result, root / "large", CLASSES))


@pytest.mark.parametrize("width", [1400, 480, 390])
def test_pages_never_scroll_sideways(visit, small, large, width):
    for path in (small, large):
        page = visit(path, width)
        page.evaluate(
            "[...document.querySelectorAll('#components > details')].slice(0, 5).forEach(d => { d.open = true; })"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_thousand_classes_wait_until_they_are_opened(visit, large):
    assert large.stat().st_size < 60_000_000
    page = visit(large)
    assert page.evaluate("document.images.length") == 0
    page.locator("#class-777 > summary").evaluate("s => { s.scrollIntoView(); s.click(); }")
    page.wait_for_function("document.querySelectorAll('#class-777 img').length > 4")
    assert page.evaluate("document.images.length") == page.evaluate(
        "document.querySelectorAll('#class-777 img').length"
    )


def test_a_class_is_found_and_opened_from_the_keyboard(visit, large):
    page = visit(large)
    box = page.locator("#components .finder [type=search]")
    box.focus()
    page.keyboard.type("class 777")
    said = page.locator("#components .finder output")
    assert said.inner_text() == "1 of 1,000 classes"
    assert page.locator("#components > details:visible").count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('class-777').open")
    assert page.evaluate("document.activeElement.closest('details').id") == "class-777"
    box.fill("")
    assert said.inner_text() == "1,000 classes"


def test_only_suspicious_classes_can_be_shown(visit, large):
    page = visit(large)
    page.locator("#components [data-flag]").check()
    left = page.locator("#components > details:not([hidden])").count()
    marked = page.evaluate(
        "[...document.querySelectorAll('#components > details')].filter(d => d.querySelector('summary').textContent.match(/· [0-9]+ (judged )?spurious/)).length"
    )
    assert 0 < left == marked < CLASSES


def test_the_table_leads_to_the_pictures_of_a_class(visit, large):
    page = visit(large)
    box = page.locator("#classes .finder [type=search]")
    box.fill("class 500")
    assert page.locator("#classes tbody:visible").count() == 1
    page.locator("#classes tbody:visible th a").click()
    page.wait_for_function("document.getElementById('class-500').open")
    assert page.locator("#class-500").is_visible()


def test_heatmaps_lie_below_their_images(visit, small):
    for width, below in ((1400, True), (390, False)):
        page = visit(small, width)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        photo, heat = page.locator(".pairs").first.locator(".tile").all()[:2]
        one, two = photo.bounding_box(), heat.bounding_box()
        assert one is not None
        assert two is not None
        assert (one["x"] == two["x"] and two["y"] > one["y"]) == below
        assert one["width"] == pytest.approx(two["width"], abs=1)
