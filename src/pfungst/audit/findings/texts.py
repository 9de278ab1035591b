"""Texts of a table, and the classes of a probe on a sentence encoder, gone through like those of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfungst.audit.findings.result import Token
from pfungst.audit.findings.topics import Answers, Effort, Topic, topics_of
from pfungst.data import Item
from pfungst.data.delimited import read_rows, require
from pfungst.data.tables import parquet_rows
from pfungst.discover import Explanations
from pfungst.discover.texts import Texts, TextSubject, TokenEncoder, Word, explain_texts
from pfungst.errors import DataError, few
from pfungst.features import combined, model_key
from pfungst.probes.plan import Plan, fit_probe, predict
from pfungst.spurious import FeatureHead
from pfungst.suggest import suggest

TEXT = "text"
_SHOWN = 120  # words of a text that are shown


def read_texts(path: Path, label: str, classes: Sequence[str] = ()) -> list[Item]:
    """The rows of a CSV or Parquet with the columns text and `label`; an item's image is the text in UTF-8,
    its groups are the other columns.

    Raises:
        DataError: the file, a column or a class is missing, texts or labels are empty, or there is one class.
    """
    found = parquet_rows(path) if path.suffix.lower() in (".parquet", ".pq") else read_rows(path)
    require(path, found.fields, (TEXT,), "name the column of the texts so")
    require(path, found.fields, (label,), "name the column of the classes with --labels")
    bad = [
        n for n, row in zip(found.lines, found.rows, strict=True) if not row[TEXT].strip() or not row[label]
    ]
    if bad:
        said = few(map(str, bad))
        raise DataError(
            f"{path} has empty texts or labels in {len(bad)} lines: {said}", "fill or remove them"
        )
    known = dict.fromkeys(row[label] for row in found.rows)
    if strange := [c for c in classes if c not in known]:
        raise DataError(f"no text has the label {strange[0]!r}", suggest(strange[0], known, "labels"))
    items = [
        Item(
            f"line {n}",
            row[TEXT].encode(),
            row[label],
            groups={k: v for k, v in row.items() if k not in (TEXT, label) and k},
        )
        for n, row in zip(found.lines, found.rows, strict=True)
        if not classes or row[label] in classes
    ]
    if len({i.label for i in items}) < 2:
        raise DataError(f"{path} has texts of {len({i.label for i in items})} class", "give two or more")
    return items


def written(item: Item) -> str:
    """The text of an item."""
    assert isinstance(item.image, bytes)
    return item.image.decode()


@dataclass(frozen=True)
class Read:
    """Texts as the model reads them.

    Attributes:
        items: N texts. ids: (N, 1, 1, L). cut: how many are longer than the model reads.
        embedded: (N, K). plan: who is fitted to whom. columns: (N,) by name.
    """

    encoder: TokenEncoder
    items: Sequence[Item]
    ids: torch.Tensor
    cut: int
    embedded: np.ndarray
    plan: Plan
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, encoder: Any, items: Sequence[Item], plan: Plan, columns: dict[str, np.ndarray]) -> Read:
        """Read with a sentence encoder."""
        reader = TokenEncoder(encoder)
        texts = [written(i) for i in items]
        ids, cut = reader.ids(texts)
        return cls(reader, items, ids, cut, encoder.encode(texts, progress=True).numpy(), plan, columns)


def text_topics(read: Read, effort: Effort) -> list[Topic]:
    """The classes of a probe, each text answered by a probe that no text of its unit was fitted to."""
    plan, x, labels = read.plan, read.ids, read.plan.labels
    folds = plan.rounds[0]
    probes = [fit_probe("logreg", read.embedded[train], labels[train]) for train, _ in folds]
    known = [c for c in plan.classes if all(c in p.classes_ for p in probes)]
    heads = [FeatureHead(p.attach(read.encoder).only(known), "head", x[:2]) for p in probes]
    part = np.zeros(len(labels), int)
    for number, (_, rows) in enumerate(folds):
        part[rows] = number
    codes = np.array([known.index(c) if c in known else -1 for c in labels.tolist()])
    scores = predict(plan, {TEXT: read.embedded}, TEXT).scores[TEXT].mean(0)
    scores = scores[:, [plan.classes.index(c) for c in known]]

    def explaining(k: int, parts: np.ndarray, rows: Sequence[int], advance: Any) -> Explanations:
        return explain_texts(heads, parts, k, read.encoder, x[list(rows)], effort.batch_size, advance)

    trained = [train.tolist() for train, _ in folds]
    texts = [i.image for i in read.items]
    topics = topics_of(
        heads,
        dict(enumerate(known)),
        effort,
        labels=codes,
        ids=[i.id for i in read.items],
        load=lambda rows: x[[int(r) for r in rows]],
        columns=read.columns,
        witnesses=lambda k: (),
        state=combined(texts, model_key(read.encoder), trained, sorted(read.columns)),
        answers=Answers(scores, codes, read.columns, plan.units),
        units=plan.units,
        part=part,
        explaining=explaining,
        subject=partial(TextSubject, encoder=read.encoder),
        what="texts",
        medium=Texts(read.encoder),
    )
    return [replace(t, written=partial(shown, cache(partial(_explained, t)))) for t in topics]


def _explained(topic: Topic, row: int) -> tuple[list[Word], np.ndarray]:
    """The words of a text, and the relevance of each for the topic."""
    assert isinstance(topic.medium, Texts)
    reader, x = topic.medium.encoder, topic.load([row])
    number = 0 if topic.probes is None else int(topic.probes[0][row])
    subject = topic.subjects[number]
    assert isinstance(subject, TextSubject)
    r = reader.relevance(x, subject.head.linear.weight[subject.index][None])[0].numpy()
    words = reader.words(x)
    return words, np.array([r[w.start : w.stop].sum() for w in words])


def shown(
    explained: Callable[[int], tuple[list[Word], np.ndarray]], row: int, region: np.ndarray | None
) -> list[Token]:
    """The first words of a text with their relevance for the topic, the largest being 1, and whether they
    were changed."""
    words, values = explained(row)
    peak = max(float(np.abs(values).max(initial=0)), 1e-12)
    inside = [region is not None and bool(region[0, w.start]) for w in words]
    start = 0
    if True in inside:  # what was changed is to be seen
        start = max(0, min(inside.index(True) - 10, len(words) - _SHOWN))
    some = range(start, min(len(words), start + _SHOWN))
    tokens = [Token(word=words[i].name, relevance=float(values[i] / peak), changed=inside[i]) for i in some]
    gap = Token(word="…", relevance=0.0)
    return [gap] * (start > 0) + tokens + [gap] * (start + _SHOWN < len(words))
