"""What a similarity audit looks at: images with their columns, embedded and probed, in one study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from pfungst.audit.conditions import ORIGINAL, conditions_for
from pfungst.audit.result import Variant
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import Source, embed, open_set
from pfungst.audit.sources import AUTOMATIC, group_columns
from pfungst.audit.workspace import Workspace
from pfungst.data import ImageSet, Item, join_columns
from pfungst.data.imagenet_classes import title
from pfungst.data.people import installed_detector
from pfungst.data.roles import UNITS
from pfungst.data.traits import BurntInText, without_boxes
from pfungst.encoders import Encoder
from pfungst.errors import ConfigError, DataError
from pfungst.probes import Plan, Predictions, predict
from pfungst.progress import Bar
from pfungst.suggest import suggest

_NEGATIVE = ("good", "normal", "other", "negative", "none", "no", "false", "0", "healthy")
AS_IS = Variant(condition=ORIGINAL)
ERASED = Variant(condition="text erased")
OPPOSITE = Variant(condition="as much erased opposite")
"""The same boxes turned by half a turn about the centre: what erasing costs where there is no text."""


@dataclass(frozen=True)
class Study:
    """Everything that is measured and explained.

    Attributes:
        config: what was asked for.
        encoder: the model.
        source: the images, under every condition.
        plan: who is trained on and who is tested.
        unit: the column whose values stay on one side; None for single images.
        columns: group columns (N,) str by name.
        embeddings: representations (N, K) by variant.
        found: what the probes say by variant, fitted on original images (of the mended encoder anew).
        workspace: the output folder.
        text: finds burnt-in text, where it was asked for.
        notes: what was left out, and fallbacks.
    """

    config: SimilarityConfig
    encoder: Encoder
    source: Source
    plan: Plan
    unit: str | None
    columns: Mapping[str, np.ndarray]
    embeddings: Mapping[Variant, np.ndarray]
    found: Predictions[Variant]
    workspace: Workspace
    text: BurntInText | None
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, encoder: Encoder, images: ImageSet, config: SimilarityConfig, workspace: Workspace, bar: Bar
    ) -> Study:
        """Check, embed and probe the images of :func:`open_labelled`.

        Raises:
            UnreadableImages: some cannot be decoded and ``skip_bad`` is not set.
            InputError: see ``embed``.
        """
        if not config.skip_bad and config.images != "synthetic":
            images.check()
        conditions = conditions_for(encoder.preprocessing.condition, config.condition, encoder.size)
        source = Source.open(images, conditions, encoder.size, config.skip_bad)
        source.workers, source.ray = config.workers, config.ray
        notes = list(images.notes)
        if source.skipped:
            source.items, more = usable(source.items, config)
            notes += more
        unit, plan = make_plan(source.items, config)
        bar.turn("reading what the files tell")
        text = BurntInText(workspace.folder / "text.json") if "text" in config.groups else None
        columns, more = columns_of(group_columns(source.items, config.groups, text), plan, unit, config)
        notes += more
        bar.turn(f"embedding with {encoder.name}", len(source.items))
        cache = config.cache or workspace.folder / "embeddings"
        found = embed(encoder, source, cache, config.device, bar.advance)
        embeddings = {Variant(condition=name): x for name, x in found.items()}
        for variant, items in _erased(source.items, text) if text else ():
            part = replace(source, items=items, conditions={ORIGINAL: conditions[ORIGINAL]})
            embeddings[variant] = embed(encoder, part, cache, config.device)[ORIGINAL]
        bar.turn("probing")
        return cls(
            config=config,
            encoder=encoder,
            source=source,
            plan=plan,
            unit=unit,
            columns=columns,
            embeddings=embeddings,
            found=predict(plan, embeddings, AS_IS, config.probe),
            workspace=workspace,
            text=text,
            notes=(*notes, *plan.notes),
        )

    @property
    def original(self) -> np.ndarray:
        """Representations (N, K) of the images as the encoder expects them."""
        return self.embeddings[AS_IS]

    @property
    def positive(self) -> str | None:
        """Of two classes the one false positives are counted for."""
        return positive_class(self.plan.classes, self.config.positive)

    @property
    def conditions(self) -> list[Variant]:
        """The other ways in which the images reach the encoder."""
        return [v for v in self.embeddings if v != AS_IS and not v.mitigated]

    def with_mended(self, encoder: Encoder) -> Study:
        """This study with the variants of a mended encoder, whose probe is fitted anew."""
        cache = self.config.cache or self.workspace.folder / "embeddings"
        values = embed(encoder, self.source, cache, self.config.device)
        mended = {Variant(condition=name, mitigated=True): x for name, x in values.items()}
        found = predict(self.plan, mended, Variant(condition=ORIGINAL, mitigated=True), self.config.probe)
        return replace(self, embeddings={**self.embeddings, **mended}, found=self.found | found)


def columns_of(
    known: Mapping[str, np.ndarray], plan: Plan, unit: str | None, config: SimilarityConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The group columns (N,) that can be looked at, and notes about those that are left out."""
    columns, notes = {}, []
    for name, values in known.items():
        if len(set(values[plan.tested].tolist())) < 2:
            notes.append(f"the column {name!r} has one value only in the tested images and was left out")
        elif _spells(values, plan.labels):
            notes.append(f"the column {name!r} spells the label and was left out")
        elif name not in (unit, config.labels):
            columns[name] = np.array([v or "(none)" for v in values.tolist()])
    return columns, notes


def _spells(values: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the values of a column contain the name of a label exactly where the label is that one."""
    names = [v.lower() for v in values.tolist()]
    return any(
        all((c.lower() in name) == (c == label) for name, label in zip(names, labels.tolist(), strict=True))
        for c in np.unique(labels).tolist()
    )


def _erased(items: Sequence[Item], text: BurntInText) -> Iterator[tuple[Variant, list[Item]]]:
    """The images with their text erased, and with as much erased opposite."""

    def painted(item: Item, turned: bool) -> Image.Image:
        boxes = text(item)
        boxes = 1 - boxes[:, [2, 3, 0, 1]] if turned else boxes
        return Image.fromarray(without_boxes(np.asarray(item.read()), boxes))

    for variant, turned in ((ERASED, False), (OPPOSITE, True)):
        yield (
            variant,
            [replace(i, image=partial(painted, i, turned)) if len(text(i)) else i for i in items],
        )


def open_labelled(config: SimilarityConfig, given: ImageSet | None = None) -> ImageSet:
    """The images to audit, of classes that can be probed, with the columns of the groups file.

    Raises:
        ConfigError, DataError: the images, their columns, labels or splits are not what the configuration
            says.
    """
    images = open_set(config, given)
    notes = list(images.notes)
    items = images.items
    if config.groups_file is not None:
        items, more = join_columns(items, config.groups_file)
        notes += more
    items, more = usable(items, config)
    group_columns(items, [name for name in config.groups if name not in AUTOMATIC])
    if "text" in config.groups:
        BurntInText()
    if "people" in config.groups:
        installed_detector()
    _, plan = make_plan(items, config)
    positive_class(plan.classes, config.positive)
    return images.of(items, [*notes, *more])


def usable(items: Sequence[Item], config: SimilarityConfig) -> tuple[list[Item], list[str]]:
    """Items of classes with at least two units, and notes about the classes that are left out.

    Raises:
        DataError: fewer than two such classes.
    """
    column = unit_column(items, config.keep_together)
    units = np.array([i.groups.get(column, i.id) if column else i.id for i in items])
    labels = np.array([i.label or "" for i in items])
    alone = [c for c in np.unique(labels).tolist() if len(set(units[labels == c].tolist())) < 2]
    kept = [i for i in items if i.label not in alone]
    left = len(set(labels.tolist()) - set(alone))
    if left < 2:
        raise DataError(
            f"{len(items)} images have {left} class{'es' if left != 1 else ''} with two or more "
            f"{column + 's' if column else 'images'}",
            "a probe needs two classes with images to train and to test on; choose the label with --labels",
        )
    return kept, [f"class {c!r} has one {column or 'image'} only and was left out" for c in alone]


def unit_column(items: Sequence[Item], wanted: str) -> str | None:
    """The column whose values stay on one side of a split. Raises ConfigError where it does not exist."""
    known = dict.fromkeys(name for item in items for name in item.groups)
    usual = next((name for name in UNITS if name in known), None)
    if wanted == "none":
        return None
    if wanted == "auto" or (wanted in UNITS and wanted not in known and usual is not None):
        return usual
    if wanted not in known:
        raise ConfigError(
            f"the data have no column {wanted!r} to keep together", suggest(wanted, known, "columns")
        )
    return wanted


def make_plan(items: Sequence[Item], config: SimilarityConfig) -> tuple[str | None, Plan]:
    """The column of the units, and the splits for every repetition; see :meth:`pfungst.probes.Plan.make`."""
    column = unit_column(items, config.keep_together)
    units = [i.groups.get(column) or i.id for i in items] if column else [i.id for i in items]
    seeds = [config.seed + i for i in range(config.seeds)]
    labels = [i.label or "" for i in items]
    return column, Plan.make(labels, units, [i.split for i in items], config.split, config.folds, seeds)


def positive_class(classes: Sequence[str], wanted: str | None) -> str | None:
    """Of two classes the one false positives are counted for. Raises ConfigError for an unknown one."""
    wanted = None if wanted is None else title(wanted)
    if wanted is not None and wanted not in classes:
        raise ConfigError(f"no image has the label {wanted!r}", suggest(wanted, classes, "labels"))
    if len(classes) != 2:
        return None
    plain = [c for c in classes if c.lower() not in _NEGATIVE and not c.lower().startswith(("not ", "no "))]
    return wanted or (plain[-1] if plain else classes[1])
