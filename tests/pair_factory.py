"""A picture of a pair, and a page that holds nothing else."""

from __future__ import annotations

import numpy as np

from pfungst.audit.result import Verdict
from pfungst.report.page import Page, Section, render
from pfungst.report.pairs import image_pair


def pair(size=4, seed=0, title="pair of <a>"):
    values = np.random.default_rng(seed).standard_t(2, (size**2, size**2)).astype(np.float32)
    pictures = (np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 200, np.uint8))
    grid = [size, size]
    return values, image_pair(values, pictures, (grid, grid), float(values.sum()), title, ("left", "right"))


def standalone(folder, *blocks):
    """A page that holds some blocks and nothing else."""
    section = Section(id="pairs", title="Pairs", blocks=blocks)
    whole = Page(kicker="k", title="t", verdict=Verdict(level="sound", headline="h"), sections=[section])
    target = folder / "page.html"
    target.write_text(render(whole), encoding="utf-8")
    return target
