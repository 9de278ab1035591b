"""What classifiers answer to images with only a feature: the three most likely classes before and after
SpuFix; whether the feature extends its class or is shared (003, figures 2, 4, 12, 16, 21, 22)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.prepare import Given, Study, load_audited
from pfungst.audit.classifier.result import ClassEntry, ClassifierResult
from pfungst.audit.images import Labelled, colour
from pfungst.audit.mended import FOLDER
from pfungst.audit.result import Interval
from pfungst.errors import ConfigError
from pfungst.measure.proportions import wilson
from pfungst.papers.classifiers import audit
from pfungst.papers.made import Made, Numbers, Wish, picture, singles
from pfungst.report import text
from pfungst.report.page import Block, Details, Exhibit, Gallery, Strip, Tile
from pfungst.spurious import SpuFix
from pfungst.spurious.heads import logits_of

_SHOWN, _TOP, _CLASSES, _SAMPLES = 5, 3, 12, 8


def study_of(result: ClassifierResult, folder: Path) -> tuple[Study, SpuFix | None]:
    """Model and images of an audit, and its SpuFix as it was written; None where nothing was switched off."""
    options = {"resume": True, "witness": ["none"], "out": folder}
    config = ClassifierConfig.model_validate(result.config).model_copy(update=options)
    study = Given.check(config).study(load_audited(config))
    place = folder / FOLDER / "spufix"
    return study, SpuFix.load(place, study.head) if place.with_suffix(".json").is_file() else None


def probabilities(study: Study, fixed: SpuFix | None, x: Tensor) -> list[np.ndarray]:
    """Softmax probabilities (N, K) of images (N, 3, S, S), as the model is and with SpuFix."""
    models = [study.head.model, *([] if fixed is None else [fixed])]
    with torch.no_grad():
        x = x.to(study.head.device)
        return [logits_of(m(x)).softmax(1).cpu().double().numpy() for m in models]


def shared(p: np.ndarray, class_: int) -> tuple[Interval, int | None, Interval | None]:
    """Whether a feature extends its class, or belongs to others too.

    Args:
        p: (N, K) probabilities of images with only the feature. class_: whose feature it is.

    Returns:
        Share of the images answered with the class (class extension), the other class that most are answered
        with, None where there is none, and its share (shared feature); with Wilson's intervals.
    """
    answers = p.argmax(1)
    counts = np.bincount(answers[answers != class_], minlength=1)
    if not counts.any():
        return _share(answers == class_), None, None
    other = int(counts.argmax())
    return _share(answers == class_), other, _share(answers == other)


def _share(flags: np.ndarray) -> Interval:
    value, low, high = wilson(flags)
    return Interval(value=value, low=low, high=high)


def answered(
    name: str, result: ClassifierResult, folder: Path
) -> tuple[dict[str, dict[str, Interval]], Gallery | None]:
    """How images with only the feature are answered.

    Args:
        name: of the model. result, folder: its audit.

    Returns:
        Shares by class, and the images of highest probability with the three most likely classes below them,
        random training images and those of highest α beside them; None where the audit had no such images.
    """
    study, fixed = study_of(result, folder)
    if study.spurious is None:
        return {}, None
    ours: dict[str, dict[str, Interval]] = {}
    exhibits: list[Any] = []
    labels = np.array(study.spurious.labels)
    for entry in result.entries:
        rows = np.flatnonzero(labels == entry.index)
        if not len(rows):
            continue
        x = torch.stack([colour(study.spurious[int(i)][1]) for i in rows])
        found = probabilities(study, fixed, x)
        for p, after in zip(found, ("", ", SpuFix"), strict=False):
            own, other, share = shared(p, entry.index)
            row = ours.setdefault(f"{entry.name}, {name}", {})
            mean = Interval(value=float(p[:, entry.index].mean()))
            row |= {f"taken for it{after}": own, f"mean probability{after}": mean}
            if other is not None and share is not None and not after:
                called = f"{entry.name}, {name}: most others as {study.outputs.name(other)}"
                ours[called] = {"taken for another": share}
        if len(exhibits) < _CLASSES:
            best = np.argsort(-found[0][:, entry.index], kind="stable")[:_SHOWN]
            ids = [Path(study.spurious.ids[int(rows[i])]).name for i in best]
            exhibits.append(_exhibit(study, entry, x[best], [p[best] for p in found], ids))
    caption = (
        "Below each image with only the feature its three most likely classes; shown are those of highest "
        "probability of the class. Training images: drawn at random, and those of highest α."
    )
    return ours, Gallery(title=f"Answers of {name}", caption=caption, exhibits=exhibits, outlines=False)


def taken_for(wish: Wish) -> Made:
    """Images with only the feature: what they are taken for, before and after SpuFix; and they themselves."""
    result, folder = audit(wish)
    ours: dict[str, dict[str, Interval]] = {}
    blocks: list[Block] = []
    for name, own, place in singles(result, folder, ClassifierResult, "model"):
        shares, gallery = answered(name, own, place)
        ours |= shares
        if gallery is not None:
            blocks.append(Details(title=name, blocks=[gallery], open=not blocks))
    caption = (
        "Shares of the images with only the feature. Taken for it: the feature alone is enough for the class "
        "(class extension). Taken for another: the class that most of the rest are answered with (shared "
        "feature). As the model is unless SpuFix is named."
    )
    table = Numbers.of("Images with only the feature", ours, wish.piece.numbers, caption=caption)
    return Made([table], blocks, audits=[folder])


def samples(wish: Wish) -> Made:
    """The images with only a feature, class by class.

    Raises:
        ConfigError: there are none.
    """
    result, folder = audit(wish)
    _, own, place = singles(result, folder, ClassifierResult, "model")[0]
    study, _ = study_of(own, place)
    if study.spurious is None:
        raise ConfigError(f"{wish.piece.id} needs {wish.piece.needs}", "give --spurious FOLDER")
    labels = np.array(study.spurious.labels)
    exhibits = []
    for entry in own.entries:
        rows = np.flatnonzero(labels == entry.index)
        picked = np.random.default_rng(study.config.seed).permutation(rows)[:_SAMPLES].tolist()
        tiles = [
            Tile(Path(study.spurious.ids[i]).stem, study.spurious.ids[i], picture(study.spurious[i][1]))
            for i in picked
        ]
        if tiles:
            reason = f"{text.plural(len(rows), 'image')}, drawn at random"
            exhibits.append(
                Exhibit(name=entry.name, reason=reason, strips=[Strip("Only the feature", tiles)])
            )
    caption = "Images that show a feature of the class, and not the class."
    return Made(
        blocks=[Gallery(title="Samples", caption=caption, exhibits=exhibits, outlines=False)], audits=[place]
    )


def _exhibit(study: Study, entry: ClassEntry, x: Tensor, found: list[np.ndarray], ids: list[str]) -> Exhibit:
    rng = np.random.default_rng(study.config.seed)
    own = [i for i, k in enumerate(study.train.labels) if k == entry.index]
    drawn = [study.train.ids[own[i]] for i in rng.permutation(len(own))[:_SHOWN]]
    strips = [Strip("Random training images", [_tile(study.train, id_) for id_ in drawn])]
    switched = [c for c in entry.components if c.component in entry.fixed] or entry.components[:1]
    for component in switched[:2]:
        title = f"Highest α of component {component.component}"
        strips.append(Strip(title, [_tile(study.train, shown.id) for shown in component.images[:_SHOWN]]))
    for p, title in zip(found, ("Only the feature, as it is", "Only the feature, with SpuFix"), strict=False):
        tiles = [
            Tile(three(study, row), f"{id_}: {three(study, row)}", picture(image))
            for image, row, id_ in zip(x, p, ids, strict=True)
        ]
        strips.append(Strip(title, tiles))
    off = ", ".join(map(str, entry.fixed or entry.transferred))
    return Exhibit(
        name=entry.name,
        reason=f"components {off} switched off" if off else "nothing switched off",
        strips=strips,
    )


def three(study: Study, p: np.ndarray) -> str:
    """The most likely classes of one image with their probabilities, in words."""
    best = np.argsort(-p, kind="stable")[:_TOP].tolist()
    return ", ".join(f"{_short(study.outputs.name(k))}: {text.percent(float(p[k]))}" for k in best)


def _short(name: str) -> str:
    """A class without the WordNet id before it."""
    first, _, rest = name.partition(" ")
    return rest if rest and first[:1] == "n" and first[1:].isdecimal() else name


def _tile(images: Labelled, id_: str) -> Tile:
    return Tile(Path(id_).stem, id_, picture(images.image(id_)))
