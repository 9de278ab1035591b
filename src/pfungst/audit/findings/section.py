"""Discovery as a part of the three audits: on their images and models, with less effort than on its own.

A `study` is the audit's own, of `pfungst.audit.KIND.prepare`; audits import this and not the other way round.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from pfungst.audit.config import Discovering, check_file
from pfungst.audit.findings.result import Discovered, DiscoveryEntry
from pfungst.audit.findings.search import search
from pfungst.audit.findings.task import FILE, read_answers, write_groups, write_label_task
from pfungst.audit.findings.topics import Effort, class_topics, encoder_topics, score_topics
from pfungst.audit.findings.verdict import conclude
from pfungst.audit.result import save
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace

_BATCH = 8
TASK = "findings"


def of_classifier(study: Any, workspace: Workspace) -> Discovered:
    """In the validation images of the audited classes."""
    effort = Effort(seed=study.config.seed, batch_size=_BATCH)
    columns = group_columns(study.val.items, ["auto", "files"])
    judges = lambda k: [other.of(k) for other in study.witnesses if k in other.classes]
    topics = class_topics(study.head, study.names, study.val, columns, judges, effort)
    return concluded(
        search(topics, effort, workspace), study.config, workspace, [other.name for other in study.witnesses]
    )


def of_encoder(study: Any, workspace: Workspace) -> Discovered:
    """In images of the probe's classes that it was not fitted to."""
    effort = Effort(seed=study.config.seed, batch_size=_BATCH)
    return concluded(search(encoder_topics(study, effort), effort, workspace), study.config, workspace)


def of_detector(study: Any, model: str, run: Any, workspace: Workspace) -> list[DiscoveryEntry]:
    """In the normal and in the defective test images of a category; :func:`concluded` comes after all."""
    effort = Effort(seed=study.config.seed, batch_size=_BATCH)
    return search(score_topics(study, model, run, effort, f"{study.test.name} / {model}"), effort, workspace)


def concluded(
    entries: Sequence[DiscoveryEntry],
    config: Discovering,
    workspace: Workspace,
    witnesses: Sequence[str] = (),
) -> Discovered:
    """What was found, with what people say of it; for people to judge, a task in ``findings/``."""
    check_file(config.answers, "--answers")
    answers = read_answers(config.answers, workspace.fingerprint) if config.answers else None
    found = conclude(entries, witnesses, answers)
    folder = workspace.folder / TASK
    write_label_task(folder, "Findings", workspace.folder.name, workspace.fingerprint, found.entries)
    write_groups(folder, found, workspace.folder)
    if (folder / FILE).exists():  # the app serves a task's own folder
        decided = [f for e in found.entries for f in e.findings if f.standing != "unproved"]
        for file in {name for f in decided for s in f.images for name in (s.file, s.region) if name}:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(workspace.folder / file, folder / file)
    return found


def answered(done: Any, config: Discovering, witnesses: Sequence[str] = ()) -> Any:
    """A finished result, with what people say of its findings where given; nothing is computed anew."""
    if config.answers is None:
        return done
    check_file(config.answers, "--answers")
    found = conclude(done.discovery.entries, witnesses, read_answers(config.answers, done.inputs))
    write_groups(config.out / TASK, found, config.out)
    result = done.model_copy(update={"discovery": found})
    save(result, config.out)
    return result
