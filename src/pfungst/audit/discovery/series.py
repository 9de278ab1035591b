"""``pfungst discover --series``: a classifier of time series and its data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pfungst.audit.classifier.prepare import choose_classes, read_names
from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.given import Given, check_witnesses
from pfungst.audit.findings.topics import series_topics
from pfungst.audit.sources import AUTOMATIC, group_columns
from pfungst.data.outputs import match_outputs
from pfungst.data.series import Series, read_series, series_columns
from pfungst.device import choose_device
from pfungst.discover.series import OverTime
from pfungst.encoders import load
from pfungst.errors import few
from pfungst.features import combined
from pfungst.spurious import FeatureHead, Witness


@dataclass(frozen=True)
class Opened:
    """The data, and what names them as they are now."""

    series: Series
    labels: list[str]
    state: str


def opened(config: DiscoveryConfig) -> Opened:
    """Read the series. Raises DataError, see :func:`pfungst.data.series.read_series`."""
    label, named = config.label_column, [g for g in config.group if g not in ("auto", "none", *AUTOMATIC)]
    series = read_series(config.data, (label,), named)
    columns = {name: series.columns[name].tolist() for name in sorted(series.columns)}
    return Opened(series, series.columns[label].tolist(), combined(series.values, series.ids, columns))


def describe(config: DiscoveryConfig) -> str:
    """What ``--dry-run`` says."""
    given = opened(config)
    n, channels, length = given.series.values.shape
    classes = few(f"{name} ({count})" for name, count in sorted(Counter(given.labels).items()))
    groups = few(c for c in given.series.columns if c not in (config.label_column, "id")) or "none"
    channel = "channel" if channels == 1 else "channels"
    return (
        f"{config.data}: {n} series of {length} points, {channels} {channel}\n  classes: {classes}\n"
        f"  columns of groups: {groups}"
    )


def prepared(config: DiscoveryConfig, given: Opened) -> Given:
    """The classes of the series, and the model. Raises ConfigError, CheckpointError, InputError."""
    assert config.model is not None
    names, place = read_names(config.class_names), choose_device(config.device, float64=True)
    values = torch.from_numpy(given.series.values).float()

    def read(spec: str, checkpoint: Any) -> tuple[OverTime, str]:
        trust = config.trust_checkpoint
        made = load(spec, "classifier", checkpoint=checkpoint, trust_checkpoint=trust, device=config.device)
        return OverTime(made.model, values).to(place).eval(), made.weights

    model, weights = read(config.model, config.checkpoint)
    witnesses = {spec: read(spec, None)[0] for spec in config.witness}
    series = model.scaled(values.to(place)).cpu()
    head = FeatureHead(model, config.layer, series[:8].to(place))
    outputs = match_outputs(given.labels, head.linear.n_classes, names)
    check_witnesses(witnesses, head, series[:2])
    labels = np.array([outputs.index[label] for label in given.labels])
    wanted = [g for g in config.group if g != "files"]
    columns = group_columns(given.series.items(config.label_column), wanted)
    columns |= series_columns(given.series.values) if "files" in config.group else {}
    chosen = choose_classes(config.classes, outputs, set(labels.tolist()))
    called = {k: outputs.name(k) for k in chosen}
    judges = lambda k: [Witness(w, k) for w in witnesses.values()]
    topics = series_topics(head, called, series, labels, given.series.ids, columns, judges, config.effort)
    able = {t.subject.index for t in topics}
    missed = {called[k]: int((labels == k).sum()) for k in sorted(chosen) if k not in able}
    n, channels, length = given.series.values.shape
    told = {"series": n, "channels": channels, "points": length}
    told |= {"scaled": "by the range of each channel for what is changed; the model reads its own units"}
    return Given(topics, weights, told, outputs.order, too_few=missed)
