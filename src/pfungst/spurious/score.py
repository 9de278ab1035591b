"""Spurious score: how well a classifier tells a class from images that show only its spurious feature."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from pfungst.device import choose_device
from pfungst.errors import DataError, InputError, UnreadableImages
from pfungst.features import Batch, Stream, Work, combined, file_key, run
from pfungst.files import PICTURES, open_picture
from pfungst.spurious.features import read_item
from pfungst.spurious.heads import logits_of


@dataclass(frozen=True)
class ClassScore:
    """Spurious score of one class.

    Attributes:
        auc: area under the ROC curve; 1 means no reliance.
        low, high: its 95 % interval (Newcombe 2006, method 5, which stays in [0, 1] also at perfect
            separation).
        average_precision: what the published code computes; depends on the two counts.
        mean_positive, mean_negative: mean probability of the class on either side.
        n_positive, n_negative: images.
    """

    auc: float
    low: float
    high: float
    average_precision: float
    mean_positive: float
    mean_negative: float
    n_positive: int
    n_negative: int


class SpuriousScore:
    """Spurious scores of all classes.

    Attributes:
        classes: {class: ClassScore}.
        mauc: mean ROC AUC over classes (the paper's definition).
        interval: its 95 % bootstrap interval, images resampled within classes.
        published_mAP: mean average precision over classes (the published code's number).
        joint_average_precision: one average precision over all classes' probabilities pooled.
    """

    def __init__(
        self, positives: Mapping[int, np.ndarray], negatives: Mapping[int, np.ndarray], seed: int = 0
    ) -> None:
        self.positives = {k: np.asarray(positives[k]) for k in negatives}
        self.negatives = {k: np.asarray(v) for k, v in negatives.items()}
        self.seed = seed
        self.classes = {k: _class_score(self.positives[k], self.negatives[k]) for k in sorted(negatives)}
        self.mauc = float(np.mean([c.auc for c in self.classes.values()]))
        self.published_mAP = float(np.mean([c.average_precision for c in self.classes.values()]))
        self.joint_average_precision = _average_precision(
            np.concatenate([self.positives[k] for k in self.classes]),
            np.concatenate([self.negatives[k] for k in self.classes]),
        )
        draws = self._bootstrap()
        self.interval = (float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)))

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"SpuriousScore({len(self.classes)} classes, mAUC {self.mauc:.3f} [{low:.3f}, {high:.3f}], "
            f"published_mAP {self.published_mAP:.3f})"
        )

    def _bootstrap(self, draws: int = 2000) -> np.ndarray:
        """Mean AUC of resampled images, (draws,): AUC = uᵀ P v with P who wins and multinomial weights u,
        v."""
        rng = np.random.default_rng(self.seed)
        total = np.zeros(draws)
        for k in self.classes:
            p, q = self.positives[k], self.negatives[k]
            wins = (p[:, None] > q).astype(np.float64) + 0.5 * (p[:, None] == q)
            u = rng.multinomial(len(p), np.full(len(p), 1 / len(p)), size=draws) / len(p)
            v = rng.multinomial(len(q), np.full(len(q), 1 / len(q)), size=draws) / len(q)
            total += ((u @ wins) * v).sum(1)
        return (total / len(self.classes)).clip(0, 1)  # the weights sum to 1 up to rounding

    def gain_over(self, before: SpuriousScore) -> tuple[float, float, float]:
        """mAUC minus that of another model on the same images: (gain, low, high), paired 95 % bootstrap."""
        sizes = [{k: (len(s.positives[k]), len(s.negatives[k])) for k in s.classes} for s in (self, before)]
        if sizes[0] != sizes[1]:
            raise InputError(
                "the two scores are of different images", "score both models on the same two image sets"
            )
        other = SpuriousScore.__new__(SpuriousScore)
        other.__dict__.update(before.__dict__)
        other.seed = self.seed
        draws = self._bootstrap() - other._bootstrap()
        low, high = np.quantile(draws, [0.025, 0.975])
        return self.mauc - before.mauc, float(low), float(high)


def spurious_score(
    model: nn.Module,
    validation: Iterable[tuple[Any, Tensor, int]],
    spurious: Iterable[tuple[Any, Tensor, int]],
    *,
    missing: str = "error",
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
) -> SpuriousScore:
    """Spurious score of a classifier (paper 003, section 7.2).

    Args:
        model: images (N, C, H, W) → logits.
        validation: (id, image, class index) that show the class.
        spurious: (id, image, class index) that show only the class's spurious feature, e.g. a
            :class:`SpuriousFolder`.
        missing: "error" or "skip" for classes without validation images.

    Raises:
        DataError: classes missing in the validation set.
    """
    negatives = class_probabilities(model, spurious, batch_size=batch_size, device=device)
    positives = class_probabilities(
        model, validation, classes=set(negatives), batch_size=batch_size, device=device
    )
    return score_probabilities(positives, negatives, missing=missing, seed=seed)


def score_probabilities(
    positives: Mapping[int, Any], negatives: Mapping[int, Any], missing: str = "error", seed: int = 0
) -> SpuriousScore:
    """Spurious score from the probabilities of class k: {k: (n,)} of images of k and of spurious images of
    k."""
    if not negatives:
        raise DataError("there are no images with spurious features", "pass at least one class of them")
    absent = sorted(k for k in negatives if k not in positives or not len(positives[k]))
    if absent and (missing != "skip" or len(absent) == len(negatives)):
        raise DataError(
            f"{len(absent)} classes with spurious images have no validation images: {absent[:20]}",
            "add their validation images, or pass missing='skip' to leave these classes out",
        )
    kept = {k: np.asarray(v) for k, v in negatives.items() if k not in absent}
    for name, side in (("validation", positives), ("spurious", kept)):
        broken = [k for k in kept if not np.isfinite(np.asarray(side[k])).all()]
        if broken:
            raise InputError(
                f"{name} probabilities of classes {broken[:10]} are not finite", "check the model"
            )
    return SpuriousScore({k: np.asarray(positives[k]) for k in kept}, kept, seed)


def class_probabilities(
    model: nn.Module,
    data: Iterable[tuple[Any, Tensor, int]],
    classes: set[int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    workers: int = 0,
) -> dict[int, np.ndarray]:
    """Softmax probability of each image's own label, {label: (n,)}; only `classes` if given.

    Raises:
        UnreadableImages: all that cannot be read.
        InputError: labels outside the model's classes.
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    target = choose_device(device, float64=True)
    listed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    source: Any = data if listed else Stream(data)
    rows: Any = range(len(source)) if listed else source
    known, ids = getattr(data, "labels", None), getattr(data, "ids", None)
    if listed and classes is not None and known is not None:
        rows = [row for row in rows if int(known[row]) in classes]
    out: dict[int, list[float]] = {}

    def compute(batch: Batch) -> tuple[list[int], list[float]]:
        labels, images = [int(label) for _, label in batch.known], batch.images.to(target, dtype)
        if classes is not None:
            mine = [i for i, label in enumerate(labels) if label in classes]
            labels, images = [labels[i] for i in mine], images[mine]
        if not labels:
            return [], []
        logits = logits_of(model(images)).float()
        if max(labels) >= logits.shape[1] or min(labels) < 0:
            raise InputError(
                f"labels {min(labels)} … {max(labels)} do not fit a model of {logits.shape[1]} classes",
                "map the labels to the model's classes with match_classes",
            )
        return labels, logits.softmax(1)[torch.arange(len(labels)), torch.tensor(labels)].tolist()

    work = Work(
        partial(read_item, source),
        compute,
        model.eval().to,
        lambda row: str(row if ids is None else ids[row]),
    )
    for done in run(work, rows, batch_size, device=target, workers=workers):
        for label, p in zip(*(done.result or ([], [])), strict=True):
            out.setdefault(label, []).append(p)
    return {k: np.asarray(v, dtype=np.float32) for k, v in out.items()}


class SpuriousFolder:
    """Images in Spurious ImageNet's layout: folders `spurious_class_K_component_L`, K an index or a label.

    Args:
        root: folder that holds them.
        transform: Pillow image → (C, H, W) tensor in [0, 1], as the model wants it; may be set later.
        index: {label: class index}, for folders that are named by labels.

    Attributes:
        ids, labels: path below root, and class index, of each image.
        components: {class: components counted from 0}.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Any], Tensor] | None = None,
        index: Mapping[str, int] | None = None,
    ) -> None:
        self.root, self.transform = Path(root), transform
        self.ids: list[str] = []
        self.labels: list[int] = []
        self.components: dict[int, list[int]] = {}
        folders = sorted(self.root.iterdir()) if self.root.is_dir() else []
        for folder in folders:
            match = re.search(r"_(\d+)_[^_]+_(\d+)$", folder.name)
            match = match or re.search(r"^spurious_class_(.+)_component_(\d+)$", folder.name)
            if match is None or not folder.is_dir():
                continue
            if not match[1].isdecimal() and match[1] not in (index or {}):
                raise DataError(
                    f"{folder} is named by the label {match[1]!r}, which the images do not have",
                    "name it by a label of theirs, or by the index of the model's output",
                )
            k = int(match[1]) if match[1].isdecimal() else (index or {})[match[1]]
            component = int(match[2])
            files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES)
            if not files:
                raise DataError(f"{folder} holds no images", "remove the folder or fill it")
            self.components.setdefault(k, []).append(component)
            self.ids += [str(f.relative_to(self.root)) for f in files]
            self.labels += [k] * len(files)
        if not self.ids:
            raise DataError(
                f"{root} has no folders named like spurious_class_94_component_2",
                "pass the folder that holds them",
            )

    def of(self, classes: Collection[int]) -> SpuriousFolder:
        """Only the images of these classes."""
        new = copy.copy(self)
        rows = [row for row, k in enumerate(self.labels) if k in classes]
        new.ids, new.labels = [self.ids[row] for row in rows], [self.labels[row] for row in rows]
        return new

    def __len__(self) -> int:
        return len(self.ids)

    def identity(self, i: int) -> tuple[object, ...]:
        """What the features of an image and its label depend on, beside the model. Raises OSError if it is
        not there."""
        return file_key(self.root / self.ids[i]), self.transform, self.labels[i]

    def key(self) -> str:
        """Names the list of images, whatever they show now."""
        return combined(str(self.root.resolve()), self.ids, self.transform)

    def __getitem__(self, i: int) -> tuple[str, Tensor, int]:
        if self.transform is None:
            raise InputError("the images have no transform", "set SpuriousFolder.transform")
        path = self.root / self.ids[i]
        try:
            with open_picture(path) as image:
                pixels = image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise UnreadableImages([(str(path), str(error))]) from None
        return self.ids[i], self.transform(pixels), self.labels[i]


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    truth = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
    return float(average_precision_score(truth, np.r_[positives, negatives]))


def _class_score(p: np.ndarray, q: np.ndarray) -> ClassScore:
    wins = (p[:, None] > q).mean() + 0.5 * (p[:, None] == q).mean()
    low, high = auc_interval(float(wins), len(p), len(q))
    return ClassScore(
        float(wins), low, high, _average_precision(p, q), float(p.mean()), float(q.mean()), len(p), len(q)
    )


def auc_interval(auc: float, n: int, m: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of an AUC from n positives and m negatives (Newcombe 2006, Statistics in Medicine 25,
    method 5).

    The two solutions θ of (auc − θ)² = z² V(θ), V(θ) = θ (1 − θ) (1 + N (1 − θ)/(2 − θ) + N θ/(1 + θ)) / (n
    m) with N = (n + m)/2 − 1.
    """
    half = (n + m) / 2 - 1

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t)) / (n * m)
        return abs(auc - t) - z * math.sqrt(max(variance, 0.0))

    def solve(outer: float) -> float:
        inside, outside = auc, outer  # excess < 0 next to the estimate, ≥ 0 at the end of the range
        for _ in range(60):
            middle = (inside + outside) / 2
            if excess(middle) > 0:
                outside = middle
            else:
                inside = middle
        return (inside + outside) / 2

    return solve(0.0), solve(1.0)
