"""What a classifier audit is about, checked before the model is loaded: images, classes, components."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.data import choose_classes, class_names, open_labelled, read_names
from pfungst.audit.config import check_file
from pfungst.audit.workspace import refuse_old_result
from pfungst.conditions import Condition
from pfungst.data import ImageSet, Item
from pfungst.device import choose_device
from pfungst.errors import ConfigError, DataError, InputError, PfungstError, few
from pfungst.spurious import SpuriousFolder, read_components


class Matched(NamedTuple):
    """The images with the model's class indices."""

    train: tuple[list[Item], list[int]]  # items and class indices of the audited classes
    val: tuple[list[Item], list[int]]  # of all classes
    names: dict[int, str]  # of the classes with training images
    spurious: SpuriousFolder | None  # of the audited classes
    judged: dict[int, list[int]] | None  # components that people judged spurious, by class


@dataclass(frozen=True)
class Given:
    """The files that the configuration names, listed but not decoded; `names` are those of ``--class-names``."""

    train: ImageSet
    val: ImageSet
    names: list[str] | None
    spurious: SpuriousFolder | None

    @classmethod
    def check(cls, config: ClassifierConfig) -> Given:
        """Find all that can be wrong with the arguments without the model.

        Raises:
            ConfigError, DataError, InputError: see :mod:`pfungst.errors`.
        """
        refuse_old_result(config)
        choose_device(config.device)
        check_file(config.checkpoint, "--checkpoint")
        if config.condition is not None:
            Condition.parse(config.condition).check()
        if config.masks is not None and not config.masks.is_dir():
            raise ConfigError(f"{config.masks} is no folder", "check --masks")
        train, val = open_labelled(config.train, training=True), open_labelled(config.val, training=False)
        if not val.items:
            raise DataError(f"{config.val} holds no validation images", "give labelled images")
        folder = None if config.spurious is None else SpuriousFolder(config.spurious)
        given = cls(train, val, read_names(config.class_names), folder)
        labels = {str(item.label) for item in train.items}
        sizes = [len(labels if given.names is None else given.names)]
        if given.names is None and all(label.isdecimal() for label in labels):
            sizes.append(max(map(int, labels), default=0) + 1)  # folders may be named by class index
        for n_classes in sizes[:-1]:
            with suppress(PfungstError):
                given.match(config, n_classes)
                return given
        given.match(config, sizes[-1])
        return given

    def match(
        self, config: ClassifierConfig, n_classes: int, fingerprint: Mapping[str, Any] | None = None
    ) -> Matched:
        """Class indices of a model with so many classes; components must be of the model of the fingerprint.

        Raises:
            InputError: labels or components do not fit the model.
            ConfigError: a class to audit does not exist.
            DataError: a class has too few training images, or no validation images where it has spurious ones.
        """
        known = class_names(self.train, self.val, self.names, n_classes)
        index = {name: i for i, name in known.items()}
        train, val = ([index[str(item.label)] for item in s.items] for s in (self.train, self.val))
        counts = np.bincount(train, minlength=n_classes)
        names = {k: name for k, name in known.items() if counts[k]}
        classes = choose_classes(config.classes, names)
        if poor := [f"{k} {names[k]}" for k in classes if counts[k] < 2]:
            raise DataError(
                f"{len(poor)} classes have fewer than 2 training images: {few(poor)}",
                "add images, or name other --classes",
            )
        spurious = None if self.spurious is None else self.spurious.of(set(classes))
        if spurious is not None:
            if not len(spurious):
                raise DataError(
                    f"{config.spurious} has images of the classes {few(sorted(spurious.components))}, "
                    "none of which is audited",
                    "name one of them in --classes",
                )
            if absent := sorted(set(spurious.labels) - set(val)):
                raise DataError(
                    f"{len(absent)} classes with spurious images have no validation images: "
                    + few(f"{k} {names[k]}" for k in absent),
                    "add their validation images, or leave them out with --classes",
                )
        wanted = set(classes)
        audited = [row for row, k in enumerate(train) if k in wanted]
        return Matched(
            ([self.train.items[row] for row in audited], [train[row] for row in audited]),
            (list(self.val.items), val),
            names,
            spurious,
            _judged(config, fingerprint, classes),
        )


def _judged(
    config: ClassifierConfig, fingerprint: Mapping[str, Any] | None, classes: list[int]
) -> dict[int, list[int]] | None:
    if config.components is None:
        return None
    judged = read_components(config.components, fingerprint)
    wrong = {k: [c for c in found if c >= config.n_components] for k, found in judged.items()}
    wrong = {k: found for k, found in wrong.items() if found}
    if wrong:
        raise InputError(
            f"{config.components} names components beyond the {config.n_components} that are computed: {wrong}",
            "raise --n-components",
        )
    return {k: v for k, v in judged.items() if k in classes}
