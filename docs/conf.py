"""How the documentation site is made; ``make docs`` runs it. No page asks another host for anything."""

import html
import os
import re
import warnings
from pathlib import Path
from urllib.parse import unquote

from sphinx.errors import ExtensionError
from sphinx_gallery.sorting import FileNameSortKey

import pfungst

ROOT = Path(__file__).parents[1]
PAGES = {"start": "README.md", "results": "benchmarks/RESULTS.md", "changelog": "CHANGELOG.md"}

project = "Pfungst"
author = "The Pfungst authors"
project_copyright = "2026, The Pfungst authors"
version = release = pfungst.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "**/sg_execution_times.rst",
    "sg_execution_times.rst",
    "gallery/**/*.ipynb",
    "gallery/**/*.py",
    "gallery/**/*.zip",
]
nitpicky = False
suppress_warnings = ["myst.header", "config.cache"]

myst_heading_anchors = 3
autodoc_typehints = "none"  # shapes and units stand in the text
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
default_role = "literal"  # what stands in single backticks

html_theme = "furo"
html_title = f"Pfungst {version}"
html_static_path = ["_static"]
html_extra_path = [str(p) for p in (ROOT / "docs" / "samples", ROOT / "build" / "samples") if p.is_dir()]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples" / "gallery"),
    "gallery_dirs": "gallery",
    "filename_pattern": os.environ.get("PFUNGST_GALLERY", r"\.py$"),
    "ignore_pattern": r"/_",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 10,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,  # its page would ask other hosts for scripts
    "image_scrapers": ("matplotlib",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "reset_modules": ("matplotlib",),
    "thumbnail_size": (400, 280),
}


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text with shapes such as (N, *sample) and values such as |R|, not markup."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.+?``|`.+?`)", line)
        lines[i] = "".join(
            p if p.startswith("`") else re.sub(r"(?<!\\)[*|]|(?<=\w)_(?=\W|$)", r"\\\g<0>", p) for p in parts
        )


def ours(app, what, name, obj, skip, options):
    """Leave out what base classes of other libraries bring."""
    module = getattr(obj, "__module__", None) or getattr(getattr(obj, "fget", None), "__module__", None)
    if type(obj).__name__ == "_tuplegetter" or obj.__doc__ == "See above.":  # the class's docstring says it
        return True
    if re.fullmatch(r"set_\w+_request", name) or (module or "pfungst").split(".")[0] in (
        "sklearn",
        "torch",
        "pydantic",
    ):
        return True
    return None


def pages(app, docname, source):
    """Three pages are files of the repository; links between them and here are links between pages."""
    if docname in PAGES:
        source[0] = (ROOT / PAGES[docname]).read_text(encoding="utf-8").replace("](docs/", "](")
    source[0] = re.sub(r"\]\((\.\./)?benchmarks/RESULTS\.md", "](results.md", source[0])


def alone(app, exception):
    """Refuse a site of which a page asks another host for anything when it is read."""
    asks = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=[\"'](?:https?:)?//|<link\b[^>]*stylesheet[^>]*href=[\"'](?:https?:)?//"
    )
    found = [p for p in Path(app.outdir).rglob("*.html") if asks.search(p.read_text(encoding="utf-8"))]
    if exception is None and found:
        raise ExtensionError(f"these pages ask other hosts: {', '.join(str(p) for p in found)}")


def links(app, exception):
    """Refuse a site with a link, picture or anchor inside it that leads nowhere."""
    if exception is not None:
        return
    texts = {p: p.read_text(encoding="utf-8") for p in Path(app.outdir).rglob("*.html")}
    anchors = {p: set(re.findall(r"\b(?:id|name)=[\"']([^\"']+)", text)) for p, text in texts.items()}
    lost = []
    for page, text in texts.items():
        for link in set(re.findall(r"<(?:a|img|link|script)\b[^>]*?\b(?:href|src)=[\"']([^\"']+)", text)):
            if re.match(r"[a-z]+:|//", link):
                continue
            path, _, anchor = html.unescape(unquote(link)).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page.resolve()
            if not target.exists() or (
                anchor and target.suffix == ".html" and anchor not in anchors.get(target, {anchor})
            ):
                lost.append(f"{page.name} → {link}")
    if lost:
        raise ExtensionError("links that lead nowhere: " + ", ".join(sorted(lost)[:20]))


def setup(app):
    """Tie the functions above to the events of Sphinx."""
    app.connect("source-read", pages)
    app.connect("autodoc-process-docstring", plain, priority=900)
    app.connect("autodoc-skip-member", ours)
    app.connect("build-finished", alone)
    app.connect("build-finished", links)
