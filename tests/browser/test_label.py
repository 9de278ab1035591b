"""The labelling app in Debian's chromium, from the first screen to the export."""

import csv
import io
import json
import re
import shutil
import sqlite3

import pytest
from sklearn.metrics import cohen_kappa_score

from label_sample import component_task, image_task, local_server, server

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a link in a context of its own; a request that leaves 127.0.0.1, or an error in a page, fails the test."""
    wrong, contexts = [], []

    def open_(link, expected=(), **options):
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)

        def look(request):
            if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
                wrong.append(request.url)

        context.on("request", look)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda m: (
                wrong.append(m.text) if m.type == "error" and not any(e in m.text for e in expected) else None
            ),
        )
        page.goto(link)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def settled(page):
    page.wait_for_selector("body[data-state=ready]")
    page.wait_for_timeout(280)  # the app ignores presses right after a new item


def press(page, key):
    settled(page)
    with page.expect_response(lambda r: r.url.endswith("/do")):
        page.keyboard.press(key)
    page.wait_for_selector("body[data-state=ready]")


def click(page, label):
    settled(page)
    with page.expect_response(lambda r: r.url.endswith("/do")):
        page.get_by_role("button", name=re.compile(f"^{label}")).click()
    page.wait_for_selector("body[data-state=ready]")


def shown(page):
    """Number of the item on the screen."""
    return int(page.locator("input[name=item]").get_attribute("value"))


def done(page):
    return page.locator("#screen .progress span").inner_text()


def export(page, name):
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    return download.value.path().read_bytes()


def no_overflow(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_components_by_two_labellers_at_once_until_the_export(tmp_path, visit):
    task = component_task(tmp_path, 6)
    wanted = {"anna": ["s", "s", "n", "s", "n", "u"], "ben": ["s", "s", "n", "n", "s", "u"]}
    words = {"s": "Spurious", "n": "Not spurious", "u": "Unsure"}
    values = {"s": "spurious", "n": "not", "u": "unsure"}
    with local_server(tmp_path, "anna", "ben") as running:
        anna, ben = visit(running.links["anna"]), visit(running.links["ben"])
        assert "golden retriever" in anna.content() or "goose" in anna.content() or "coho" in anna.content()
        assert anna.locator("figure").count() == 6
        assert anna.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        orders = {"anna": [], "ben": []}
        for step in range(6):
            orders["anna"].append(shown(anna))
            press(anna, wanted["anna"][shown(anna)])
            orders["ben"].append(shown(ben))
            click(ben, words[wanted["ben"][shown(ben)]])
            if step == 1:
                # Undo brings the same item back; a reload keeps the place.
                press(anna, "z")
                assert shown(anna) == orders["anna"][-1]
                anna.reload()
                assert shown(anna) == orders["anna"][-1]
                press(anna, wanted["anna"][shown(anna)])
                ben.reload()
            if step == 2:
                # What is skipped comes last.
                skipped = shown(ben)
                click(ben, "Skip")
                assert shown(ben) != skipped
                assert "1 skipped" in done(ben)
                click(ben, "Undo")
                assert shown(ben) == skipped
        assert anna.get_by_role("heading", name="Done. Thank you, anna.").is_visible()
        assert sorted(orders["anna"]) == sorted(orders["ben"]) == list(range(6))
        assert orders["anna"] != orders["ben"]

        judge = visit(running.links["coordinator"])
        first = [values[a] for a in wanted["anna"]]
        second = [values[a] for a in wanted["ben"]]
        row = judge.locator("tr", has_text="anna, ben").locator("td").all_inner_texts()
        assert row == ["6", "67 %", f"{cohen_kappa_score(first, second):.2f}"]
        judge.get_by_role("link", name="Settle 2 disagreements").click()
        seen = set()
        for _ in range(2):
            seen.add(shown(judge))
            assert {"Spurious", "Not spurious"} == {
                t.split(": ")[1] for t in judge.locator(".others li").all_inner_texts()
            }
            press(judge, "s" if shown(judge) == 3 else "n")
        assert seen == {3, 4}
        assert judge.get_by_role("heading", name="All disagreements are settled.").is_visible()
        judge.get_by_role("link", name="Overview and export").click()
        components = json.loads(export(judge, "components.json"))
        assert components["model"] == task.model
        assert components["components"] == {"99": [1], "207": [0, 3]}
        rows = list(csv.DictReader(io.StringIO(export(judge, "labels.csv").decode())))
        assert [r["answer"] for r in rows if r["person"] == "anna"] == first
        assert len(json.loads(export(judge, "labels.json"))["events"]) == 12 + 2 + 2 + 2
        assert export(judge, "labels.parquet")[:4] == b"PAR1"


def test_images_on_a_phone_by_keyboard_alone(tmp_path, visit):
    image_task(tmp_path, 4)
    with local_server(tmp_path, "anna") as running:
        page = visit(running.links["anna"], viewport={"width": 390, "height": 844})
        given = {}
        for label, value in [("In", "in"), ("Out", "out"), ("Trash", "trash"), ("Out", "out")]:
            assert no_overflow(page)
            settled(page)
            item = shown(page)
            # Tab to the button, as those do who cannot use single keys.
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.innerText ?? ''").startswith(label):
                    break
            focused = page.locator(":focus")
            assert focused.inner_text().startswith(label)
            assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
            assert focused.evaluate("e => parseFloat(getComputedStyle(e).outlineWidth)") >= 2
            box = focused.bounding_box()
            assert box["height"] >= 44
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            with page.expect_response(lambda r: r.url.endswith("/do")):
                page.keyboard.press("Enter")
            page.wait_for_selector("body[data-state=ready]")
            given[item] = value
        assert no_overflow(page)
        page.get_by_role("link", name="Results and export").press("Enter")
        page.wait_for_selector("text=labels.csv")
        assert no_overflow(page)
        rows = list(csv.DictReader(io.StringIO(export(page, "labels.csv").decode())))
        assert [r["final"] for r in rows] == [given[i] for i in range(4)]


@pytest.mark.parametrize("width", [1400, 768, 390])
def test_screens_fit_and_have_names_for_screen_readers(tmp_path, visit, width):
    component_task(tmp_path, 2, classes={7: "a class with a name that is long, " * 6})
    long = "Wolfeschlegelsteinhausenbergerdorff-Wolfeschlegelsteinhausen"
    with local_server(tmp_path, long, "ben") as running:
        options = {"viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}
        for link in running.links.values():
            page = visit(link, **options)
            assert no_overflow(page)
            unnamed = page.evaluate(
                "[...document.querySelectorAll('button, a, img, progress, input:not([type=hidden])')].filter(e => "
                "!(e.innerText || e.alt || e.getAttribute('aria-label') || e.labels?.length)).map(e => e.outerHTML)"
            )
            assert unnamed == []
            assert page.evaluate(
                "[...document.querySelectorAll('*')].every(e => getComputedStyle(e).transitionDuration === '0s')"
            )
            assert page.locator("h1").count() == 1
            assert page.locator("main").count() == 1


def test_the_next_images_are_fetched_ahead_and_news_are_announced(tmp_path, visit):
    component_task(tmp_path, 3)
    with local_server(tmp_path, "anna") as running:
        page = visit(running.links["anna"])
        page.wait_for_load_state("networkidle")
        fetched = set(
            page.evaluate("performance.getEntriesByType('resource').map(e => new URL(e.name).pathname)")
        )
        press(page, "n")
        images = page.evaluate("[...document.images].map(i => new URL(i.src).pathname)")
        assert len(images) == 12
        assert set(images) <= fetched
        assert re.match(r"Stored: not. 1 of 3 done. Now class", page.locator("#live").inner_text())
        assert page.locator("#live").get_attribute("aria-live") == "polite"
        assert page.evaluate("document.activeElement.id") == "question"


def test_keys(tmp_path, visit):
    component_task(tmp_path, 3)
    with local_server(tmp_path, "anna") as running:
        page = visit(running.links["anna"])
        settled(page)
        # Enlarging: number, arrows, Escape; answers are asleep meanwhile.
        page.keyboard.press("2")
        assert page.locator("#zoom .caption").inner_text().startswith("Training image 1 (3 of 12)")
        page.keyboard.press("ArrowRight")
        assert page.locator("#zoom .caption").inner_text().startswith("Where it comes from: Training image 1")
        page.keyboard.press("s")
        page.keyboard.press("Escape")
        assert not page.locator("#zoom").is_visible()
        # The list of keys, where single keys can be switched off (WCAG 2.1.4).
        page.keyboard.press("?")
        page.get_by_label("Answer with single keys").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("s")
        page.keyboard.press("Control+s")
        page.wait_for_timeout(200)
        assert done(page) == "0 of 3"
        page.get_by_role("button", name="Keys").click()
        page.get_by_label("Answer with single keys").check()
        page.keyboard.press("Escape")
        # A second press, while the first is on its way or right after the next item has appeared, answers nothing.
        settled(page)
        page.evaluate(
            """() => {
              const press = () => document.dispatchEvent(new KeyboardEvent("keydown", { key: "s", bubbles: true }));
              document.addEventListener("htmx:afterSwap", press, { once: true });
              press();
              press();
            }"""
        )
        page.wait_for_selector(".progress b:text-is('1')")
        settled(page)
        assert done(page) == "1 of 3"
        assert page.locator("#question").is_visible()


def test_two_tabs_on_the_same_item(tmp_path, visit):
    component_task(tmp_path, 3)
    with local_server(tmp_path, "anna") as running:
        first = visit(running.links["anna"])
        second = first.context.new_page()
        second.goto(first.url)
        assert shown(first) == shown(second)
        press(first, "s")
        press(second, "n")
        assert "already handled in another tab" in second.locator(".notice").inner_text()
        assert shown(first) == shown(second)
    with sqlite3.connect(tmp_path / "labels.sqlite") as db:
        assert db.execute("SELECT answer FROM events").fetchall() == [("spurious",)]


def test_a_server_that_goes_and_comes_back(tmp_path, visit):
    component_task(tmp_path, 3)
    with server(tmp_path, "anna") as running:
        port = int(running.base.rsplit(":", 1)[1])
        page = visit(running.links["anna"], expected=["ERR_CONNECTION", "503", "htmx:"])
        settled(page)
        running.process.kill()
        running.process.wait()
        page.keyboard.press("s")
        page.wait_for_selector("#message >> text=cannot be reached")
        item = shown(page)
    with server(tmp_path, "anna", port=port):
        assert shown(page) == item
        blocker = sqlite3.connect(tmp_path / "labels.sqlite")
        blocker.execute("BEGIN IMMEDIATE")
        press(page, "s")
        assert "locked by another program" in page.locator("#message").inner_text()
        assert shown(page) == item
        blocker.rollback()
        blocker.close()
        press(page, "s")
        assert done(page) == "1 of 3"
        assert page.locator("#message").inner_text() == ""


def test_an_invalid_link_says_so(tmp_path, visit):
    component_task(tmp_path, 1)
    with local_server(tmp_path, "anna") as running:
        page = visit(running.base + "/enter/wrong", expected=["401"])
        assert "not valid" in page.locator("main").inner_text()
