"""From the folder of a result to its ``report.html``."""

from __future__ import annotations

import importlib
from pathlib import Path

from pfungst.audit.result import Result, load
from pfungst.errors import DataError
from pfungst.files import write as write_text
from pfungst.report.page import Page, render

FILE = "report.html"

# The page of each kind of result: a module with ``page(result, folder) -> Page``, imported when needed.
PAGES = {
    "anomaly": "pfungst.report.anomaly",
    "similarity": "pfungst.report.similarity",
    "classifier": "pfungst.report.classifier",
    "discovery": "pfungst.report.discovery",
    "comparison": "pfungst.report.comparison",
    "watch": "pfungst.report.watch",
    "models": "pfungst.report.models",
}


def build(folder: str | Path, result: Result | None = None) -> Page:
    """The page of a result, not yet HTML.

    Args:
        folder: where ``result.json`` and its arrays are.
        result: the result, where it is at hand; read from `folder` otherwise.

    Raises:
        DataError: there is no result, its arrays are missing or damaged, or its kind has no page.
    """
    folder = Path(folder)
    folder = folder if folder.is_dir() else folder.parent
    result = load(folder) if result is None else result
    if result.kind not in PAGES:
        raise DataError(
            f"no report is known for results of kind {result.kind!r}",
            f"known kinds: {', '.join(sorted(PAGES))}",
        )
    page: Page = importlib.import_module(PAGES[result.kind]).page(result, folder)
    return page


def write(folder: str | Path, result: Result | None = None) -> Path:
    """Write ``report.html`` into the folder of a result, whole or not at all.

    Args:
        folder: where ``result.json`` and its arrays are.
        result: the result, where it is at hand; read from `folder` otherwise.

    Returns:
        The path of the page.

    Raises:
        DataError: see :func:`build`; also when the folder cannot be written.
    """
    html = render(build(folder, result))
    root = Path(folder)
    target = (root if root.is_dir() else root.parent) / FILE
    write_text(target, html)
    return target
