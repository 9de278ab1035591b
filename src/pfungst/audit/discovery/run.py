"""Discovery in a classifier: cluster the explanations of each class, prove each cluster, say what
survived."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.images import Labelled, to_uint8
from pfungst.audit.classifier.pictures import PictureFolder
from pfungst.audit.classifier.prepare import choose_classes, open_labelled, read_names
from pfungst.audit.config import check_file
from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.result import Column, DiscoveryEntry, DiscoveryResult, Grouped, Proved, Shown
from pfungst.audit.machine import circumstances
from pfungst.audit.recognised import describe, estimate_preparation
from pfungst.audit.result import About, Interval, Metric, Skipped, Verdict, save
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace, data_state, refuse_old_result, resumed_result
from pfungst.conditions import Condition
from pfungst.data import ImageSet, Item
from pfungst.data.outputs import Outputs, match_outputs
from pfungst.device import choose_device
from pfungst.discover import Clustering, Finding, Proof, explain, find, over_represented
from pfungst.discover.find import SHOWN
from pfungst.discover.prove import FEWEST
from pfungst.encoders import Classifier, load
from pfungst.encoders.specification import short_name
from pfungst.errors import DataError, InputError, PfungstWarning, UnreadableImages, few
from pfungst.features import combined, model_key
from pfungst.measure import Interval as Measured
from pfungst.measure import holm
from pfungst.measure.limits import CARRIED, P_SPURIOUS, RETAINED, STABLE
from pfungst.progress import progress_bar
from pfungst.spurious import FeatureHead, Witness

_OTHERS = 100  # images of other classes that things are put into


@dataclass(frozen=True)
class _Study:
    """Everything that a class's turn needs."""

    config: DiscoveryConfig
    classifier: Classifier
    head: FeatureHead
    witnesses: list[torch.nn.Module]
    outputs: Outputs
    data: Labelled
    columns: dict[str, np.ndarray]
    skipped: list[tuple[str, str]]

    def images(self, rows: Sequence[int]) -> Tensor:
        return torch.stack([self.data[r][1] for r in rows])

    def rows(self, class_: int) -> np.ndarray:
        """Images of a class that are explained, in order."""
        rng = np.random.default_rng((self.config.seed, class_))
        own = np.flatnonzero(np.array(self.data.labels) == class_)
        return np.sort(rng.permutation(own)[: self.config.per_class])


def dry_run(config: DiscoveryConfig) -> str:
    """What the data are recognised as, and the time of reading them; nothing is written."""
    images = open_labelled(config.images, config, training=False)
    conditions = [Condition.parse("pillow-bilinear")]
    return f"{describe([images], [])}\n\n{estimate_preparation([images], conditions, config.size or 224)}"


def run(config: DiscoveryConfig) -> DiscoveryResult:
    """Discover; writes ``result.json`` and ``images/`` into ``config.out``. Finished classes survive an
    interruption.

    Raises:
        ConfigError, DataError, InputError, CheckpointError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    refuse_old_result(config)
    choose_device(config.device)
    check_file(config.checkpoint, "--checkpoint")
    given, names = open_labelled(config.images, config, training=False), read_names(config.class_names)
    data = data_state(given.items)
    if (done := resumed_result(config, data)) is not None:
        return done
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PfungstWarning)
        study = _study(config, given, names)
        chosen = sorted(choose_classes(config.classes, study.outputs, set(study.data.labels)))
        counts = {k: study.data.labels.count(k) for k in chosen}
        able = [k for k in chosen if counts[k] >= FEWEST and counts[k] < len(study.data)]
        workspace = Workspace(config, data)
        state = combined(study.data.state(None), model_key(study.head.model), sorted(study.columns))
        entries = []
        with progress_bar("classes", len(able)) as bar:
            for k in able:
                bar.say(study.outputs.name(k))
                entry = workspace.load_part(f"class {k} {state}", DiscoveryEntry)
                if entry is None:
                    entry = _entry(study, k, workspace)
                    workspace.save_part(f"class {k} {state}", entry)
                entries.append(entry)
                bar.advance()
    entries = _corrected(entries)
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, PfungstWarning)))
    if workspace.resumed:
        notes.append(f"{workspace.resumed} finished classes were taken over from an interrupted run")
    too_few = {study.outputs.name(k): counts[k] for k in chosen if k not in able}
    command = _command(config, entries)
    result = DiscoveryResult(
        title=f"{short_name(config.model)} on {config.images.resolve().name}",
        **circumstances(config, started, workspace.fingerprint),
        verdict=_verdict(entries, too_few, study),
        metrics=_metrics(entries),
        skipped=[Skipped(id=i, reason=r) for i, r in study.skipped],
        notes=notes + _how(study),
        model=short_name(config.model),
        weights=study.classifier.weights,
        preprocessing=study.classifier.preprocessing.to_dict(),
        witnesses=[short_name(w) for w in config.witness],
        named_by=study.outputs.order,
        tried=sum(len(e.findings) for e in entries),
        entries=entries,
        too_few=too_few,
        next_command=command,
    )
    save(result, workspace.folder)
    kept = {s.file for e in entries for f in e.findings for s in f.images}
    PictureFolder(workspace.folder).tidy(kept)
    workspace.finish({e.arrays for e in entries})
    return result


def _study(config: DiscoveryConfig, given: ImageSet, names: list[str] | None) -> _Study:
    opened = lambda spec, checkpoint: load(
        spec,
        "classifier",
        checkpoint=checkpoint,
        trust_checkpoint=config.trust_checkpoint,
        size=config.size,
        condition=config.original,
        device=config.device,
    )
    classifier = opened(config.model, config.checkpoint)
    witnesses = [opened(spec, None).model for spec in config.witness]
    preprocessing = classifier.preprocessing
    size = preprocessing.size
    condition = Condition.parse(preprocessing.condition)
    items, skipped = _readable(given, config.skip_bad)
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    head = FeatureHead(classifier.model, config.layer, example.to(choose_device(config.device)))
    n_outputs = head.linear.n_classes
    outputs = match_outputs([str(i.label) for i in items], n_outputs, names)
    for spec, witness in zip(config.witness, witnesses, strict=True):
        with torch.no_grad():
            shape = tuple(witness(example.to(head.device)).shape)
        if shape != (2, n_outputs):
            raise InputError(
                f"the witness {spec} has {shape[-1]} outputs, the model {n_outputs}",
                "name a model with the same outputs",
            )
    data = Labelled(items, [outputs.index[str(i.label)] for i in items], condition, size)
    columns = group_columns(items, config.group)
    return _Study(config, classifier, head, witnesses, outputs, data, columns, skipped)


def _readable(given: ImageSet, skip_bad: bool) -> tuple[list[Item], list[tuple[str, str]]]:
    """The items that can be decoded; without `skip_bad` all must."""
    try:
        given.check(progress=True)
        return given.items, []
    except UnreadableImages as error:
        if not skip_bad:
            raise
        bad = dict(error.problems)
        kept = [i for i in given.items if i.file not in bad]
        if not kept:
            raise DataError(f"no image of {given.name} can be read", "repair them") from None
        return kept, list(bad.items())


def _entry(study: _Study, class_: int, workspace: Workspace) -> DiscoveryEntry:
    config, rows = study.config, study.rows(class_)
    images = lambda chosen: study.images(rows[np.asarray(list(chosen))].tolist())
    name = study.outputs.name(class_)
    with progress_bar(f"explaining {name}", len(rows)) as bar:
        explained = explain(
            study.head, class_, images, len(rows), batch_size=config.batch_size, progress=bar.advance
        )
    rng = np.random.default_rng((config.seed, class_, 1))
    elsewhere = np.flatnonzero(np.array(study.data.labels) != class_)
    others = study.images(np.sort(rng.permutation(elsewhere)[:_OTHERS]).tolist())
    found, parts = find(
        study.head,
        explained,
        images,
        others,
        [Witness(w, class_) for w in study.witnesses],
        most=config.most,
        n_images=config.changed,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    right = explained.predicted == class_
    pictures = PictureFolder(workspace.folder)
    regions = {str(i): f.regions for i, f in enumerate(found) if f.regions is not None}
    return DiscoveryEntry(
        index=class_,
        name=name,
        n=len(rows),
        accuracy=float(right.mean()),
        groupings=[_grouped(view, c) for view, c in parts.items()],
        findings=[_proved(study, i, f, rows, right, pictures) for i, f in enumerate(found)],
        arrays=workspace.save_arrays(f"class {class_}", regions),
    )


def _grouped(view: str, c: Clustering) -> Grouped:
    gaps, expected = c.gaps.tolist(), c.expected.tolist()
    return Grouped(view=view, n_clusters=c.n_clusters, gaps=gaps, expected=expected, stability=c.stability)


def _proved(
    study: _Study, number: int, f: Finding, rows: np.ndarray, right: np.ndarray, pictures: PictureFolder
) -> Proved:
    member = np.zeros(len(rows), bool)
    member[f.rows] = True
    over = (
        over_represented(member, {n: v[rows] for n, v in study.columns.items()}) if f.n_clusters > 1 else []
    )
    shown = []
    for row in f.rows[:SHOWN].tolist():
        id_, image, _ = study.data[int(rows[row])]
        shown.append(Shown(id=id_, file=pictures.photo(to_uint8(image), id_)))
    p = f.proof
    return Proved(
        number=number,
        view=f.view,
        kind=f.kind,
        cluster=f.cluster,
        n_clusters=f.n_clusters,
        n=len(f.rows),
        share=f.share,
        recognised=float(right[f.rows].mean()),
        columns=[Column(**vars(o)) for o in over],
        images=shown,
        map=[[float(v) for v in line] for line in f.map],
        bands=list(f.bands),
        changed=p.n,
        remove=_interval(p.remove),
        insert=_interval(p.insert),
        accuracy=p.accuracy,
        flips=p.flips,
        retained=_interval(p.retained),
        p=p.p,
    )


def _interval(i: Measured) -> Interval:
    return Interval(value=i.value, low=i.low, high=i.high)


def _corrected(entries: list[DiscoveryEntry]) -> list[DiscoveryEntry]:
    """p corrected over all clusters of all classes, and what follows from it."""
    corrected = iter(holm([f.p for e in entries for f in e.findings]) if entries else [])
    out = []
    for entry in entries:
        findings = []
        for f in entry.findings:
            remove, insert, retained = (
                Measured(i.value, float(i.low or 0), float(i.high or 0))
                for i in (f.remove, f.insert, f.retained)
            )
            proof = Proof(f.changed, remove, insert, f.accuracy, f.flips, retained, f.p, next(corrected))
            standing = "found" if proof.survives else "object" if proof.decides else "unproved"
            told = {"corrected": proof.corrected, "standing": standing, "reason": proof.reason}
            findings.append(f.model_copy(update=told))
        order = ("found", "object", "unproved")
        findings.sort(key=lambda f: (order.index(f.standing), -float(f.insert.low or 0)))
        out.append(entry.model_copy(update={"findings": findings}))
    return out


def _verdict(entries: list[DiscoveryEntry], too_few: dict[str, int], study: _Study) -> Verdict:
    tried = sum(len(e.findings) for e in entries)
    if not tried:
        return Verdict(
            level="too-few",
            headline=f"No class has {FEWEST} images beside those of others",
            sentences=[f"There are {few(f'{n} of {c}' for c, n in too_few.items())}."],
        )
    pairs = [(e, f) for e in entries for f in e.findings if f.standing == "found"]
    pairs.sort(key=lambda pair: -float(pair[1].insert.low or 0))
    basis = f"{tried} clusters of explanations of {len(entries)} classes were tried"
    blind = (
        "An artefact in nearly every image of a class, and what has neither a place, nor content that moves, "
        "nor a frequency of its own (a colour cast, blur), can escape."
    )
    unsure = [e.name for e in entries if any(f.standing == "object" for f in e.findings)]
    open_ = (
        f"Of {few(unsure)} the model follows something that it cannot do without: the object, or a shortcut. "
        "Only another model can tell: name one with --witness."
    )
    if not pairs:
        return Verdict(
            level="sound",
            headline=f"Nothing beside the object was proved to decide; {basis}",
            sentences=[
                *([open_] if unsure and not study.witnesses else []),
                "What was not found is not shown to be absent.",
                blind,
            ],
        )
    entry, first = pairs[0]
    classes = list(dict.fromkeys(e.name for e, _ in pairs))
    sentences = [f"{entry.name}: {what_of(f)} {f.reason}." for entry, f in pairs[:3]]
    if not study.witnesses:
        sentences.append("Without a witness, the object is what the audited model itself still recognises.")
    sentences.append(f"{basis}; look at the pictures before you call it spurious.")
    numbers = {
        "share": first.share,
        "insert": first.insert.value,
        "flips": first.flips[0],
        "found": len(pairs),
    }
    return Verdict(
        level="clever-hans",
        headline=f"{entry.name} is decided by something beside the object in {first.share:.0%} of its images"
        + (f"; and {len(classes) - 1} more classes" if len(classes) > 1 else ""),
        sentences=sentences,
        about=About(entry=entry.name, numbers=numbers),
    )


def what_of(f: Proved) -> str:
    """What a cluster shares, in words that start a sentence."""
    some = f"in {f.share:.0%} of its images " if f.n_clusters > 1 else "in all of its images "
    kinds = {"place": "what lies at one place", "content": "content that the features share"}
    return some + kinds.get(f.kind, f"frequency bands {few(map(str, f.bands))} of 8") + ":"


def _metrics(entries: list[DiscoveryEntry]) -> dict[str, Metric]:
    if not entries:
        return {}
    found = {e.name: [f for f in e.findings if f.standing == "found"] for e in entries}
    count = {name: float(len(fs)) for name, fs in found.items()}
    flips = {name: max((f.flips[0] - f.flips[1] for f in fs), default=0.0) for name, fs in found.items()}
    return {
        "findings": Metric.worst(count, "lower", "findings of a class that survived proof"),
        "flips": Metric.worst(
            flips, "lower", "other images taken for the class once it is put into them, beyond controls"
        ),
    }


def _command(config: DiscoveryConfig, entries: list[DiscoveryEntry]) -> str:
    classes = [str(e.index) for e in entries if any(f.standing == "found" for f in e.findings)]
    if not classes:
        return ""
    words = ["pfungst", "audit", "classifier", "--model", config.model]
    words += ["--checkpoint", str(config.checkpoint)] if config.checkpoint else []
    words += ["--train", "TRAIN", "--val", str(config.images), "--classes", ",".join(classes)]
    return shlex.join([*words, "--out", f"{config.out}-mend"])


def _how(study: _Study) -> list[str]:
    config = study.config
    return [
        f"Explained is the logit of a class on up to {config.per_class} of its images, by layer-wise "
        "relevance "
        "propagation; clustered are its heatmaps by patches, its spectra and its relevance by penultimate "
        "features, each of norm 1.",
        "Clusters are spectral, on a graph of 10 nearest neighbours. Their number is that of the eigengap "
        "which "
        "most exceeds those of 19 single clouds of the same covariance, if resamples agree (adjusted Rand "
        "index "
        f"{STABLE:.1f} or more); else one.",
        f"Each cluster of {FEWEST} images or more is tried on {config.changed} of them, drawn at random. "
        "Found is "
        "what lowers the evidence when taken away more than a control does, raises the class when put into "
        "images "
        "of other classes, beyond other content of the same images and the content of the class's other "
        "images, by "
        f"{CARRIED:.0%} of the way at the lower end, with P ≤ {P_SPURIOUS:g} after Holm's correction for all "
        f"clusters of all classes, and without which at least {RETAINED:.0%} (lower end) of the images are "
        "still "
        "recognised.",
        "Intervals are 95 % bootstrap over the changed images.",
    ]
