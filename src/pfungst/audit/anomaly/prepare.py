"""From the configuration to prepared images: what can be wrong is found before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.mend import fixed_filter
from pfungst.audit.sources import group_columns
from pfungst.conditions import Condition
from pfungst.data import ImageSet, Prepared
from pfungst.data.layouts import require_there
from pfungst.data.roles import for_detection
from pfungst.datasets import digits_c
from pfungst.datasets.mnist import corrupted_mnist, is_mnist, is_mnist_c, mnist_c
from pfungst.datasets.synthetic import make_parts
from pfungst.device import choose_device
from pfungst.errors import DataError, UnreadableImages

if TYPE_CHECKING:
    from pfungst.anomaly import Detector
    from pfungst.audit.anomaly.fitted import FittedDetectors


@dataclass(frozen=True)
class Study:
    """One category, prepared: what every step of the audit reads.

    Attributes:
        config: of the audit.
        detectors: fit the detectors of this category, and remember those that the next one shares.
        train: (N, C, S, S) normal training images, original condition.
        test: the test images, original condition.
        deployed: the same, deployed condition.
        columns: group columns, (T,) text for the test images.
        outliers: (M, C, S, S) defective images that were taken out of the test, original condition.
    """

    config: AnomalyConfig
    detectors: FittedDetectors
    train: Tensor
    test: Prepared
    deployed: Prepared
    columns: dict[str, np.ndarray]
    outliers: Tensor

    @classmethod
    def prepare(
        cls,
        images: ImageSet,
        conditions: tuple[Condition, Condition],
        config: AnomalyConfig,
        detectors: FittedDetectors,
    ) -> Study:
        """Decode the images of a category once and prepare them under both conditions."""
        original, deployed = images.prepare_many(conditions, config.size, skip_bad=config.skip_bad)
        fits = (original.splits == "train") & (np.array(original.classes) == "good")
        tests = original.splits == "test"
        defects = np.flatnonzero(tests & (original.labels == 1))
        if config.outliers and config.outliers >= len(defects):
            raise DataError(
                f"{images.name} has {len(defects)} defective test images, --outliers takes {config.outliers}",
                "lower --outliers",
            )
        known = np.random.default_rng(config.seed).permutation(defects)[: config.outliers]
        tests[known] = False
        detectors.use([item for item, mine in zip(original.items, fits, strict=True) if mine])
        columns = {n: values[tests] for n, values in group_columns(original.items, config.groups).items()}
        train, outliers = original.images[fits], original.images[known]
        return cls(config, detectors, train, original[tests], deployed[tests], columns, outliers)

    @property
    def labels(self) -> np.ndarray:
        """(T,) 1 = defect."""
        return self.test.labels

    @property
    def masked(self) -> np.ndarray:
        """(T,) which test images show a defect and have its mask."""
        return self.labels.astype(bool) & self.test.has_mask

    def images(self, condition: str) -> Tensor:
        """(T, C, S, S) test images, original or deployed."""
        return {"original": self.test, "deployed": self.deployed}[condition].images


def check(
    config: AnomalyConfig, sets: list[ImageSet] | None = None, given: Mapping[str, Detector] | None = None
) -> tuple[Condition, Condition]:
    """The two conditions; raise where an option cannot work, before images are looked for."""
    choose_device(config.device, float64=True)
    fixed_filter(config.mitigate, config.size)
    conditions = Condition.parse(config.original), Condition.parse(config.deployed)
    for condition in conditions:
        condition.check(config.size)
    if sets is None and isinstance(config.data, Path):
        require_there(config.data)
    from pfungst.audit.anomaly.fitted import check_detector  # with scikit-learn, half as long as torch

    for text in config.model:
        check_detector((given or {}).get(text, text), config.size)
    return conditions


def open_sets(config: AnomalyConfig, sets: list[ImageSet] | None = None) -> list[ImageSet]:
    """The image sets to audit, each with normal training images and labelled test images.

    Raises:
        DataError: a set lacks one of them.
        ConfigError: a category does not exist.
    """
    wanted = config.category or None
    if sets is not None:
        pass
    elif config.data == "synthetic":
        sets = make_parts(wanted, seed=config.seed)
    elif config.data == "digits-c":
        sets = digits_c(wanted, seed=config.seed)
    elif is_mnist_c(config.data):
        sets = mnist_c(config.data, wanted, train=1000, good=300, anomalous=300)
    elif is_mnist(config.data):
        sets = corrupted_mnist(config.data, wanted, seed=config.seed)
    else:
        sets = [
            for_detection(s, config.normal, config.keep_together, config.seed, config.label_column)
            for s in config.open(config.data, config.label_column, wanted)
        ]
    return sets


def decode_all(sets: list[ImageSet]) -> None:
    """Decode every image of every set once, so that a bad file in the last category stops the audit at once.

    Raises:
        UnreadableImages: names the bad files of all sets.
    """
    problems: list[tuple[str, str]] = []
    for images in sets:
        try:
            images.check()
        except UnreadableImages as error:
            problems += error.problems
    if problems:
        raise UnreadableImages(problems)
