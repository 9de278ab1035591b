"""Go through topics: explain, cluster, prove, describe; what is finished survives an interruption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pfungst.audit.findings.result import (
    IMAGES,
    Column,
    DiscoveryEntry,
    Grouped,
    Mended,
    Proved,
    Shown,
    Told,
    members,
)
from pfungst.audit.findings.topics import Effort, Topic
from pfungst.audit.images import to_uint8
from pfungst.audit.pictures import PictureFolder
from pfungst.audit.workspace import Workspace
from pfungst.discover import Clustering, Finding, Proof, find, over_represented
from pfungst.discover.find import SHOWN
from pfungst.files import digest
from pfungst.measure import Interval as Measured
from pfungst.measure import holm
from pfungst.measure.limits import CARRIED, P_SPURIOUS, RETAINED
from pfungst.progress import progress_bar

_DRAWN = 1000  # images in the picture of clusters


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
        topic.subjects,
        explained,
        topic.load,
        topic.others(),
        columns=topic.columns,
        text=topic.text,
        units=topic.units,
        probes=topic.probes,
        mend=topic.mend,
        medium=topic.medium,
        most=effort.most,
        n_images=effort.changed,
        batch_size=effort.batch_size,
        seed=effort.seed,
    )
    pictures = PictureFolder(workspace.folder)
    arrays = {str(i): f.regions for i, f in enumerate(found) if f.regions is not None}
    arrays |= {members(i): f.rows for i, f in enumerate(found) if f.n_clusters > 1}
    arrays[IMAGES] = np.array(topic.ids)
    return DiscoveryEntry(
        index=topic.subject.index,
        name=topic.name,
        what=topic.subject.what,
        n=len(topic.ids),
        accuracy=float(explained.said.mean()),
        groupings=[_grouped(view, c) for view, c in parts.items()],
        findings=[_proved(topic, i, f, explained.said, pictures) for i, f in enumerate(found)],
        arrays=workspace.save_arrays(f"discovered {topic.name}", arrays),
        told=[Told.copied(t, column=c) for c, t in topic.told().items()],
    )


def _grouped(view: str, c: Clustering) -> Grouped:
    some = np.linspace(0, len(c.labels) - 1, min(len(c.labels), _DRAWN)).astype(int)
    plane = [] if c.plane is None else [(float(a), float(b)) for a, b in c.plane[some].round(4)]
    cluster = c.labels[some].tolist() if plane else []
    gaps = {"gaps": c.gaps.tolist(), "expected": c.expected.tolist()}
    return Grouped.copied(c, view=view, plane=plane, cluster=cluster, **gaps)


def _proved(topic: Topic, number: int, f: Finding, said: np.ndarray, pictures: PictureFolder) -> Proved:
    member = np.zeros(len(topic.ids), bool)
    member[f.rows] = True
    over = over_represented(member, topic.columns) if f.n_clusters > 1 else []
    first = f.rows[:SHOWN].tolist()
    shown = []
    for place, (row, image) in enumerate(zip(first, topic.load(first), strict=True)):
        id_, region = topic.ids[row], None if f.regions is None else f.regions[place]
        name = f"photo-{digest(id_, topic.name, str(number), length=20)}-region"
        tokens = [] if topic.written is None else topic.written(row, region)
        if tokens:
            file, part = pictures.text([(t.word, t.relevance, t.changed) for t in tokens], name), None
        elif topic.draw is not None:
            file = pictures.visual(topic.draw(image, None), f"photo-{digest(id_, length=20)}")
            part = None if region is None else pictures.visual(topic.draw(image, region), name)
        else:
            pixels = to_uint8(image)
            file = pictures.photo(pixels, id_)
            part = None if region is None else pictures.region(pixels, region, name)
        shown.append(Shown(id=id_, file=file, region=part, tokens=tokens))
    proof = {
        n: getattr(f.proof, n) for n in ("remove", "insert", "accuracy", "flips", "retained", "p", "alone")
    }
    return Proved.copied(
        f,
        number=number,
        n=len(f.rows),
        recognised=float(said[f.rows].mean()),
        columns=[Column.copied(o) for o in over],
        images=shown,
        map=f.map.tolist(),
        bands=list(f.bands),
        words=list(f.words),
        changed=f.proof.n,
        edits=[Mended.copied(e) for e in f.edits],
        **proof,
    )


def corrected(entries: Iterable[DiscoveryEntry]) -> list[DiscoveryEntry]:
    """p corrected over all clusters of all topics (Holm), and what follows from it; what is proved first."""
    entries = list(entries)
    ps = iter(
        holm([p for e in entries for p in ([f.p for f in e.findings] + [t.p for t in e.told])])
        if entries
        else []
    )
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
            if proof.decides:
                standing = "found" if proof.survives else "object"
            else:
                beside = f.kind == "text" or (f.n_clusters > 1 and retained.low >= RETAINED and not f.alone)
                standing = "moves" if beside and proof.moves else "unproved"
            said = {"corrected": proof.corrected, "standing": standing, "reason": proof.reason}
            findings.append(f.model_copy(update=said))
        told = [_source(t, next(ps), entry.noun) for t in entry.told]
        told.sort(key=lambda t: (t.standing, t.corrected, -t.fall.value))
        order = ("found", "moves", "object", "unproved")
        findings.sort(key=lambda f: (order.index(f.standing), -float(f.insert.low or 0)))
        out.append(entry.model_copy(update={"findings": findings, "told": told}))
    return out


def _source(t: Told, corrected: float, noun: str = "images") -> Told:
    """Whether a column tells the class: what of it falls away within its values, and is it beyond chance."""
    beyond = max(t.pooled - 0.5, 1e-12)
    low, high = float(t.fall.low or 0), float(t.fall.high or 0)
    found = corrected <= P_SPURIOUS and low >= CARRIED * beyond and t.pooled > 0.5
    reason = (
        f"the evidence tells the class with AUROC {t.pooled:.2f} over all {noun} and {t.within:.2f} "
        f"between {noun} of the same value, {t.fall.value:.2f} [{low:.2f}, {high:.2f}] less"
    )
    if found:
        reason += f" (corrected p {corrected:.2g})"
    else:
        reason = f"no proof: {reason}; p is {corrected:.2g} after correction for all that were tried"
    told = {"corrected": corrected, "standing": "found" if found else "unproved", "reason": reason}
    return t.model_copy(update=told)
