"""The report in a real browser, from a file, with the network off."""

from pathlib import Path

import pytest

import report_factory
from pfungst.report import write

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Two categories and two detectors with names that are markup, very long, or not Latin."""
    folder = tmp_path_factory.mktemp("hostile")
    report_factory.make(folder, categories=2, models=2, examples=2, size=64, nasty=True)
    return write(folder)


def unfold(page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")


@pytest.mark.parametrize("width", [1400, 768, 480, 390])
def test_page_never_scrolls_sideways(visit, hostile, width):
    page = visit(hostile, width)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
             .filter(n => !n.closest('.scroll') && !n.closest('dialog') && n.getClientRects().length)
             .filter(n => n.getBoundingClientRect().right > innerWidth + 1)
             .map(n => n.tagName + '.' + n.getAttribute('class'))"""
    )
    assert outside == []


def test_names_that_are_markup_stay_text(visit, hostile):
    page = visit(hostile)
    assert page.evaluate("document.scripts.length") == 1
    assert page.locator("h1").inner_text() == "<script>alert('title')</script> parts"
    unfold(page)
    assert "<script>alert(1)</script>" in page.locator(".exhibit .id").first.inner_text()


def test_pictures_are_all_there(visit, hostile):
    page = visit(hostile)
    unfold(page)
    page.wait_for_function("[...document.images].every(i => i.complete)")
    assert page.evaluate("document.images.length") > 4
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0


def test_link_opens_what_is_folded(visit, hostile):
    page = visit(hostile)
    folded = page.evaluate("[...document.querySelectorAll('main details[id]:not([open])')].map(d => d.id)")
    assert folded
    page.evaluate("id => { location.hash = id; }", folded[-1])
    page.wait_for_function("id => document.getElementById(id).open", arg=folded[-1])
    assert page.evaluate("id => document.getElementById(id).checkVisibility()", folded[-1])


def test_pictures_enlarge_from_the_keyboard(visit, hostile):
    page = visit(hostile)
    unfold(page)
    tile = page.locator("button.tile").first
    tile.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("dialog.viewer")
    assert viewer.evaluate("d => d.open")
    first = viewer.locator(".label").inner_text()
    page.keyboard.press("ArrowRight")
    assert viewer.locator(".label").inner_text() != first
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog.viewer').open")
    assert page.evaluate("document.activeElement.matches('button.tile')")


def test_outlines_can_be_hidden_everywhere(visit, hostile):
    page = visit(hostile)
    unfold(page)
    assert page.locator(".exhibit .outline").first.is_visible()
    page.locator('[data-toggle="outlines"]').first.uncheck()
    assert page.locator(".exhibit .outline:visible").count() == 0
    assert page.locator('[data-toggle="outlines"]:checked').count() == 0


def test_text_can_be_read_in_light_and_dark(visit, hostile):
    """Contrast of text, small text and the verdict is at least 4.5 (WCAG AA)."""
    script = """() => {
      const style = getComputedStyle(document.body), canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
      const light = (name) => {
        canvas.fillStyle = style.getPropertyValue(name).trim(); canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
          .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const pairs = [['--ink', '--surface'], ['--muted', '--surface'], ['--muted', '--bg'], ['--muted', '--wash'],
        ['--original', '--surface'], ['--deployed', '--surface'], ['--mitigated', '--surface'],
        ['--right', '--surface'], ['--wrong', '--surface'], ['--wrong', '--wash'], ['--level', '--level-wash'], ['--ink', '--level-wash']];
      const levels = ['unfit', 'provenance', 'clever-hans', 'fragile', 'sound'], poor = [];
      for (const level of levels) {
        document.body.dataset.level = level;
        for (const [a, b] of pairs) {
          const [x, y] = [light(a), light(b)].sort((p, q) => q - p), contrast = (x + 0.05) / (y + 0.05);
          if (contrast < 4.5) poor.push(`${level} ${a} on ${b}: ${contrast.toFixed(2)}`);
        }
      }
      return poor;
    }"""
    for scheme in ("light", "dark"):
        page = visit(hostile, scheme=scheme)
        assert page.evaluate(script) == [], scheme


def test_print_shows_what_was_folded(visit, hostile):
    page = visit(hostile)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


@pytest.mark.slow
def test_large_audit_stays_in_bounds(visit, tmp_path):
    """15 categories and 4 detectors, and the size of 5 categories with 6 examples of 224 px."""
    report_factory.make(tmp_path / "wide", categories=15, models=4, examples=1, size=32)
    for width in (1400, 390):
        page = visit(write(tmp_path / "wide"), width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#categories details.level3").count() == 15
    report_factory.make(tmp_path / "deep", categories=5, models=1, examples=6, size=224)
    assert write(tmp_path / "deep").stat().st_size < 15_000_000
