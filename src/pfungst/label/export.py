"""Answers as CSV, JSON and Parquet, and the components file that SpuFix reads."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfungst.errors import InputError
from pfungst.files import write
from pfungst.label.study import ADJUDICATOR, Study
from pfungst.label.task import Item

COMPONENTS_FORMAT = "pfungst.components/1"
FINDINGS_FORMAT = "pfungst.findings/1"
LABELS_FORMAT = "pfungst.labels/1"


def rows(study: Study) -> list[dict[str, Any]]:
    """One row per item and person, labellers first, the adjudicator where asked; None for missing answers."""
    verdicts, called = study.verdicts(), study.names()
    people = [*study.labellers, *([ADJUDICATOR] if study.progress(ADJUDICATOR).answers else [])]
    result = []
    for item in study.task.items:
        for person in people:
            progress = study.progress(person)
            answer = progress.answers.get(item.id)
            if person == ADJUDICATOR and answer is None:
                continue
            result.append(
                {
                    "item": item.id,
                    **_topic(item),
                    "person": person,
                    "answer": answer,
                    **({"name": called[item.id].get(person)} if study.task.kind == "clusters" else {}),
                    "time": progress.actions[item.id][-1].time if answer is not None else None,
                    "steps": progress.sequence(item.id),
                    **asdict(verdicts[item.id]),
                }
            )
    return result


def _topic(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("class_index", "class_name", "component")}


def to_csv(study: Study) -> bytes:
    """The rows as CSV in UTF-8.

    A text that a spreadsheet would run as a formula gets an apostrophe in front; JSON and Parquet keep it as
    it is.
    """
    table = rows(study)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(table[0]))
    writer.writeheader()
    for row in table:
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    return text.getvalue().encode()


def to_parquet(study: Study) -> bytes:
    """The rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"class_index": pa.int64(), "component": pa.int64(), "steps": pa.int64()}
    table = rows(study)
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in table[0]])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def to_json(study: Study) -> bytes:
    """Task, agreement, every item with all answers, and the whole history of events."""
    verdicts, answers, called = study.verdicts(), study.answers(), study.names()
    settled = study.progress(ADJUDICATOR).answers
    content = {
        "format": LABELS_FORMAT,
        "kind": study.task.kind,
        "title": study.task.title,
        "model": study.task.model,
        "labellers": study.labellers,
        "agreement": [
            {
                "labellers": [pair.first, pair.second],
                "items": pair.items,
                "agreement": None if math.isnan(pair.agreement) else pair.agreement,
                "cohen_kappa": None if math.isnan(pair.kappa) else pair.kappa,
            }
            for pair in study.agreement()
        ],
        "items": [
            {
                "id": item.id,
                **_topic(item),
                "answers": {name: given[item.id] for name, given in answers.items() if item.id in given},
                **({"names": called[item.id]} if study.task.kind == "clusters" else {}),
                "adjudicated": settled.get(item.id),
                **asdict(verdicts[item.id]),
            }
            for item in study.task.items
        ],
        "events": [asdict(event) for event in study.store.since(0)],
    }
    return _json(content)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def to_components(study: Study) -> bytes:
    """Components that all labellers judged spurious, after adjudication, by class.

    Raises:
        InputError: the task is about images.
    """
    _refuse(study, "components.json")
    verdicts = study.verdicts()
    spurious: dict[str, list[int]] = {}
    for item in sorted(study.task.items, key=lambda i: (i.class_index, i.component)):
        if verdicts[item.id].final == "spurious":
            spurious.setdefault(str(item.class_index), []).append(item.component)
    content = {"format": COMPONENTS_FORMAT, "model": study.task.model, "components": spurious}
    return _json(content)


def to_findings(study: Study) -> bytes:
    """What is decided about findings and what people call them, as ``pfungst discover --answers`` reads it.

    Raises:
        InputError: the task is not about clusters.
    """
    _refuse(study, "findings.json")
    verdicts, called = study.verdicts(), study.names()
    findings = [
        {
            "class_index": item.class_index,
            "component": item.component,
            "answer": verdicts[item.id].final,
            "names": list(dict.fromkeys(called[item.id].values())),
        }
        for item in study.task.items
        if verdicts[item.id].final is not None
    ]
    content = {"format": FINDINGS_FORMAT, "model": study.task.model, "findings": findings}
    return _json(content)


_OF_KIND = {"components.json": "components", "findings.json": "clusters"}
EXPORTS: dict[str, tuple[str, Callable[[Study], bytes]]] = {
    "labels.csv": ("text/csv; charset=utf-8", to_csv),
    "labels.json": ("application/json", to_json),
    "labels.parquet": ("application/vnd.apache.parquet", to_parquet),
    "components.json": ("application/json", to_components),
    "findings.json": ("application/json", to_findings),
}


def _refuse(study: Study, name: str) -> None:
    if study.task.kind != _OF_KIND[name]:
        what = f"a task about {study.task.kind} has no {Path(name).stem} file"
        raise InputError(what, "export CSV, JSON or Parquet")


def names(study: Study) -> list[str]:
    """The files that can be exported from a study."""
    return [name for name in EXPORTS if _OF_KIND.get(name, study.task.kind) == study.task.kind]


def export(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], labellers: list[str] | None = None
) -> list[Path]:
    """Write all exports of a task folder, without a server.

    Args:
        folder: the task folder with its answers.
        out: where to write; created when absent.
        labellers: whose answers count; None takes everybody who answered.

    Returns:
        The files written.

    Raises:
        DataError: the task or its answers cannot be read, or the files cannot be written.
    """
    study = Study(folder, labellers)
    if not study.labellers:
        study.close()
        raise InputError(f"nobody has answered anything in {folder}", "run `pfungst label` on it first")
    written = [Path(out) / name for name in names(study)]
    try:
        for path in written:
            write(path, EXPORTS[path.name][1](study))
    finally:
        study.close()
    return written


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
