"""What a discovery goes through, one by one: the classes of a classifier or of a probe, the scores of a
detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.findings.result import Token
from pfungst.audit.images import Labelled
from pfungst.audit.pictures import plotted
from pfungst.audit.result import Variant
from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.data.traits import BurntInText, box_mask, file_columns
from pfungst.discover import ClassSubject, Explanations, ScoreSubject, Subject, explain, explain_scores
from pfungst.discover.columns import Told, told
from pfungst.discover.explain import Marks
from pfungst.discover.find import WRITTEN, Finding, Mend, Probes
from pfungst.discover.mend import Edit, Pairs, class_edits, score_edits
from pfungst.discover.prove import FEWEST, N_TARGETS, PICTURES, Medium
from pfungst.discover.series import OverTime
from pfungst.discover.subjects import What
from pfungst.features import combined, model_key
from pfungst.probes.plan import Plan, fit_probe, predict
from pfungst.spurious import FeatureHead, Witness
from pfungst.spurious.heads import LinearHead, logits_of

if TYPE_CHECKING:
    from pfungst.anomaly import Detector

Draw = Callable[[Tensor, "np.ndarray | None"], np.ndarray]
# of class k, the parts and numbers of inputs, how far it is → their explanations
Explaining = Callable[[int, np.ndarray, Sequence[int], Callable[[int], object]], Explanations]


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

    @property
    def others(self) -> int:
        """Images that things are put into: two for each that is changed, so that none is drawn twice and the
        intervals over the changed images hold the chance of both."""
        return N_TARGETS * max(self.changed, WRITTEN)


@dataclass(frozen=True)
class Topic:
    """One subject with its images.

    Attributes:
        name: of the class, or of the detector and its images.
        subjects: what is proved; several where images are answered by different probes. probes: by which, see
            :func:`pfungst.discover.find`.
        ids: of its N images, in order. load: rows of them → (n, C, H, W).
        others: (M, C, H, W) that are not of it.
        explained: explains all N, told how many are done.
        columns: values (N,) that clusters are compared with.
        state: names the images and the model as they are now.
        mend: gives the edits that fit a finding.
        told: what columns tell of the class, from all images and labels; nothing of a detector.
        text: where text is burnt in, if that was looked for. units: (N,) what is not independent.
        draw: makes a picture (H, W, 3) uint8 of what is no image, with a region (1, T) or None.
        medium: what the inputs are. written: the words of a text by row, with a region or None.
    """

    name: str
    subjects: Sequence[Subject]
    ids: Sequence[str]
    load: Callable[[Sequence[int]], Tensor]
    others: Callable[[], Tensor]
    explained: Callable[[Callable[[int], object]], Explanations]
    columns: dict[str, np.ndarray]
    state: str
    mend: Mend
    told: Callable[[], dict[str, Told]] = dict
    text: Marks | None = None
    units: np.ndarray | None = None
    probes: Probes | None = None
    draw: Draw | None = None
    medium: Medium = PICTURES
    written: Callable[[int, np.ndarray | None], list[Token]] | None = None

    @property
    def subject(self) -> Subject:
        """The first: what it is about."""
        return self.subjects[0]


@dataclass(frozen=True)
class Answers:
    """What is said of images that the model, or its probe, was not fitted to.

    Attributes:
        scores: (N, K) by class. labels: (N,) the class, −1 where it is none of these.
        columns: values (N,) by name. units: (N,) what is not independent, such as patients; None for images.
    """

    scores: np.ndarray
    labels: np.ndarray
    columns: dict[str, np.ndarray]
    units: np.ndarray | None = None

    def told(self, k: int, seed: int) -> dict[str, Told]:
        """What each column tells of class k against the others."""
        rest = np.delete(self.scores, k, 1).max(1)
        kept = np.isfinite(self.scores).all(1) & (self.labels >= 0)
        evidence, own = (self.scores[:, k] - rest)[kept], self.labels[kept] == k
        units = None if self.units is None else self.units[kept]
        found = {c: told(evidence, own, v[kept], units, seed) for c, v in self.columns.items()}
        return {c: t for c, t in found.items() if t is not None}


def drawn(rows: np.ndarray, count: int, *seeds: int) -> np.ndarray:
    """At most so many of some rows, at random, in order."""
    return np.sort(np.random.default_rng(seeds).permutation(rows)[:count])


def written(text: BurntInText | None, items: Sequence[Item], condition: Condition, size: int) -> Marks | None:
    """Where text lies in prepared images, by row: boxes in the file, prepared as the file is."""
    if text is None:
        return None

    def mask(item: Item) -> Tensor:
        boxes = text(item)
        if not len(boxes):
            return torch.zeros(size, size)
        width, height = item.read().size
        inside = np.repeat(box_mask(boxes, height, width)[..., None], 3, 2)
        return (condition(inside * np.uint8(255), size, key=item.id).amax(0) > 0.5).float()

    return lambda rows: torch.stack([mask(items[int(r)]) for r in rows])


def class_topics(
    head: FeatureHead,
    names: dict[int, str],
    data: Labelled,
    columns: dict[str, np.ndarray],
    witnesses: Callable[[int], Sequence[Witness]],
    effort: Effort,
    text: BurntInText | None = None,
) -> list[Topic]:
    """The classes `names` of a classifier that have enough images, and others beside them."""
    return topics_of(
        [head],
        names,
        effort,
        labels=np.array(data.labels),
        ids=data.ids,
        load=lambda rows: torch.stack([data[int(r)][1] for r in rows]),
        columns=columns,
        witnesses=witnesses,
        state=combined(data.state(None), model_key(head.model), sorted(columns), text is None),
        text=written(text, data.items, data.condition, data.size),
    )


def series_topics(
    head: FeatureHead,
    names: dict[int, str],
    series: Tensor,
    labels: np.ndarray,
    ids: Sequence[str],
    columns: dict[str, np.ndarray],
    witnesses: Callable[[int], Sequence[Witness]],
    effort: Effort,
) -> list[Topic]:
    """The classes `names` of a classifier of series (N, C, 1, T) in [0, 1], as of :func:`class_topics`."""
    model = head.model
    assert isinstance(model, OverTime)
    own = lambda x: model.units(x[None].to(head.device))[0, :, 0].cpu().numpy()
    bare = cache(lambda values: plotted(np.frombuffer(values, np.float32).reshape(len(series[0]), -1)))
    return topics_of(
        [head],
        names,
        effort,
        labels=labels,
        ids=ids,
        load=lambda rows: series[np.asarray(rows, dtype=int)],
        columns=columns,
        witnesses=witnesses,
        state=combined(series, labels.tolist(), ids, model_key(head.model), sorted(columns)),
        what="series",
        draw=lambda x, region: bare(own(x).tobytes()) if region is None else plotted(own(x), region),
    )


def encoder_topics(study: Any, effort: Effort) -> list[Topic]:
    """The classes of a probe on an encoder, each image answered by a probe that no image of its unit was
    fitted to: by those of the folds, or by one where a given split tests as many images as are explained.

    Beside its classes, what makes their images alike is explained.
    """
    plan, found, labels = study.plan, study.found, study.plan.labels
    original = Variant(condition=ORIGINAL)
    held = [int((labels[plan.tested] == c).sum()) for c in plan.classes]
    if plan.split == "given" and min(held) < effort.per_topic:
        seeds = (study.config.seed,)
        plan = Plan.make(labels, plan.units, how="folds", folds=study.config.folds, seeds=seeds)
        found = predict(plan, {original: study.original}, original, study.config.probe)
    folds, embedded = plan.rounds[0], study.original
    probes = [fit_probe(study.config.probe, embedded[train], labels[train]) for train, _ in folds]
    known = [c for c in plan.classes if all(c in p.classes_ for p in probes)]
    names = dict(enumerate(known))
    encoder = study.encoder.eval()
    example = study.source.pick([0, 1], [ORIGINAL])[ORIGINAL].to(encoder.device)
    heads = [FeatureHead(probe.attach(encoder).only(known), "head", example) for probe in probes]
    tests = plan.tested
    part = np.zeros(len(labels), int)
    for number, (_, rows) in enumerate(folds):
        part[rows] = number
    codes = np.array([known.index(c) if c in known else -1 for c in labels.tolist()])
    load = lambda rows: study.source.pick(tests[np.asarray(rows)].tolist(), [ORIGINAL])[ORIGINAL]
    items = study.source.items
    given = "files" in study.config.groups
    every = {**({} if given else file_columns(items)), **study.columns}
    places = [plan.classes.index(c) for c in known]
    answers = Answers(found.scores[original].mean(0)[:, places], codes, every, plan.units)
    trained = [train.tolist() for train, _ in folds]
    state = combined(study.source.state(), encoder.key(), study.config.probe, trained, sorted(every))
    marks = written(study.text, items, study.source.conditions[ORIGINAL], study.source.size)

    @cache
    def centre(number: int, k: int) -> Tensor:
        train = folds[number][0]
        mean = embedded[train][codes[train] == k].mean(0)
        return torch.from_numpy(mean / max(float(np.linalg.norm(mean)), 1e-12)).float()

    return topics_of(
        heads,
        names,
        effort,
        labels=codes[tests],
        ids=[items[r].id for r in tests],
        load=load,
        columns={name: values[tests] for name, values in every.items()},
        witnesses=lambda k: (),
        state=state,
        alike=lambda number, k: (encoder, centre(number, k)),
        answers=answers,
        text=None if marks is None else lambda rows: marks(tests[np.asarray(rows, int)].tolist()),
        units=None if plan.units is None else plan.units[tests],
        part=part[tests],
    )


def topics_of(
    heads: Sequence[FeatureHead],
    names: dict[int, str],
    effort: Effort,
    *,
    labels: np.ndarray,
    ids: Sequence[str],
    load: Callable[[Sequence[int]], Tensor],
    columns: dict[str, np.ndarray],
    witnesses: Callable[[int], Sequence[Witness]],
    state: str,
    alike: Callable[[int, int], tuple[torch.nn.Module, Tensor]] | None = None,
    answers: Answers | None = None,
    text: Marks | None = None,
    units: np.ndarray | None = None,
    part: np.ndarray | None = None,
    what: What = "class",
    draw: Draw | None = None,
    explaining: Explaining | None = None,
    subject: Callable[..., ClassSubject] = ClassSubject,
    medium: Medium = PICTURES,
) -> list[Topic]:
    """The classes `names` of heads on the same features that have enough inputs, and others beside them;
    `part` says which head answers for each input."""
    head = heads[0]
    mean = torch.stack([h.linear.weight for h in heads]).mean(0)
    weights = LinearHead(mean) if len(heads) > 1 else None

    @cache
    def answered() -> Answers:
        if answers is not None:
            return answers
        each = [
            drawn(np.flatnonzero(labels == k), effort.per_topic, effort.seed, k) for k in np.unique(labels)
        ]
        rows = np.sort(np.concatenate(each))
        with torch.no_grad():
            parts = (load(p.tolist()).to(head.device) for p in np.split(rows, range(16, len(rows), 16)))
            said = torch.cat([logits_of(head.model(x)).cpu() for x in parts]).double().numpy()
        return Answers(said, labels[rows], {name: values[rows] for name, values in columns.items()})

    def one(k: int) -> Topic:
        usable = np.ones(len(labels), bool)
        if part is not None:  # what is put into an image has to be of its probe
            usable = np.isin(part, part[labels != k]) & np.isin(part, part[labels == k])
        rows = drawn(np.flatnonzero(usable & (labels == k)), effort.per_topic, effort.seed, k)
        others = drawn(np.flatnonzero(usable & (labels != k)), effort.others, effort.seed, k, 1)
        probes = None
        if part is not None:
            missed = np.setdiff1d(part[rows], part[others])
            more = [drawn(np.flatnonzero((part == p) & (labels != k)), 1, effort.seed, k, 2) for p in missed]
            others = np.concatenate([others, *more])
            probes = part[rows], part[others]
        own = lambda chosen: load(rows[np.asarray(list(chosen), dtype=int)].tolist())

        def explained(advance: Callable[[int], object]) -> Explanations:
            if explaining is not None and part is not None:
                return explaining(k, part[rows], rows.tolist(), advance)
            done = []
            for number, one in enumerate(heads):
                at = np.flatnonzero(part[rows] == number) if part is not None else np.arange(len(rows))
                if not len(at):
                    continue
                near = None if alike is None else alike(number, k)
                get = lambda chosen, at=at: own(at[np.asarray(list(chosen), dtype=int)])
                size = effort.batch_size
                done.append(
                    (at, explain(one, k, get, len(at), "auto", size, advance, alike=near, weights=weights))
                )
            return Explanations.joined(done)

        subjects = [subject(one, k, witnesses(k), what) for one in heads]

        def mend(f: Finding, pairs: Pairs, e: Explanations) -> list[Edit]:
            rest = np.setdiff1d(np.arange(len(rows)), f.rows)
            psi = e.psi[rest].mean(0) if e.psi is not None and len(rest) else None
            return class_edits(subjects, pairs, psi, f.contrast, f.bands, effort.batch_size)

        return Topic(
            names[k],
            subjects,
            [ids[r] for r in rows],
            own,
            lambda: load(others.tolist()),
            explained,
            {name: values[rows] for name, values in columns.items()},
            state,
            mend,
            lambda: answered().told(k, effort.seed) if columns and k != repeated else {},
            None if text is None else lambda chosen: text(rows[np.asarray(list(chosen), dtype=int)].tolist()),
            None if units is None else units[rows],
            probes,
            draw,
            medium,
        )

    able = [k for k in sorted(names) if FEWEST <= int((labels == k).sum()) < len(labels)]
    repeated = able[1] if head.linear.n_classes == len(able) == 2 else -1  # columns tell both at once
    return [one(k) for k in able]


def score_topics(study: Any, model: str, run: Any, effort: Effort, name: str = "") -> list[Topic]:
    """The scores of a fitted detector of specification `model`, on normal and on defective test images."""
    from pfungst.anomaly import detector_from_spec

    images, labels, detector = study.test.images, study.labels, run.detector
    columns = {**file_columns(study.test.items), **study.columns}
    normal = study.train[drawn(np.arange(len(study.train)), effort.others, effort.seed)]

    def fit(layer: torch.nn.Module | None, x: Tensor) -> Detector:
        device = study.config.device
        spec = study.detectors.given.get(model, model)
        return detector_from_spec(spec, features=layer, seed=effort.seed, device=device).fit(x)

    def one(what: What, rows: np.ndarray, others: Tensor) -> Topic:
        def own(chosen: Iterable[int]) -> Tensor:
            return images[rows[np.asarray(list(chosen), dtype=int)]]

        def mend(f: Finding, pairs: Pairs, e: Explanations) -> list[Edit]:
            if what == "defect":
                return []
            return score_edits(fit, study.train, images, labels, rows[f.rows], f.kind)

        return Topic(
            f"{name or model}, {'defective' if what == 'defect' else 'normal'} images",
            [ScoreSubject(detector, int(what == "defect"), what, run.threshold)],
            [study.test.ids[r] for r in rows],
            own,
            lambda: others,
            lambda advance: explain_scores(
                detector, own, len(rows), run.threshold, effort.batch_size, advance
            ),
            {c: v[rows] for c, v in columns.items()},
            combined(study.test.ids, model, run.threshold, run.scores),
            mend,
        )

    good, bad = (drawn(np.flatnonzero(labels == d), effort.per_topic, effort.seed, d) for d in (0, 1))
    topics = [one("normal", good, normal)] if len(good) >= FEWEST else []
    beside = images[drawn(np.flatnonzero(labels == 0), effort.others, effort.seed)]
    return topics + ([one("defect", bad, beside)] if len(bad) >= FEWEST else [])
