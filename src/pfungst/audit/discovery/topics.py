"""What a discovery goes through, one by one: the classes of a classifier or of a probe, the scores of a
detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.images import Labelled
from pfungst.audit.conditions import ORIGINAL
from pfungst.data.traits import file_columns
from pfungst.discover import ClassSubject, Explanations, ScoreSubject, Subject, explain, explain_scores
from pfungst.discover.prove import FEWEST
from pfungst.features import combined, model_key
from pfungst.probes.plan import fit_probe
from pfungst.spurious import FeatureHead, Witness

if TYPE_CHECKING:
    from pfungst.audit.anomaly.measure import Run
    from pfungst.audit.anomaly.prepare import Study as AnomalyStudy
    from pfungst.audit.similarity.prepare import Study as SimilarityStudy

_OTHERS = 100  # images that things are put into


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        per_topic: images explained, at most. most: clusters of a view. changed: images of a cluster that are
            changed to prove it. batch_size: images at a time. seed: of all that is drawn.
    """

    per_topic: int = 120
    most: int = 6
    changed: int = 40
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Topic:
    """One subject with its images.

    Attributes:
        name: of the class, or of the detector and its images.
        subject: what is proved.
        ids: of its N images, in order. load: rows of them → (n, C, H, W).
        others: (M, C, H, W) that are not of it.
        explained: explains all N, told how many are done.
        columns: values (N,) that clusters are compared with.
        state: names the images and the model as they are now.
    """

    name: str
    subject: Subject
    ids: Sequence[str]
    load: Callable[[Sequence[int]], Tensor]
    others: Callable[[], Tensor]
    explained: Callable[[Callable[[int], object]], Explanations]
    columns: dict[str, np.ndarray]
    state: str


def drawn(rows: np.ndarray, count: int, *seeds: int) -> np.ndarray:
    """At most so many of some rows, at random, in order."""
    return np.sort(np.random.default_rng(seeds).permutation(rows)[:count])


def class_topics(
    head: FeatureHead,
    names: dict[int, str],
    data: Labelled,
    columns: dict[str, np.ndarray],
    witnesses: Callable[[int], Sequence[Witness]],
    effort: Effort,
) -> list[Topic]:
    """The classes `names` of a classifier that have enough images, and others beside them."""
    state = combined(data.state(None), model_key(head.model), sorted(columns))
    load = lambda rows: torch.stack([data[int(r)][1] for r in rows])
    labels = np.array(data.labels)
    return _topics(head, names, labels, data.ids, load, columns, witnesses, state, effort)


def encoder_topics(study: SimilarityStudy, effort: Effort) -> list[Topic]:
    """The classes of a probe on an encoder, on images that the probe was not fitted to.

    The probe is that of the first split of the study. Beside its classes, what makes their images alike is
    explained.
    """
    train, tests = study.plan.rounds[0][0]
    if study.plan.split == "folds":  # half, so that enough is left to explain
        firsts = [fold for _, fold in study.plan.rounds[0]]
        cut = max(1, len(firsts) // 2)
        train, tests = (np.sort(np.concatenate(part)) for part in (firsts[:cut], firsts[cut:]))
    embedded, labels = study.original, study.plan.labels
    probe = fit_probe(study.config.probe, embedded[train], labels[train])
    encoder = study.encoder.eval()
    head = FeatureHead(probe.attach(encoder), "head", study.source.pick([0, 1], [ORIGINAL])[ORIGINAL])
    names = {k: str(c) for k, c in enumerate(probe.classes_)}
    codes = np.array([list(names.values()).index(c) for c in labels[tests].tolist()])
    means = [embedded[train][labels[train] == c].mean(0) for c in names.values()]
    load = lambda rows: study.source.pick(tests[np.asarray(rows)].tolist(), [ORIGINAL])[ORIGINAL]
    items = [study.source.items[r] for r in tests]
    ids = [item.id for item in items]
    columns = {**file_columns(items), **{name: values[tests] for name, values in study.columns.items()}}
    state = combined(study.source.state(), encoder.key(), study.config.probe, train.tolist(), sorted(columns))
    centres = [torch.from_numpy(m / max(float(np.linalg.norm(m)), 1e-12)).float() for m in means]
    return _topics(
        head, names, codes, ids, load, columns, lambda k: (), state, effort,
        alike=lambda k: (encoder, centres[k]),
    )  # fmt: skip


def _topics(
    head: FeatureHead,
    names: dict[int, str],
    labels: np.ndarray,
    ids: Sequence[str],
    load: Callable[[Sequence[int]], Tensor],
    columns: dict[str, np.ndarray],
    witnesses: Callable[[int], Sequence[Witness]],
    state: str,
    effort: Effort,
    alike: Callable[[int], tuple[torch.nn.Module, Tensor]] | None = None,
) -> list[Topic]:
    def one(k: int) -> Topic:
        rows = drawn(np.flatnonzero(labels == k), effort.per_topic, effort.seed, k)
        others = drawn(np.flatnonzero(labels != k), _OTHERS, effort.seed, k, 1)
        own = lambda chosen: load(rows[np.asarray(list(chosen), dtype=int)])
        explained = lambda advance: explain(
            head,
            k,
            own,
            len(rows),
            batch_size=effort.batch_size,
            progress=advance,
            alike=None if alike is None else alike(k),
        )
        return Topic(
            names[k],
            ClassSubject(head, k, witnesses(k)),
            [ids[r] for r in rows],
            own,
            lambda: load(others),
            explained,
            {name: values[rows] for name, values in columns.items()},
            state,
        )

    counts = {k: int((labels == k).sum()) for k in names}
    return [one(k) for k in sorted(names) if FEWEST <= counts[k] < len(labels)]


def score_topics(study: AnomalyStudy, name: str, run: Run, effort: Effort) -> list[Topic]:
    """The scores of a fitted detector: on normal test images, and on defective ones."""
    images, labels, out = study.test.images, study.labels, []
    columns = {**file_columns(study.test.items), **study.columns}
    normal = study.train[drawn(np.arange(len(study.train)), _OTHERS, effort.seed)]
    for defect in (0, 1):
        rows = drawn(np.flatnonzero(labels == defect), effort.per_topic, effort.seed, defect)
        if len(rows) < FEWEST:
            continue
        others = normal if not defect else images[drawn(np.flatnonzero(labels == 0), _OTHERS, effort.seed)]
        subject = ScoreSubject(run.detector, defect, "defect" if defect else "normal", run.threshold)
        own = lambda chosen, rows=rows: images[rows[np.asarray(list(chosen), dtype=int)]]
        explained = lambda advance, own=own, n=len(rows): explain_scores(
            run.detector, own, n, run.threshold, effort.batch_size, advance
        )
        topic = Topic(
            f"{name}, {'defective' if defect else 'normal'} images",
            subject,
            [study.test.ids[r] for r in rows],
            own,
            lambda others=others: others,
            explained,
            {c: v[rows] for c, v in columns.items()},
            combined(study.test.ids, name, run.threshold, run.scores),
        )
        out.append(topic)
    return out
