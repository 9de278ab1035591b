"""The pictures of one class's components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfungst.audit.classifier.result import ClassEntry, Component, Shown
from pfungst.report import images, text
from pfungst.report.page import Exhibit, Gallery, Strip, Tile

_SAID = {"spurious": "Spurious", "core": "The class itself", "unclear": "Not proven"}


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
    """Where a class stands on the page."""
    return f"class-{entry.index}"


def class_note(entry: ClassEntry, short: bool = False) -> str:
    """What stays visible of a class when it is closed; short, only its index where that is not its name."""
    words = [] if entry.name == str(entry.index) else [f"class {entry.index}"]
    if short:
        return "".join(words)
    words.append(text.plural(entry.n_train, "training image"))
    if entry.judged is not None:
        words.append(f"{len(entry.judged)} judged spurious")
    if entry.proven:
        words.append(f"{len(entry.proven)} spurious")
    return " · ".join(words)


def component_gallery(entry: ClassEntry, folder: Path, budget: Budget) -> Gallery:
    """The first components of a class, and all that were switched off.

    Raises:
        DataError: a picture is missing or damaged.
    """
    chosen = entry.components[: budget.components]
    chosen += [c for c in entry.components[budget.components :] if c.component in entry.fixed]
    caption = (
        "Histogram: α of all training images of the class, heights by the root of the count. Outlined: where "
        "most of the positive relevance of α is, by integrated gradients from the blurred image."
    )
    return Gallery(
        title=f"{len(chosen)} of {entry.ranked} components",
        caption=caption,
        exhibits=[_exhibit(entry, c, folder, budget) for c in chosen],
        outlines=False,
    )


def _exhibit(entry: ClassEntry, component: Component, folder: Path, budget: Budget) -> Exhibit:
    strips = [_spread(entry, component)]
    if component.visual is not None:
        strips.append(_visual(entry, component, component.visual, folder, budget))
    shown = component.images[: budget.images]
    what = f"{entry.name}, component {component.component}"
    tiles = []
    for number, image in enumerate(shown, 1):
        label = f"α {text.number(image.alpha)} · p {text.ratio(image.confidence)}"
        alt = f"{what}: training image {number}"
        tiles.append(_tile(folder, image.file, label, f"{alt} of highest α", budget))
        if image.region is not None:
            alt += " with the region outlined that α comes from"
            tiles.append(_tile(folder, image.region, image.id.rsplit("/", 1)[-1], alt, budget))
    explained = len(tiles) == 2 * len(shown)
    title = "Training images of highest α" + ", below with the region that it comes from" * explained
    strips.append(Strip(title, tiles, pairs=explained))
    found = component.tested
    tags = ["not tested" if found is None else str(found.word)]
    if component.suspect and not component.spurious:
        tags = ["suspect"]
    tags += ["switched off"] * (component.component in entry.fixed)
    if entry.judged is not None:
        tags.append("judged spurious" if component.component in entry.judged else "not judged spurious")
    name = f"Component {component.component}"
    return Exhibit(name=name, reason=_reason(component), tags=tags, strips=strips)


def _reason(component: Component) -> str:
    words = [f"Adds {text.number(component.adds)} logits where it is strongest"]
    if component.visual is not None:
        words.append(f"its visualisation has confidence {text.ratio(component.visual.confidence)}")
    if component.off_object is not None:
        words.append(f"{text.percent(component.off_object)} of its relevance lies off the object")
    found = component.tested
    if found is None:
        return f"{'; '.join(words)}. Too few images for interventions."
    need, *others = found.necessity
    models = ""
    if others:
        falls = ", ".join(text.number(i.value) for i in others)
        models = f" ({text.plural(len(others), 'other model')}: {falls})"
    what, put = ("region", "pasted elsewhere") if found.how == "region" else ("look", "given to other images")
    return (
        f"{'; '.join(words)}. {_SAID[found.word]}: {found.reason}. In {found.images} {found.on} images: "
        f"without the {what} {text.between(need, text.number)} nats of evidence are lost{models}; {put} it "
        f"carries {text.between(found.sufficiency[0], text.percent)} of the class."
    )


def _visual(entry: ClassEntry, component: Component, visual: Shown, folder: Path, budget: Budget) -> Strip:
    what = f"{entry.name}, component {component.component}"
    label = f"α {text.number(visual.alpha)} · p {text.ratio(visual.confidence)}"
    tiles = [_tile(folder, visual.file, label, f"{what}: feature visualisation", budget)]
    return Strip("Feature visualisation", tiles)


def _spread(entry: ClassEntry, component: Component) -> Strip:
    low, high = component.limits
    label = f"{text.number(low)} … {text.number(high)} logits"
    alt = f"{entry.name}, component {component.component}: histogram of α over the training images"
    picture = images.bars(np.sqrt(np.asarray(component.histogram, dtype=float)))  # small groups are seen
    return Strip("α in the class", [Tile(label, alt, picture, size=(200, 200))])


def _tile(folder: Path, file: str, label: str, alt: str, budget: Budget) -> Tile:
    return images.file_tile(folder / file, label, alt, "run the audit again", budget.side, budget.quality)
