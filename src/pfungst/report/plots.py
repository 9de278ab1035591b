"""Charts as inline SVG whose colours are CSS variables of the page, so that they follow light and dark."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from pfungst.audit.result import Interval
from pfungst.files import digest
from pfungst.report.text import number, shorten

# Drawn with these colours, then replaced by var(--name).
_TOKENS = {
    name: f"#a1b2{index:02x}"
    for index, name in enumerate(
        ("ink", "muted", "line", "surface", "wash", "original", "deployed", "mitigated", "good", "defect")
    )
}
INK, MUTED, LINE, SURFACE = (_TOKENS[n] for n in ("ink", "muted", "line", "surface"))
MARKERS = {"original": "o", "deployed": "D", "mitigated": "s"}
SIZES = {"original": 6.0, "deployed": 5.2, "mitigated": 5.4}
MOSTLY = 0.5  # of a band's energy: with less kept it is shaded
_THRESHOLD: Any = {"color": INK, "lw": 1.4, "dashes": (3, 2)}
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pfungst",
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Panel:
    """One measure of a dot plot: per variant one interval (or None) for each row."""

    title: str
    series: Mapping[str, Sequence[Interval | None]]
    percent: bool = False
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Sample:
    """Scores of one detector on one test set, and its threshold.

    Attributes:
        scores: (N,) high = abnormal.
        defect: (N,) true where the image has a defect.
    """

    title: str
    scores: np.ndarray
    defect: np.ndarray
    threshold: float


@dataclass(frozen=True)
class Point:
    """One model in a scatter plot."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Plane:
    """A detector of points in the plane.

    Attributes:
        score: (N, 2) → (N,). limit: its threshold.
        inliers, outliers: (N, 2). marked: (outliers,) those to stand out.
    """

    title: str
    score: Callable[[np.ndarray], np.ndarray]
    limit: float
    inliers: np.ndarray
    outliers: np.ndarray
    marked: np.ndarray


@contextmanager
def _drawing() -> Iterator[None]:
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained", facecolor="none")


_CLEANED = (
    (r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", ""),
    (r'<g id="[^"]*"', "<g"),
    (r"font-family: [^;\"]*;? ?", ""),
    ("xlink:href", "href"),
    (r"\s*\n\s*", " "),
)


def _svg(figure: Figure, label: str, gap: float = 0.02) -> Markup:
    """The figure as SVG to put into HTML: no ids that clash, no style that leaks, no fonts of its own."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.02, h_pad=0.02, wspace=gap)
    FigureCanvasSVG(figure)
    engine.execute(figure)
    figure.set_layout_engine(None)  # done: else all is drawn once more for it
    buffer = io.StringIO()
    keys = ("Date", "Creator", "Format", "Type")
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(keys))
    svg = buffer.getvalue()
    svg = re.sub(
        r"<[^>]*>", lambda tag: re.sub(r"(?<=[\d ])(\d*\.\d{2})\d+", r"\1", tag[0]), svg
    )  # not in texts
    width, height = (float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())  # type: ignore[union-attr]
    svg = re.sub(r"^.*?<svg.*?>", "", svg, flags=re.S)
    for pattern, instead in _CLEANED:
        svg = re.sub(pattern, instead, svg, flags=re.S)
    prefix = "p" + digest(svg, length=8)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for name, colour in _TOKENS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" style="max-width: {1.15 * width:.0f}px">'
    ) + Markup(svg)


def _percent_axis(axis: matplotlib.axis.Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}\u202f%".replace("-", "−")))


def dots(rows: Sequence[str], panels: Sequence[Panel], label: str, width: float = 980) -> Markup:
    """Dot plot: a row per category or model, a panel per measure, a marker per variant, 95 % intervals."""
    with _drawing():
        height, stacked = 46 + 32 * len(rows), width < 500
        figure = _figure(width, height * (len(panels) if stacked else 1))
        shape = (len(panels), 1) if stacked else (1, len(panels))
        axes = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel)
            _rows(ax, [shorten(r, 16 if stacked else 24) for r in rows])
        return _svg(figure, label, gap=0.06)


def _draw_panel(ax: Axes, panel: Panel) -> None:
    names = [n for n in MARKERS if n in panel.series]
    offsets = np.linspace(-0.24, 0.24, len(names)) if len(names) > 1 else [0.0]
    for name, offset in zip(names, offsets, strict=True):
        for row, cell in enumerate(panel.series[name]):
            if cell is None or not np.isfinite(cell.value):
                continue
            y, colour = row + offset, _TOKENS[name]
            if cell.low is not None and cell.high is not None:
                bar: Any = {"lw": 2, "alpha": 0.45, "solid_capstyle": "round"}
                ax.plot([cell.low, cell.high], [y, y], color=colour, **bar)
            ax.plot(cell.value, y, MARKERS[name], ms=SIZES[name], color=colour, mew=0)
    ax.set_title(panel.title)
    low, high = panel.span
    ax.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if panel.percent:
        _percent_axis(ax.xaxis)


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """Named rows from top to bottom, lines between them."""
    for row in range(1, len(names)):
        ax.axhline(row - 0.5, color=LINE, lw=0.6)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)


def spectrum(
    periods: Sequence[float],
    original: Sequence[float],
    mitigated: Sequence[float] | None,
    kept: Sequence[float],
    label: str,
    width: float = 430,
) -> Markup:
    """Share of relevance per frequency band over the energy that the deployed condition keeps there.

    Args:
        periods: (B,) of the waves of each band, in pixels of the images, from low to high frequencies.
        original, mitigated: (B,) shares of relevance.
        kept: (B,) energy of deployed relative to original images; bands below one half are shaded.
    """
    with _drawing():
        figure = _figure(width, 300)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
        bands = np.arange(len(original))
        for ax in (top, bottom):
            for band in bands[np.asarray(kept) < MOSTLY]:
                ax.axvspan(band - 0.5, band + 0.5, color=_TOKENS["wash"], lw=0, zorder=0)
            ax.grid(axis="x", visible=False)
            _percent_axis(ax.yaxis)
        if mitigated is None:
            top.bar(bands, original, 0.72, color=_TOKENS["original"], lw=0)
        else:
            top.bar(bands - 0.2, original, 0.38, color=_TOKENS["original"], lw=0)
            top.bar(bands + 0.2, mitigated, 0.38, color=_TOKENS["mitigated"], lw=0)
        top.yaxis.set_major_locator(MaxNLocator(4))
        top.set_title("Share of relevance")
        bottom.plot(bands, kept, color=_TOKENS["deployed"], lw=2, marker="D", ms=3.6, mew=0)
        bottom.set_ylim(0, 1.08 * max(1.0, float(np.nanmax(kept))))
        bottom.yaxis.set_major_locator(MaxNLocator(2))
        bottom.set_title("Energy kept by the deployed condition")
        ticks = list(range(0, len(bands), max(1, round(len(bands) / 5))))
        bottom.set_xticks(ticks, [number(periods[t]) for t in ticks])
        bottom.set_xlim(-0.6, len(bands) - 0.4)
        bottom.set_xlabel("low  ←  frequency: mean period of the band in pixels  →  high")
        return _svg(figure, label)


def histograms(samples: Sequence[Sample], label: str, width: float = 430) -> Markup:
    """Anomaly scores, defects above and good images below the axis, with each detector's threshold.

    Samples that share a threshold share the axis of scores (one detector, two conditions).
    """
    with _drawing():
        figure = _figure(width, 40 + 108 * len(samples))
        axes = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
        for ax, sample in zip(axes, samples, strict=True):
            alike = [s for s in samples if s.threshold == sample.threshold]
            values = np.concatenate([[*s.scores, s.threshold] for s in alike])
            log = _score_axis(ax, values)
            low, high = np.nanmin(values), np.nanmax(values)
            if high <= low:
                low, high = low - 0.5, high + 0.5
            edges = np.geomspace(low, high, 37) if log else np.linspace(low, high, 37)
            good, _ = np.histogram(sample.scores[~sample.defect], edges)
            bad, _ = np.histogram(sample.scores[sample.defect], edges)
            ax.stairs(bad, edges, fill=True, color=_TOKENS["defect"], lw=0)
            ax.stairs(-good, edges, fill=True, color=_TOKENS["good"], lw=0)
            ax.axhline(0, color=MUTED, lw=0.8)
            ax.axvline(sample.threshold, **_THRESHOLD)
            reach = 1.12 * max(1, bad.max(initial=0), good.max(initial=0))
            ax.set_ylim(-reach, reach)
            ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{abs(v):.0f}"))
            ax.grid(visible=False)
            ax.spines["left"].set_visible(False)
            ax.set_title(sample.title)
        axes[len(samples) // 2].set_ylabel("number of images")
        axes[-1].set_xlabel("anomaly score")
        return _svg(figure, label)


def _score_axis(ax: Axes, values: np.ndarray) -> bool:
    """Write the axis of scores, logarithmic where they spread widely; returns whether it is."""
    values = values[np.isfinite(values)]
    log = bool(values.min() > 0 and values.max() / np.median(values) > 12)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    return log


def groups(sample: Sample, names: np.ndarray, label: str, width: float = 640, seed: int = 0) -> Markup:
    """Every image's score by group, good and defect apart, with quartile boxes and the threshold.

    Args:
        sample: the scores; its title names the groups.
        names: (N,) group of each image.
        seed: of the vertical jitter.
    """
    order = sorted(set(names.tolist()), key=_natural)
    jitter = np.random.default_rng(seed).uniform(-0.13, 0.13, len(names))
    known = np.isfinite(sample.scores)
    with _drawing():
        figure = _figure(width, 70 + 46 * len(order))
        ax = figure.subplots()
        for row, name in enumerate(order):
            for flag, offset, marker, token in ((False, -0.2, "o", "good"), (True, 0.2, "D", "defect")):
                here = (names == name) & (sample.defect == flag) & known
                values, y = sample.scores[here], row + offset
                ax.plot(values, y + jitter[here], marker, ms=4.2, color=_TOKENS[token], alpha=0.6, mew=0)
                if len(values) >= 5:
                    q1, median, q3 = np.percentile(values, [25, 50, 75])
                    line: Any = {"color": INK, "solid_capstyle": "butt"}
                    ax.plot([q1, q3], [y, y], lw=1.6, **line)
                    ax.plot([median, median], [y - 0.15, y + 0.15], lw=2.2, **line)
        ax.axvline(sample.threshold, **_THRESHOLD)
        _rows(ax, [shorten(str(n), 24) for n in order])
        _score_axis(ax, sample.scores)
        ax.set_xlabel("anomaly score")
        ax.set_ylabel(shorten(sample.title, 24))
        return _svg(figure, label)


def scatter(
    points: Sequence[Point],
    x: str,
    y: str,
    label: str,
    arrows: Sequence[tuple[int, int]] = (),
    width: float = 520,
    ceiling: float = math.inf,
) -> Markup:
    """Models as named points, for example AUROC against the Clever Hans score (paper 2006.10609, figure 6).

    Args:
        points: what to draw.
        x, y: names of the axes, with direction.
        arrows: pairs of indices of points to join, from before to after.
        ceiling: largest value that `y` can take.
    """
    with _drawing():
        figure = _figure(width, 0.68 * width)
        ax = figure.subplots()
        for start, stop in arrows:
            a, b = points[start], points[stop]
            style = {"arrowstyle": "->", "color": MUTED, "lw": 1.1, "shrinkA": 6, "shrinkB": 6}
            ax.annotate("", (b.x, b.y), (a.x, a.y), arrowprops=style)
        targets = {stop for _, stop in arrows}
        for index, point in enumerate(points):
            variant = "mitigated" if index in targets else "original"
            ax.plot(point.x, point.y, MARKERS[variant], ms=8, color=_TOKENS[variant], mew=0)
        xs, ys = np.array([p.x for p in points]), np.array([p.y for p in points])
        for values, limit in ((xs, ax.set_xlim), (ys, ax.set_ylim)):
            margin = max(0.04, 0.18 * float(np.ptp(values)))
            limit(values.min() - margin, values.max() + margin)
        low, high = ax.get_ylim()
        ax.set_ylim(low, min(high, ceiling + 0.12 * (ceiling - low)))
        _name_points(ax, points, targets)
        ax.set(xlabel=x, ylabel=y)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, label)


def planes(panels: Sequence[Plane], label: str, width: float = 980) -> Markup:
    """Level lines of detectors of two dimensions over the points, the threshold dashed."""
    with _drawing():
        stacked = width < 500
        shape = (len(panels), 1) if stacked else (1, len(panels))
        figure = _figure(width, 220 * len(panels) if stacked else 220)
        axes = figure.subplots(*shape, squeeze=False).ravel()
        every = np.concatenate([np.concatenate([p.inliers, p.outliers]) for p in panels])
        low, high = every.min(0) - 0.2, every.max(0) + 0.2
        x, y = np.meshgrid(*(np.linspace(a, b, 60) for a, b in zip(low, high, strict=True)))
        for ax, panel in zip(axes, panels, strict=True):
            z = panel.score(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape)
            ax.contour(x, y, z, levels=6, colors=[MUTED], linewidths=0.6)
            ax.contour(x, y, z, levels=[panel.limit], colors=[INK], linewidths=1.3, linestyles="dashed")
            groups = ((panel.inliers, "good", 3.0), (panel.outliers[~panel.marked], "original", 6.0))
            for points, colour, size in (*groups, (panel.outliers[panel.marked], "defect", 6.0)):
                ax.plot(*points.T, "o", ms=size, color=_TOKENS[colour], mew=0)
            ax.set_aspect("equal")
            ax.grid(visible=False)
            ax.set(title=panel.title, xlabel="first dimension", ylabel="second dimension")
        return _svg(figure, label)


def _name_points(ax: Axes, points: Sequence[Point], silent: set[int]) -> None:
    """Names beside their points, growing towards the middle; of two that would overlap the upper moves up."""
    middle = sum(ax.get_xlim()) / 2
    line, per_letter = 14.0, 6.5  # of the font below, in points
    to_points = 72 / ax.figure.dpi
    taken: list[tuple[float, float, float]] = []  # left, right, bottom
    shown = [p for i, p in enumerate(points) if i not in silent]
    for point in sorted(shown, key=lambda p: p.y):
        name, right = shorten(point.name, 24), point.x <= middle
        x, y = (float(v) * to_points for v in ax.transData.transform((point.x, point.y)))
        span = len(name) * per_letter
        left, bottom = (x - 4 if right else x + 4 - span), y + 9
        for other in sorted(taken, key=lambda box: box[2]):
            if left < other[1] and other[0] < left + span and abs(bottom - other[2]) < line:
                bottom = other[2] + line
        taken.append((left, left + span, bottom))
        shift, side = (-4 if right else 4, bottom - y), "left" if right else "right"
        style: Any = {"textcoords": "offset points", "va": "bottom", "fontsize": 11, "color": INK}
        ax.annotate(name, (point.x, point.y), shift, ha=side, **style)


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by which session 2 comes before session 10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", str(name)) if p]
