"""``pfungst discover --texts``: a probe on a sentence encoder and its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.given import Given
from pfungst.audit.findings.texts import Read, read_texts, text_topics, written
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.prepare import make_plan, unit_column, usable
from pfungst.audit.sources import AUTOMATIC, group_columns
from pfungst.audit.workspace import data_state
from pfungst.data import Item
from pfungst.discover.texts import text_columns
from pfungst.encoders import Encoder, load
from pfungst.errors import ConfigError
from pfungst.probes import Plan


@dataclass(frozen=True)
class Opened:
    """The texts whose classes can be probed, the folds, their columns, what names them as they are now, and
    what was left out."""

    items: Sequence[Item]
    plan: Plan
    columns: dict[str, Any]
    state: str
    notes: Sequence[str]


def opened(config: DiscoveryConfig) -> Opened:
    """Read the texts. Raises ConfigError, DataError, see :func:`pfungst.audit.findings.texts.read_texts`."""
    assert config.texts is not None
    items = read_texts(config.texts, config.labels, config.classes)
    given = SimilarityConfig.build(
        texts=config.texts,
        encoder=config.encoder,
        keep_together=config.keep_together,
        split="folds",
        seeds=1,
        seed=config.seed,
    )
    unit_column(items, config.keep_together)
    items, notes = usable(items, given)
    columns = group_columns(items, [name for name in config.group if name not in AUTOMATIC])
    _, plan = make_plan(items, given)
    return Opened(items, plan, columns, data_state(items), [*notes, *plan.notes])


def describe(config: DiscoveryConfig) -> str:
    """What ``--dry-run`` says."""
    given = opened(config)
    count = Counter(i.label for i in given.items)
    kept = len(set(given.plan.units.tolist()))
    return "\n".join(
        [f"{config.texts}: {len(given.items)} texts, {kept} of them kept apart"]
        + [f"  {n} of {c}" for c, n in count.most_common()]
    )


def prepared(config: DiscoveryConfig, given: Opened) -> Given:
    """The classes of a probe, and the encoder. Raises ConfigError, InputError."""
    assert config.encoder is not None
    encoder: Any = load(config.encoder, device=config.device)
    if isinstance(encoder, Encoder):
        raise ConfigError(
            f"the encoder {config.encoder} reads images",
            "give --images DATA, or --encoder sentence-transformers:FOLDER",
        )
    items, columns, notes = given.items, given.columns, given.notes
    if "files" in config.group:
        columns = columns | text_columns([written(i) for i in items])
    read = Read.of(encoder, items, given.plan, columns)
    topics = text_topics(read, config.effort)
    if read.cut:
        notes = [
            *notes,
            f"{read.cut} of {len(items)} texts are longer than the {read.encoder.length} tokens "
            "that the encoder reads, and were cut there",
        ]
    able, labels = {t.name for t in topics}, given.plan.labels.tolist()
    too_few = {c: labels.count(c) for c in given.plan.classes if c not in able}
    reads = {"tokens": read.encoder.length, "pooling": encoder.pooling}
    return Given(topics, "trained", reads, "sorted labels of a probe", too_few=too_few, notes=notes)
