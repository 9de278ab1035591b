"""A browser with the network off; pages that leave it or go wrong fail the test."""

import os
from pathlib import Path

import pytest

CHROMIUM = Path(os.environ.get("PFUNGST_CHROMIUM", "/usr/bin/chromium"))


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"needs a browser, none at {CHROMIUM} (set PFUNGST_CHROMIUM)")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page and fails afterwards on anything that left it or went wrong in it."""
    problems: list[str] = []
    contexts = []

    def go(path: Path, width: int = 1400, scheme: str = "light", media: str | None = None):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url == path.as_uri() or r.url.startswith("data:") else problems.append(f"request {r.url}"))  # fmt: skip
        page.on("console", lambda m: problems.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: problems.append(f"error {e}"))
        page.on("dialog", lambda d: (problems.append(f"dialog {d.message}"), d.dismiss()))
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert problems == []
