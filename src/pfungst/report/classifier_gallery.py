"""The pictures of one class's components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.audit.classifier.result import ClassEntry, Component, Shown
from pfungst.errors import DataError
from pfungst.report import images, text
from pfungst.report.page import Exhibit, Gallery, Strip, Tile

_BAR, _UPPER, _GROUND, _LINE = (127, 138, 150), (189, 77, 5), (240, 239, 234), (60, 66, 74)


@dataclass(frozen=True)
class Budget:
    """How much of a class is put into the page, so that it opens quickly with any number of classes.

    Attributes:
        components: per class.
        images: per component.
        side: longest side of a picture in pixels.
        quality: of its compression.
    """

    components: int
    images: int
    side: int
    quality: int

    @classmethod
    def of(cls, classes: int) -> Budget:
        if classes <= 12:
            return cls(10, 5, 176, 85)
        if classes <= 100:
            return cls(5, 5, 128, 78)
        return cls(2, 3, 112, 62)


def class_id(entry: ClassEntry) -> str:
    return f"class-{entry.index}"


def class_note(entry: ClassEntry, short: bool = False) -> str:
    """What stays visible of a class when it is closed; short, only its index where that is not its name."""
    words = [] if entry.name == str(entry.index) else [f"class {entry.index}"]
    if short:
        return "".join(words)
    suspects = sum(c.suspect for c in entry.components)
    words.append(text.plural(entry.n_train, "training image"))
    if entry.judged is not None:
        words.append(f"{len(entry.judged)} judged spurious")
    if suspects:
        words.append(f"{suspects} suspicious")
    return " · ".join(words)


def component_gallery(entry: ClassEntry, folder: Path, budget: Budget) -> Gallery:
    """The most harmful-looking components of a class, and all that were switched off.

    Raises:
        DataError: a picture is missing or damaged.
    """
    chosen = entry.components[: budget.components]
    chosen += [c for c in entry.components[budget.components :] if c.component in entry.fixed]
    caption = (
        "Histogram: α of all training images of the class; orange is the upper group of the best split in "
        "two. Heatmaps: GradCAM of α, each on its own scale."
    )
    return Gallery(
        title=f"{len(chosen)} of {entry.ranked} components",
        caption=caption,
        exhibits=[_exhibit(entry, c, rank, folder, budget) for rank, c in enumerate(chosen, 1)],
        outlines=False,
    )


def _exhibit(entry: ClassEntry, component: Component, rank: int, folder: Path, budget: Budget) -> Exhibit:
    strips = [_spread(entry, component)]
    if component.visual is not None:
        strips.append(_visual(entry, component, component.visual, folder, budget))
    shown = component.images[: budget.images]
    what = f"{entry.name}, component {component.component}"
    tiles = []
    for number, image in enumerate(shown, 1):
        label = f"α {text.number(image.alpha)} · p {text.ratio(image.confidence)}"
        tiles.append(
            _tile(folder, image.file, label, f"{what}: training image {number} of highest α", budget)
        )
        if image.gradcam is not None:
            alt = f"{what}: heatmap of α on training image {number}"
            tiles.append(_tile(folder, image.gradcam, image.id.rsplit("/", 1)[-1], alt, budget))
    explained = len(tiles) == 2 * len(shown)
    title = (
        "Training images of highest α, and where in them it comes from"
        if explained
        else "Training images of highest α"
    )
    strips.append(Strip(title, tiles, pairs=explained))
    said = {"suspicious": component.suspect, "switched off": component.component in entry.fixed}
    tags = [word for word, true in said.items() if true]
    if entry.judged is not None:
        tags.append("judged spurious" if component.component in entry.judged else "not judged spurious")
    return Exhibit(
        name=f"Component {component.component}",
        reason=_reason(component, rank, entry.ranked),
        tags=tags,
        strips=strips,
    )


def _reason(component: Component, rank: int, ranked: int) -> str:
    words = [f"Rank {rank} of {ranked}, harm {text.ratio(component.harm)}"]
    words.append(
        f"α is {text.number(component.gap)} logits higher in {text.percent(component.share)} of the class's "
        f"images than in the rest (concentration {text.ratio(component.concentration)})"
    )
    if component.visual is not None:
        words.append(f"its visualisation has confidence {text.ratio(component.visual.confidence)}")
    if component.off_object is not None:
        words.append(f"{text.percent(component.off_object)} of its heatmap lies off the object")
    return "; ".join(words) + "."


def _visual(entry: ClassEntry, component: Component, visual: Shown, folder: Path, budget: Budget) -> Strip:
    what = f"{entry.name}, component {component.component}"
    label = f"α {text.number(visual.alpha)} · p {text.ratio(visual.confidence)}"
    tiles = [_tile(folder, visual.file, label, f"{what}: feature visualisation", budget)]
    if visual.gradcam is not None:
        tiles.append(
            _tile(folder, visual.gradcam, "heatmap", f"{what}: heatmap of α on the visualisation", budget)
        )
    return Strip("Feature visualisation", tiles)


def _spread(entry: ClassEntry, component: Component) -> Strip:
    low, high = component.limits
    label = f"{text.number(low)} … {text.number(high)}"
    alt = (
        f"{entry.name}, component {component.component}: histogram of α over the training images, "
        f"{text.percent(component.share)} of them above {text.number(component.split)}"
    )
    picture = _histogram(component)
    size = (picture.shape[1], picture.shape[0])
    return Strip("α in the class", [Tile(label, alt, images.data_uri(picture), size=size)])


def _histogram(component: Component, side: int = 96) -> np.ndarray:
    """Bars of α's histogram on square roots, so that small groups are seen, (side, side, 3) uint8."""
    picture = np.full((side, side, 3), _GROUND, np.uint8)
    counts = np.sqrt(np.asarray(component.histogram, dtype=float))
    low, high = component.limits
    if not len(counts) or counts.max() == 0 or high <= low:
        return picture
    edges = np.linspace(low, high, len(counts) + 1)
    width = side // len(counts)
    left = (side - width * len(counts)) // 2
    for i, count in enumerate(counts):
        top = round((side - 10) * count / counts.max())
        colour = _UPPER if (edges[i] + edges[i + 1]) / 2 > component.split else _BAR
        start = left + i * width
        picture[side - 2 - top : side - 2, start : start + max(1, width - 1)] = colour
    picture[side - 2 :, left : side - left] = _LINE
    return picture


def _tile(folder: Path, file: str, label: str, alt: str, budget: Budget) -> Tile:
    path = folder / file
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "run the audit again") from None
    src = images.data_uri(pixels, side=budget.side, quality=budget.quality)
    return Tile(label, alt, src, size=(pixels.shape[1], pixels.shape[0]))
