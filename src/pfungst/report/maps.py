"""Maps of representations: one point per image, coloured by label, group or outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pfungst.report.page import Block, Strip

# Told apart with any colour vision for the first eight; beyond ten, groups share a grey.
COLOURS = (
    "#3f6fb5",
    "#d8791b",
    "#2f9e77",
    "#a8327a",
    "#c9a400",
    "#6a4fb0",
    "#4aa6c9",
    "#c0392b",
    "#7a8b3a",
    "#8c5a3c",
)
REST = "#98a2ad"
_WIDTH, _HEIGHT = 300.0, 230.0


@dataclass(frozen=True)
class Panel:
    """One colouring of the map."""

    title: str
    picture: Markup
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Map(Block):
    """The same points in several colourings, beside each other where there is room."""

    panels: Sequence[Panel]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Strips(Block):
    """Rows of pictures that enlarge on a click."""

    title: str
    caption: str
    strips: Sequence[Strip]


def panel(title: str, points: np.ndarray, names: np.ndarray) -> Panel:
    """The points coloured by name.

    Args:
        title: what the colours are.
        points: (N, 2).
        names: (N,) str.
    """
    counts = Counter(names.tolist())
    ranked = sorted(counts, key=lambda n: (-counts[n], n))
    coloured = sorted(ranked[: len(COLOURS)])
    colour = dict(zip(coloured, COLOURS, strict=False))
    low, high = points.min(0), points.max(0)
    span = np.maximum(high - low, 1e-9)
    xy = (points - low) / span * [_WIDTH - 8, _HEIGHT - 8] + 4
    radius = 2.6 if len(points) <= 500 else 1.8 if len(points) <= 1500 else 1.4
    # Rare groups are drawn last, so that they are not covered.
    order = sorted(range(len(names)), key=lambda i: -counts[names[i].item()])
    dots = "".join(
        f'<circle cx="{xy[i, 0]:.1f}" cy="{_HEIGHT - xy[i, 1]:.1f}" r="{radius}" '
        f'fill="{colour.get(names[i].item(), REST)}"/>'
        for i in order
    )
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        _WIDTH, _HEIGHT, f"Map coloured by {title}"
    )
    legend = [(f"{n} ({counts[n]})", colour[n]) for n in coloured]
    if len(ranked) > len(coloured):
        legend.append((f"{len(ranked) - len(coloured)} others", REST))
    return Panel(title, svg + Markup(dots) + Markup("</svg>"), legend)
