"""``pfungst discover``: of a classifier, an encoder with a probe, or a detector, what nobody named."""

from __future__ import annotations

import shlex
import time
import warnings
from typing import Any

import torch

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.classifier.prepare import choose_classes, open_labelled, read_names
from pfungst.audit.config import AuditConfig, check_file
from pfungst.audit.discovery import series, texts
from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.given import Given, check_witnesses
from pfungst.audit.findings.result import Discovered, DiscoveryResult
from pfungst.audit.findings.search import search
from pfungst.audit.findings.task import GROUPS, read_answers, write_groups, write_label_task
from pfungst.audit.findings.topics import class_topics, encoder_topics, score_topics
from pfungst.audit.findings.verdict import conclude, how, metrics, verdict
from pfungst.audit.given import ImageOptions
from pfungst.audit.images import Labelled
from pfungst.audit.machine import circumstances
from pfungst.audit.pictures import PictureFolder
from pfungst.audit.recognised import describe, estimate_preparation
from pfungst.audit.result import Skipped, save
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace, data_state, refuse_old_result, resumed_result
from pfungst.conditions import Condition
from pfungst.data import ImageSet, Item
from pfungst.data.columns import join_columns
from pfungst.data.outputs import match_outputs
from pfungst.data.traits import BurntInText
from pfungst.device import choose_device
from pfungst.encoders import Encoder, load
from pfungst.encoders.specification import short_name
from pfungst.errors import ConfigError, DataError, PfungstWarning, UnreadableImages
from pfungst.progress import progress_bar
from pfungst.spurious import FeatureHead, Witness

_OTHER: dict[str, Any] = {"series": series, "texts": texts}  # what is no image: opened, described, prepared
_DATA = sorted({*ImageOptions.model_fields} - {*AuditConfig.model_fields, "dry_run"})


def dry_run(config: DiscoveryConfig) -> str:
    """What the data are recognised as, and the time of reading them; nothing is written."""
    if kind := _OTHER.get(config.noun):
        return kind.describe(config)
    images = _opened(config)
    conditions = [Condition.parse("pillow-bilinear")]
    return f"{describe(images, [])}\n\n{estimate_preparation(images, conditions, config.size or 224)}"


def _opened(config: DiscoveryConfig) -> list[ImageSet]:
    """The images: of a detector one set for each category."""
    if config.detector:
        from pfungst.audit.anomaly.prepare import check, open_sets

        given = _of_detector(config)
        check(given)
        return [_with_columns(images, config) for images in open_sets(given)]
    if config.encoder:
        from pfungst.audit.similarity.prepare import open_labelled as open_probed

        images = open_probed(_of_encoder(config))
        if not isinstance(images, ImageSet):
            raise ConfigError(f"{config.data} holds texts", "give --texts FILE for --images")
        return [images]
    return [_with_columns(open_labelled(config.data, config, training=False), config)]


def _with_columns(images: ImageSet, config: DiscoveryConfig) -> ImageSet:
    """The same images with the columns of the groups file, where one is given."""
    if config.groups_file is None:
        return images
    items, notes = join_columns(images.items, config.groups_file)
    return images.of(items, [*images.notes, *notes])


def _of_detector(config: DiscoveryConfig) -> AnomalyConfig:
    condition = config.original or "pillow-bilinear"
    return AnomalyConfig.build(
        data=config.data,
        model=[config.detector],
        groups=config.group,
        original=condition,
        deployed=condition,
        mitigate="none",
        seeds=1,
        **config.shared("size", "label_column", *_DATA),
    )


def _of_encoder(config: DiscoveryConfig) -> SimilarityConfig:
    return SimilarityConfig.build(
        images=config.data,
        encoder=config.encoder,
        labels=config.labels,
        groups=config.group,
        classes=config.classes,
        split="folds",  # every image is answered once by a probe that was not fitted to it
        seeds=1,
        **config.shared("checkpoint", "trust_checkpoint", "size", "original", "groups_file", *_DATA),
    )


def run(config: DiscoveryConfig) -> DiscoveryResult:
    """Discover; writes ``result.json`` and ``images/`` into ``config.out``. Finished topics survive an
    interruption.

    Raises:
        ConfigError, DataError, InputError, CheckpointError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    started = time.monotonic()
    refuse_old_result(config)
    choose_device(config.device, float64=True)
    check_file(config.checkpoint, "--checkpoint")
    check_file(config.answers, "--answers")
    check_file(config.groups_file, "--groups-file")
    kind = _OTHER.get(config.noun)
    opened: Any = kind.opened(config) if kind else _opened(config)
    data = opened.state if kind else data_state(item for images in opened for item in images.items)
    if (done := resumed_result(config, data)) is not None:
        return _judged(done, config) if config.answers else done
    workspace = Workspace(config, data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PfungstWarning)
        if kind:
            given = kind.prepared(config, opened)
        elif config.detector:
            given = _detector(config, opened)
        elif config.encoder:
            given = _encoder(config, opened[0], workspace)
        else:
            given = _classifier(config, opened[0])
        answers = read_answers(config.answers, workspace.fingerprint) if config.answers else None
        found = conclude(search(given.topics, config.effort, workspace), config.witness, answers)
    notes = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, PfungstWarning)))
    if workspace.resumed:
        notes.append(f"{workspace.resumed} finished topics were taken over from an interrupted run")
    result = DiscoveryResult(
        title=f"{short_name(config.audited)} on {config.data.resolve().name}",
        **circumstances(config, started, workspace.fingerprint),
        verdict=verdict(found, given.too_few),
        metrics=metrics(found),
        skipped=[Skipped(id=i, reason=r) for i, r in given.skipped],
        notes=[*given.notes, *notes, *how(config.effort, config.noun)],
        model=short_name(config.audited),
        weights=given.weights,
        preprocessing=given.preprocessing,
        witnesses=[short_name(w) for w in config.witness],
        named_by=given.named_by,
        discovered=found,
        too_few=given.too_few,
        next_command=_command(config, found),
    )
    write_groups(workspace.folder, found, workspace.folder)
    write_label_task(workspace.folder, result.title, result.model, result.inputs, found.entries)
    save(result, workspace.folder)
    PictureFolder(workspace.folder).tidy(found.files())
    workspace.finish(found.arrays())
    return result


def _judged(done: DiscoveryResult, config: DiscoveryConfig) -> DiscoveryResult:
    """A finished result with what people say of its findings."""
    assert config.answers is not None
    answers = read_answers(config.answers, done.inputs)
    found = conclude(done.discovered.entries, config.witness, answers)
    update = {
        "discovered": found,
        "verdict": verdict(found, done.too_few),
        "metrics": metrics(found),
        "next_command": _command(config, found),
    }
    write_groups(config.out, found, config.out)
    result = done.model_copy(update=update)
    save(result, config.out)
    return result


def _classifier(config: DiscoveryConfig, given: ImageSet) -> Given:
    assert config.model is not None
    names = read_names(config.class_names)
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
    items, skipped = _readable(given, config.skip_bad)
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    head = FeatureHead(classifier.model, config.layer, example.to(choose_device(config.device, float64=True)))
    outputs = match_outputs([str(i.label) for i in items], head.linear.n_classes, names)
    check_witnesses(dict(zip(config.witness, witnesses, strict=True)), head, example)
    labels = [outputs.index[str(i.label)] for i in items]
    data = Labelled(items, labels, Condition.parse(preprocessing.condition), size)
    text = BurntInText(config.out / "text.json") if "text" in config.group else None
    columns = group_columns(items, config.group, text)
    chosen = choose_classes(config.classes, outputs, set(labels))
    topics = class_topics(
        head,
        {k: outputs.name(k) for k in chosen},
        data,
        columns,
        lambda k: [Witness(w, k) for w in witnesses],
        config.effort,
        text,
    )
    able = {t.subject.index for t in topics}
    too_few = {outputs.name(k): labels.count(k) for k in sorted(chosen) if k not in able}
    told = classifier.weights, preprocessing.to_dict(), outputs.order
    return Given(topics, *told, skipped, too_few)


def _encoder(config: DiscoveryConfig, images: ImageSet, workspace: Workspace) -> Given:
    from pfungst.audit.similarity.prepare import Study

    assert config.encoder is not None
    encoder = _of_encoder(config).open_encoder()
    if not isinstance(encoder, Encoder):
        raise ConfigError(f"the encoder {config.encoder} reads texts", "give --texts FILE for --images")
    with progress_bar("embedding", len(images.items)) as bar:
        study = Study.of(encoder, images, _of_encoder(config), workspace, bar)
    topics = encoder_topics(study, config.effort)
    weights = "trained" if encoder.trained else "random"
    told = weights, encoder.preprocessing.to_dict(), "sorted labels of a probe"
    able, labels = {t.name for t in topics}, study.plan.labels.tolist()
    too_few = {c: labels.count(c) for c in study.plan.classes if c not in able}
    return Given(topics, *told, list(study.source.skipped), too_few, study.notes)


def _detector(config: DiscoveryConfig, sets: list[ImageSet]) -> Given:
    from pfungst.audit.anomaly.fitted import FittedDetectors
    from pfungst.audit.anomaly.measure import ORIGINAL, repeat
    from pfungst.audit.anomaly.prepare import Study, check

    assert config.detector is not None
    given = _of_detector(config)
    conditions = check(given)
    detectors = FittedDetectors(config.device, sets, {})
    topics, skipped = [], []
    for images in sets:
        study = Study.prepare(images, conditions, given, detectors)
        name = config.detector if len(sets) == 1 else f"{images.name} / {config.detector}"
        topics += score_topics(
            study, config.detector, repeat(study, config.detector)[ORIGINAL], config.effort, name
        )
        skipped += study.test.skipped
    told = "fitted", {"condition": given.original, "size": given.size}, "normal and defective"
    return Given(topics, *told, skipped)


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


def _command(config: DiscoveryConfig, found: Discovered) -> str:
    """What to paste next: the audit that measures what was found, and mends it."""
    pairs = [*found.found(), *found.sources()]
    if not pairs or config.noun in _OTHER:  # no audit goes through these: the page says what to do
        return ""
    checkpoint = ["--checkpoint", str(config.checkpoint)] if config.checkpoint else []
    out = ["--out", f"{config.out}-mend"]
    if config.detector:
        words = ["anomaly", str(config.data), "--model", config.detector, "--mitigate", "lowpass"]
        return shlex.join(["pfungst", "audit", *words, *out])
    if config.encoder:
        words = ["similarity", "--images", str(config.data), "--encoder", config.encoder, *checkpoint]
        parted = any(f.n_clusters > 1 for _, f in found.found())
        groups = ["--groups-file", str(config.out / GROUPS)] if parted else []
        return shlex.join(["pfungst", "audit", *words, "--groups", "auto,files", *groups, *out])
    classes = ",".join(str(e.index) for e in found.entries if any(e is one for one, _ in pairs))
    words = ["classifier", "--model", config.audited, *checkpoint, "--train", "TRAIN", "--val"]
    return shlex.join(["pfungst", "audit", *words, str(config.data), "--classes", classes, *out])
