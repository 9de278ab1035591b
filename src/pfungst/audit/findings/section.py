"""Discovery as a part of the three audits: on their images and models, with less effort than on its own.

A `study` is the audit's own, of `pfungst.audit.KIND.prepare`; audits import this and not the other way round.
"""

from __future__ import annotations

from typing import Any

from pfungst.audit.findings.result import Discovered, DiscoveryEntry
from pfungst.audit.findings.search import search
from pfungst.audit.findings.topics import Effort, class_topics, encoder_topics, score_topics
from pfungst.audit.findings.verdict import conclude
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace

_BATCH = 8


def of_classifier(study: Any, workspace: Workspace) -> Discovered:
    """In the validation images of the audited classes."""
    effort = Effort(seed=study.config.seed, batch_size=_BATCH)
    columns = group_columns(study.val.items, ["auto", "files"])
    judges = lambda k: [other.of(k) for other in study.witnesses if k in other.classes]
    topics = class_topics(study.head, study.names, study.val, columns, judges, effort)
    return conclude(search(topics, effort, workspace), [other.name for other in study.witnesses])


def of_encoder(study: Any, workspace: Workspace) -> Discovered:
    """In images of the probe's classes that it was not fitted to."""
    effort = Effort(seed=study.config.seed, batch_size=_BATCH)
    return conclude(search(encoder_topics(study, effort), effort, workspace))


def of_detector(study: Any, model: str, run: Any, workspace: Workspace) -> list[DiscoveryEntry]:
    """In the normal and in the defective test images of a category; :func:`conclude` comes after all."""
    effort = Effort(seed=study.config.seed, batch_size=_BATCH)
    return search(score_topics(study, model, run, effort, f"{study.test.name} / {model}"), effort, workspace)
