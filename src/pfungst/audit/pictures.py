"""Pictures of components: training images, the regions that α comes from, feature visualisations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

from pfungst.files import digest, whole
from pfungst.relevance.colours import overlay

_LINE = (255, 64, 0)
_WIDTH, _FONT = 640, 16  # of pictures of texts, in pixels


def outlined(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 with the edge of a region (H, W) drawn just inside it, and dark round that."""
    inside = region > 0
    width = max(1, round(max(image.shape[:2]) / 96))
    edge = inside & ~binary_erosion(inside, iterations=width)
    around = binary_dilation(inside, iterations=width) & ~inside
    picture = image.copy()
    picture[around] = picture[around] // 3
    picture[edge] = _LINE
    return picture


def plotted(series: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """A series (C, T) as lines over time, (H, W, 3) uint8, channels below each other; the region (1, T) that
    was changed is shaded and its line drawn in the colour of outlines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    channels, length = series.shape
    height = 1.0 + 0.8 * channels
    figure = Figure((2.8, height), dpi=180)
    figure.subplots_adjust(0.2, 0.42 / height, 0.98, 1 - 0.12 / height)
    canvas, line, steps = FigureCanvasAgg(figure), "#ff4000", np.arange(length)
    for c, axes in enumerate(figure.subplots(channels, 1, sharex=True, squeeze=False)[:, 0]):
        axes.plot(steps, series[c], color="#2f4f6f", lw=1.1)
        if region is not None and region.any():
            inside = region.reshape(-1) > 0
            axes.plot(steps, np.where(inside, series[c], np.nan), color=line, lw=1.4)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]])))
            for start, stop in edges.reshape(-1, 2):
                axes.axvspan(start - 0.5, stop - 0.5, color=line, alpha=0.15, lw=0)
        axes.set_ylabel("value" if channels == 1 else f"value {c + 1}", fontsize=8)
        axes.locator_params(nbins=4)
        axes.ticklabel_format(scilimits=(-2, 4))
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(-0.5, length - 0.5)
    figure.axes[-1].set_xlabel("time step", fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class PictureFolder:
    """Writes pictures into ``images/`` of an audit's folder; the same picture once."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder, folder / "images"
        self.folder.mkdir(parents=True, exist_ok=True)

    def photo(self, image: np.ndarray, id_: str) -> str:
        """A training image (H, W, 3) uint8, named by its identifier."""
        name = digest(id_, length=20)
        return self._write(image, f"photo-{name}")

    def region(self, image: np.ndarray, region: np.ndarray, name: str) -> str:
        """An image with a region outlined."""
        return self._write(outlined(image, region), name)

    def text(self, words: Sequence[tuple[str, float, bool]], name: str) -> str:
        """A text: of words (word, relevance from −1 to 1, changed), coloured, outlined where changed."""
        font, height, boxes = ImageFont.load_default(_FONT), round(1.7 * _FONT), []
        x, y = float(_FONT), _FONT // 2
        for word, *_ in words:
            width = font.getlength(word)
            if x + width > _WIDTH - _FONT and x > _FONT:
                x, y = float(_FONT), y + height
            boxes.append((x - 2, y, min(x + width + 2, _WIDTH - 1), y + height - 4))
            x += width + _FONT // 3
        canvas = Image.new("RGB", (_WIDTH, y + height + _FONT // 2), "white")
        draw = ImageDraw.Draw(canvas)
        for (word, relevance, changed), box in zip(words, boxes, strict=True):
            colour = tuple(
                overlay(np.array([[relevance]]), np.full((1, 1, 3), 255, np.uint8), 1.6)[0, 0].tolist()
            )
            draw.rectangle(box, colour, _LINE if changed else None, 2)
            draw.text((box[0] + 2, box[1] + 1), word, "black", font)
        return self._write(np.asarray(canvas), name, exact=True)

    def visual(self, image: np.ndarray, name: str) -> str:
        """A feature visualisation, kept exactly."""
        return self._write(image, name, exact=True)

    def tidy(self, keep: set[str]) -> None:
        """Remove our pictures of an earlier result in this folder."""
        for pattern in ("photo-*", "class-*-component-*"):
            for file in self.folder.glob(pattern):
                if file.relative_to(self.root).as_posix() not in keep:
                    file.unlink()

    def _write(self, image: np.ndarray, name: str, exact: bool = False) -> str:
        exact = exact or max(image.shape[:2]) <= 96
        target = self.folder / f"{name}.{'png' if exact else 'jpg'}"
        with whole(target) as part:
            Image.fromarray(image).save(part, "PNG" if exact else "JPEG", quality=90)
        return target.relative_to(self.root).as_posix()
