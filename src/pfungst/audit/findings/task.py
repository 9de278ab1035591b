"""Findings as a task for people, and what they say of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.audit.findings.result import (
    IMAGES,
    Answered,
    Discovered,
    DiscoveryEntry,
    Proved,
    called,
    members,
)
from pfungst.discover.subjects import WORDS
from pfungst.errors import InputError
from pfungst.files import read, write, write_json

FILE = "label-task.json"
GROUPS = "groups.csv"
FORMAT = "pfungst.label-task/1"
ANSWERS = "pfungst.findings/1"
Key = tuple[int, int]  # place of the topic in the result, number of the finding


def write_label_task(
    folder: Path, title: str, model: str, inputs: str, entries: Sequence[DiscoveryEntry]
) -> None:
    """Write ``label-task.json`` for ``pfungst label``: what was proved to decide, or to move answers,
    beside the images it names; none where nothing was. People see no verdict of ours."""
    items = [
        _item(place, e, f) for place, e in enumerate(entries) for f in e.findings if f.standing != "unproved"
    ]
    if not items:
        (folder / FILE).unlink(missing_ok=True)
        return
    write_task(folder, "clusters", title, {"name": model, "inputs": inputs}, items)


def write_groups(folder: Path, found: Discovered, arrays: Path) -> None:
    """Write ``groups.csv`` for ``--groups-file``: which images of a topic have what was found in some of
    them, a column each; none where nothing was.

    Args:
        arrays: the folder that those of the topics are relative to.
    """
    columns: dict[str, dict[str, str]] = {}
    for entry, f in found.found():
        kept = read(arrays / entry.arrays, "run the discovery again")
        if members(f.number) in kept:
            names = f.judged.names if f.judged else []
            name = f"{entry.name} {names[0] if names else f'{f.view} {f.cluster + 1} {f.kind}'}"
            there = np.isin(np.arange(entry.n), kept[members(f.number)])
            said = np.where(there, "with", "without").tolist()
            columns[name.replace(",", "")] = dict(zip(kept[IMAGES].tolist(), said, strict=True))
    if not columns:
        (folder / GROUPS).unlink(missing_ok=True)
        return
    images = sorted({image for c in columns.values() for image in c})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", *columns))
    rows.writerows((image, *(c.get(image, "") for c in columns.values())) for image in images)
    write(folder / GROUPS, text.getvalue())


def write_task(folder: Path, kind: str, title: str, model: dict[str, Any], items: list[Any]) -> None:
    """Write ``label-task.json`` for ``pfungst label``: `items` of one kind to judge."""
    content = {"format": FORMAT, "kind": kind, "title": title, "model": model, "items": items}
    write_json(folder / FILE, content)


def _changed(entry: DiscoveryEntry, f: Proved) -> str:
    return ", ".join(f.words) if f.kind == "words" else called(f.kind, entry.what)


def _item(place: int, entry: DiscoveryEntry, f: Proved) -> dict[str, Any]:
    words = WORDS[entry.what]
    i, r = f.insert, f.remove
    return {
        "id": f"{place}-{f.number}",
        "class_index": place,
        "class_name": "a defect" if entry.what in ("normal", "defect") else entry.name,
        "component": f.number,
        "what": f"{entry.name}, changed: {_changed(entry, f)}; {entry.noun} grouped by {f.view}"[:500],
        "share": f.share,
        "n": f.n,
        "outcomes": [
            f"Put into {words.targets} it carries {i.value:.0%} of {words.carried} ({i.low:.0%} to "
            f"{i.high:.0%}); {f.flips[0]:.0%} are then taken for it, {f.flips[1]:.0%} with controls",
            f"Taken out, the evidence falls by {r.value:.2g} {words.unit} ({r.low:.2g} to {r.high:.2g})",
            *(f"{c.column} = {c.value} in {c.inside:.0%}, else {c.outside:.0%}" for c in f.columns[:2]),
        ],
        "images": [{"file": s.file, "id": s.id, "gradcam": s.region} for s in f.images],
    }


def read_answers(path: Path, inputs: str) -> dict[Key, Answered]:
    """What people decided, from the ``findings.json`` that the labelling app exports.

    Args:
        path: the file. inputs: fingerprint of the discovery whose findings were judged.

    Raises:
        InputError: another format, or findings of another discovery.
    """
    content = read(path, "pass the findings.json that the labelling app wrote", InputError, ANSWERS)
    theirs = (content.get("model") or {}).get("inputs")
    if theirs != inputs:
        raise InputError(
            f"{path} judges findings of another discovery: {theirs}; this one is {inputs}",
            "give the same options and data as when the task was written",
        )
    try:
        return {
            (int(f["class_index"]), int(f["component"])): Answered(answer=f["answer"], names=f["names"])
            for f in content["findings"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no findings: {error}", "export it again with `pfungst label`"
        ) from None


def judged(entries: Sequence[DiscoveryEntry], answers: Mapping[Key, Answered]) -> list[DiscoveryEntry]:
    """The entries with what people say: what decides or moves answers is a finding where they call it an
    artefact, and none where they call it the object. What was not proved stays so, whatever it is.

    Raises:
        InputError: answers to findings that are not there.
    """
    known = {(place, f.number) for place, e in enumerate(entries) for f in e.findings}
    if strange := sorted(set(answers) - known):
        raise InputError(
            f"there is no finding {strange[0][1]} of topic {strange[0][0]}", "export the answers again"
        )

    def one(place: int, f: Proved) -> Proved:
        said = answers.get((place, f.number))
        if said is None or f.standing == "unproved":
            return f.model_copy(update={"judged": said})
        standing = {"artefact": "found", "object": "object", "unsure": f.standing}[said.answer]
        named = f" ({', '.join(said.names)})" if said.names else ""
        words = {"artefact": "an artefact", "object": "the object", "unsure": "unclear"}[said.answer]
        update = {
            "standing": standing,
            "judged": said,
            "reason": f"{f.reason}; people call it {words}{named}",
        }
        return f.model_copy(update=update)

    return [
        e.model_copy(update={"findings": [one(place, f) for f in e.findings]})
        for place, e in enumerate(entries)
    ]
