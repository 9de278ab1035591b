"""The BiLRP picture: two inputs joined by curves, in the paper's scaling, alive where scripts run."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from pfungst.audit.similarity.result import SIMILARITY
from pfungst.report import text
from pfungst.report.images import data_uri
from pfungst.report.page import Block
from pfungst.similarity import line_strength, strongest

LINES = 60  # drawn at first and in print
_SIDE, _GAP = 100.0, 60.0  # of the pictures and between them
_LETTER, _SPACE, _DROP = 8.0, 14.0, 120.0  # of texts: width of a letter, between words, between the lines

Point = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PairPicture(Block):
    """Two inputs and the relevance between their components, as inline SVG and the numbers behind it."""

    template = "pair"
    title: str
    sides: Sequence[str]
    tags: Sequence[Sequence[str]]
    note: str
    picture: Markup
    size: tuple[float, float]
    reads: bool
    values: str
    points: str
    names: str
    columns: str
    scale: float
    unit: float
    lines: int = LINES


def image_pair(
    values: np.ndarray,
    pictures: Sequence[np.ndarray],
    grids: tuple[Sequence[int], Sequence[int]],
    similarity: float,
    title: str,
    sides: Sequence[str],
    tags: Sequence[Sequence[str]] = ((), ()),
    note: str = "",
) -> PairPicture:
    """Two images side by side.

    Args:
        values: (P, Q) BiLRP.
        pictures: (S, S, 3) uint8 each.
        grids: rows and columns of the patches of each side.
        similarity: what the values explain.
        title, sides, tags, note: words around it.
    """
    points = [_grid(grid, left) for grid, left in zip(grids, (0.0, _SIDE + _GAP), strict=True)]
    drawn = [
        Markup(
            '<image class="{}" x="{}" y="0" width="{}" height="{}" preserveAspectRatio="none" href="{}"/>'
        ).format("small" if picture.shape[0] <= 96 else "", left, _SIDE, _SIDE, data_uri(picture, side=320))
        for picture, left in zip(pictures, (0.0, _SIDE + _GAP), strict=True)
    ]
    size, words = (2 * _SIDE + _GAP, _SIDE), {"title": title, "sides": sides, "tags": tags, "note": note}
    columns = [grid[1] for grid in grids]
    return _picture(values, points, Markup("").join(drawn), size, similarity, columns, **words)


def token_pair(
    values: np.ndarray,
    tokens: tuple[Sequence[str], Sequence[str]],
    similarity: float,
    title: str,
    sides: Sequence[str],
    note: str = "",
) -> PairPicture:
    """Two lines of text, one above the other.

    Args:
        values: (P, Q) BiLRP.
        tokens: P and Q pieces of text.
        similarity: what the values explain.
        title, sides, note: words around it.
    """
    widths = [[max(2, len(t)) * _LETTER for t in side] for side in tokens]
    total = max(sum(w) + _SPACE * len(w) for w in widths)
    points, drawn = [], []
    for row, (side, width) in enumerate(zip(tokens, widths, strict=True)):
        x = (total - sum(width) - _SPACE * (len(width) - 1)) / 2
        y = 12 + row * _DROP
        mine: list[Point] = []
        for token, w in zip(side, width, strict=True):
            mine.append((round(x + w / 2, 1), y, w + 6, 22))
            drawn.append(Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(x + w / 2, y + 4.5, token))
            x += w + _SPACE
        points.append(mine)
    words = {"title": title, "sides": sides, "tags": ((), ()), "note": note}
    names, size = [list(side) for side in tokens], (total, _DROP + 24)
    return _picture(values, points, Markup("").join(drawn), size, similarity, [0, 0], names, **words)


def _grid(grid: Sequence[int], left: float) -> list[Point]:
    rows, cols = grid
    w, h = _SIDE / cols, _SIDE / rows
    return [
        (round(left + (c + 0.5) * w, 2), round((r + 0.5) * h, 2), round(w, 2), round(h, 2))
        for r in range(rows)
        for c in range(cols)
    ]


def _picture(
    values: np.ndarray,
    points: list[list[Point]],
    drawn: Markup,
    size: tuple[float, float],
    similarity: float,
    columns: Sequence[int],
    names: Sequence[Sequence[str]] = (),
    **words: Any,
) -> PairPicture:
    r = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    strength = line_strength(r)
    peak = max(float(r.abs().max()), 1e-30)
    reads = bool(names)
    lines = []
    for p, q, _ in reversed(strongest(r, LINES)):
        opacity = float(strength[p, q]) ** 2
        if opacity >= 0.003:
            way = curve(points[0][p], points[1][q], reads)
            tone = "supports" if r[p, q] > 0 else "contradicts"
            lines.append(Markup('<path class="{}" d="{}" opacity="{:.3f}"/>').format(tone, way, opacity))
    # Square roots in 8 bits: weak values keep three digits of what the eye can tell.
    packed = (np.sign(values) * np.sqrt(np.abs(values) / peak) * 127).round().astype(np.int8)
    return PairPicture(
        **words,
        picture=drawn + Markup('<g class="lines">') + Markup("").join(lines) + Markup("</g>"),
        size=size,
        reads=reads,
        values=base64.b64encode(packed.tobytes()).decode(),
        points=json.dumps(points, separators=(",", ":")),
        names=json.dumps(names, ensure_ascii=False),
        columns=json.dumps(list(columns)),
        scale=float(np.mean((values / peak).astype(np.float64) ** 4) ** 0.25),
        unit=peak / similarity if similarity else 0.0,
    )


def curve(a: Point, b: Point, reads: bool) -> str:
    """Path from one component to another: sideways between images, downwards between lines of text."""
    (x, y), (to_x, to_y) = a[:2], b[:2]
    if reads:
        y, to_y = y + 12, to_y - 12
        middle = (y + to_y) / 2
        return f"M{x:.1f} {y:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
    middle = (x + to_x) / 2
    return f"M{x:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"


def caption_of(similarity: float, bias_share: float, metric: str = "cosine") -> str:
    """What the similarity is and how much of it biases absorb."""
    value = text.ratio(similarity) if metric == "cosine" else text.number(similarity)
    return f"{SIMILARITY[metric]} {value}, biases absorb {text.percent(bias_share)}"
