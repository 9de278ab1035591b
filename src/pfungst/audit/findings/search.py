"""Go through topics: explain, cluster, prove, describe; what is finished survives an interruption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pfungst.audit.findings.result import Column, DiscoveryEntry, Grouped, Mended, Proved, Shown
from pfungst.audit.findings.topics import Effort, Topic
from pfungst.audit.images import to_uint8
from pfungst.audit.pictures import PictureFolder
from pfungst.audit.result import Interval
from pfungst.audit.workspace import Workspace
from pfungst.discover import Clustering, Finding, Proof, find, over_represented
from pfungst.discover.find import SHOWN
from pfungst.measure import Interval as Measured
from pfungst.measure import holm
from pfungst.progress import progress_bar


def search(topics: Sequence[Topic], effort: Effort, workspace: Workspace) -> list[DiscoveryEntry]:
    """What the images of each topic share, and its proof; p not yet corrected over the topics.

    Raises:
        InputError, UnreadableImages: see :mod:`pfungst.errors`.
    """
    entries = []
    with progress_bar("discovering", len(topics)) as bar:
        for topic in topics:
            bar.say(topic.name)
            part = f"discovery {topic.name} {topic.state}"
            entry = workspace.load_part(part, DiscoveryEntry)
            if entry is None:
                entry = _entry(topic, effort, workspace)
                workspace.save_part(part, entry)
            entries.append(entry)
            bar.advance()
    return entries


def _entry(topic: Topic, effort: Effort, workspace: Workspace) -> DiscoveryEntry:
    with progress_bar(f"explaining {topic.name}", len(topic.ids)) as bar:
        explained = topic.explained(bar.advance)
    found, parts = find(
        topic.subject,
        explained,
        topic.load,
        topic.others(),
        columns=topic.columns,
        mend=topic.mend,
        most=effort.most,
        n_images=effort.changed,
        batch_size=effort.batch_size,
        seed=effort.seed,
    )
    pictures = PictureFolder(workspace.folder)
    regions = {str(i): f.regions for i, f in enumerate(found) if f.regions is not None}
    return DiscoveryEntry(
        index=topic.subject.index,
        name=topic.name,
        what=topic.subject.what,
        n=len(topic.ids),
        accuracy=float(explained.said.mean()),
        groupings=[_grouped(view, c) for view, c in parts.items()],
        findings=[_proved(topic, i, f, explained.said, pictures) for i, f in enumerate(found)],
        arrays=workspace.save_arrays(f"discovered {topic.name}", regions),
    )


def _grouped(view: str, c: Clustering) -> Grouped:
    gaps, expected = c.gaps.tolist(), c.expected.tolist()
    return Grouped(view=view, n_clusters=c.n_clusters, gaps=gaps, expected=expected, stability=c.stability)


def _proved(topic: Topic, number: int, f: Finding, said: np.ndarray, pictures: PictureFolder) -> Proved:
    member = np.zeros(len(topic.ids), bool)
    member[f.rows] = True
    over = over_represented(member, topic.columns) if f.n_clusters > 1 else []
    first = f.rows[:SHOWN].tolist()
    shown = [
        Shown(id=topic.ids[row], file=pictures.photo(to_uint8(image), topic.ids[row]))
        for row, image in zip(first, topic.load(first), strict=True)
    ]
    p = f.proof
    return Proved(
        number=number,
        view=f.view,
        kind=f.kind,
        cluster=f.cluster,
        n_clusters=f.n_clusters,
        n=len(f.rows),
        share=f.share,
        recognised=float(said[f.rows].mean()),
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
        alone=p.alone,
        edits=[Mended(**vars(e)) for e in f.edits],
    )


def _interval(i: Measured) -> Interval:
    return Interval(value=i.value, low=i.low, high=i.high)


def corrected(entries: Iterable[DiscoveryEntry]) -> list[DiscoveryEntry]:
    """p corrected over all clusters of all topics (Holm), and what follows from it; what is proved first."""
    entries = list(entries)
    ps = iter(holm([f.p for e in entries for f in e.findings]) if entries else [])
    out = []
    for entry in entries:
        findings = []
        for f in entry.findings:
            remove, insert, retained = (
                Measured(i.value, float(i.low or 0), float(i.high or 0))
                for i in (f.remove, f.insert, f.retained)
            )
            proof = Proof(
                f.changed, remove, insert, f.accuracy, f.flips, retained, f.p, next(ps), entry.what, f.alone
            )
            standing = "found" if proof.survives else "object" if proof.decides else "unproved"
            told = {"corrected": proof.corrected, "standing": standing, "reason": proof.reason}
            findings.append(f.model_copy(update=told))
        order = ("found", "object", "unproved")
        findings.sort(key=lambda f: (order.index(f.standing), -float(f.insert.low or 0)))
        out.append(entry.model_copy(update={"findings": findings}))
    return out
