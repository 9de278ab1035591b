"""Find what the explanations of a subject share, and prove it: cluster each view of them, intervene on each
cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from pfungst.discover.cluster import Clustering, cluster
from pfungst.discover.explain import Explanations, Images, Kind, View
from pfungst.discover.mend import Edit, Pairs
from pfungst.discover.prove import FEWEST, Judge, Proof
from pfungst.discover.subjects import Heat, Subject
from pfungst.errors import InputError
from pfungst.measure import holm
from pfungst.measure.limits import P_SPURIOUS
from pfungst.spurious.evidence import region

SHOWN = 6  # prototypes
_KINDS: tuple[Kind, ...] = ("place", "content", "tone", "bands")
_COLUMNS = 3  # columns that the evidence follows most, whose groups are tried as clusters
_BAND_SHARE = 0.5  # of what a cluster's spectrum has more than the others, that the exchanged bands hold


@dataclass(frozen=True)
class Finding:
    """A cluster of one view of a class's explanations, and what interventions on it did.

    Attributes:
        index: of the subject. view, kind: see :class:`pfungst.discover.View`.
        cluster, n_clusters: which of how many; of one, the whole class was tried.
        rows: images of the subject in it, the most typical first.
        share: of the subject's images.
        map: (R, S) mean heatmap by patches, each of norm 1, less that of the other images where there are
            any.
        contrast: (D,) mean ψ likewise; None where there is none.
        bands: which frequency bands were exchanged, of kind "bands".
        regions: (n, H, W) boolean, where the first n typical images were changed; None of kind "bands".
        proof: what interventions did, on images drawn from the cluster.
        edits: what mends it, best first, where it may survive correction and `mend` was given.
    """

    index: int
    view: str
    kind: Kind
    cluster: int
    n_clusters: int
    rows: np.ndarray
    share: float
    map: np.ndarray
    proof: Proof
    contrast: np.ndarray | None = None
    bands: tuple[int, ...] = ()
    regions: np.ndarray | None = None
    edits: tuple[Edit, ...] = ()

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Sorts findings by what is proved when sorted in falling order."""
        return self.proof.survives, self.proof.decides, self.proof.insert.low


Mend = Callable[[Finding, Pairs, Explanations], list[Edit]]


def find(
    subject: Subject,
    explained: Explanations,
    images: Images,
    others: Tensor,
    *,
    views: Sequence[View] | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    mend: Mend | None = None,
    most: int = 6,
    n_images: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[list[Finding], dict[str, Clustering]]:
    """Cluster the explanations of a subject and intervene on each cluster of at least 6 images.

    Args:
        subject: a class, or the score of a detector. Without witnesses, the object is what the audited model
            still recognises.
        explained: of its images.
        images: gives the images of rows, in the same order.
        others: (M, C, H, W) that are not of it.
        views: what is clustered; all of the explanations by default.
        columns: values (N,) as text, "" for unknown. Of the columns that the evidence follows (Kruskal and
            Wallis, Holm over all columns), the group of most evidence is tried like a cluster.
        mend: gives the edits that fit a finding, with what its proof changed.
        most: clusters per view.
        n_images: of a cluster that are changed, drawn at random.
        batch_size: images at a time.
        seed: of all that is drawn.

    Returns:
        The findings, p not yet corrected (:func:`correct`, over all classes), and the clustering of each
        view.

    Raises:
        InputError: fewer than 6 images, or none of others.
    """
    n = len(explained)
    if n < FEWEST:
        raise InputError(f"{n} images of subject {subject.index} prove nothing", f"pass at least {FEWEST}")
    rng = np.random.default_rng((seed, subject.index))
    some = images(np.sort(rng.permutation(n)[:32]).tolist())
    judge = Judge(subject, some, others[:64], batch_size)
    judge.others = others
    found: list[Finding] = []
    tried: list[tuple[str, Kind, Clustering, int]] = []
    clusterings: dict[str, Clustering] = {}
    for view in views if views is not None else explained.views():
        parts = clusterings[view.name] = cluster(view.vectors, most, seed=seed)
        if parts.n_clusters == 1 and any(t[2].n_clusters == 1 for t in tried):
            continue  # the whole is tried once
        for number in range(parts.n_clusters):
            if len(parts.rows(number)) >= FEWEST:
                kinds = [k for k in view.kinds if parts.n_clusters > 1 or k in ("place", "content")]
                tried += [(view.name, kind, parts, number) for kind in kinds]
    for name, parts in _followed(explained.evidence, columns or {}):
        tried += [(name, kind, parts, 0) for kind in _KINDS]
    for which in tried:
        one = _tried(judge, explained, images, which, n_images, seed)
        if mend is not None and replace(one.proof, corrected=one.proof.p).decides:
            one = replace(one, edits=tuple(mend(one, judge.pairs, explained)))
        found.append(one)
    return found, clusterings


def correct(findings: Sequence[Finding]) -> list[Finding]:
    """The same with p corrected for all of them together (Holm 1979), what is proved first."""
    corrected = holm([f.proof.p for f in findings]) if findings else []
    out = [replace(f, proof=replace(f.proof, corrected=p)) for f, p in zip(findings, corrected, strict=True)]
    return sorted(out, key=lambda f: f.rank, reverse=True)


def _followed(evidence: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Clustering]]:
    """Of the columns that the evidence follows most: COLUMN = VALUE, and that group (0) against the rest."""
    tried = []
    for name, values in columns.items():
        groups = {str(v): values == v for v in np.unique(values[values != ""])}
        groups = {v: member for v, member in groups.items() if member.sum() >= FEWEST}
        if len(groups) > 1 and np.ptp(evidence) > 0:
            p = float(stats.kruskal(*(evidence[m] for m in groups.values())).pvalue)
            value = max(groups, key=lambda v: float(np.median(evidence[groups[v]])))
            tried.append((p, f"{name} = {value}", groups[value]))
    ps = holm([p for p, _, _ in tried]) if tried else []
    told = sorted((p, name, i) for i, (p, (_, name, _)) in enumerate(zip(ps, tried, strict=True)))
    seen: list[np.ndarray] = []
    for p, name, i in told:
        member = tried[i][2]
        if p <= P_SPURIOUS and len(seen) < _COLUMNS and not any((member == s).all() for s in seen):
            seen.append(member)
            far = np.abs(evidence - np.median(evidence[member]))
            labels = (~member).astype(int)
            yield name, Clustering(labels, np.zeros(3), np.zeros(2), {}, np.lexsort((far, labels)))


def _tried(
    judge: Judge,
    explained: Explanations,
    images: Images,
    which: tuple[str, Kind, Clustering, int],
    n_images: int,
    seed: int,
) -> Finding:
    view, kind, parts, number = which
    rng = np.random.default_rng((seed, judge.subject.index, number))
    rows, rest = parts.rows(number), np.flatnonzero(parts.labels != number)
    drawn, beside = (np.sort(rng.permutation(r)[:n_images]).tolist() for r in (rows, rest))
    x, mates = images(drawn), images(beside) if len(beside) >= FEWEST else None
    contrast = lambda values: values[rows].mean(0) - (values[rest].mean(0) if mates is not None else 0)
    heatmap = contrast(_unit(explained.maps))
    direction = None if explained.psi is None else contrast(explained.psi)
    shown = images(rows[:SHOWN].tolist())
    bands: tuple[int, ...] = ()
    regions = None
    if kind == "bands":
        more = np.clip(contrast(_unit(explained.spectra)), 0, None)
        order = np.argsort(-more)
        held = np.cumsum(more[order]) - more[order] < _BAND_SHARE * max(more.sum(), 1e-12)
        kept = np.zeros(len(more), bool)
        kept[order[held]] = True
        bands = tuple(np.flatnonzero(kept).tolist())
        proof = judge.bands(x, kept, x if mates is None else mates, seed)
    elif kind == "tone":
        proof = judge.tone(x, x if mates is None else mates, seed)
    else:
        heat: Heat
        if kind == "place":
            grid = torch.from_numpy(heatmap).float().clamp_min(0)[None, None]
            one = functional.interpolate(grid, x.shape[-2:], mode="bilinear", align_corners=False)[0]
            heat = lambda z: one.expand(len(z), -1, -1)
        else:  # of a whole class the logit itself
            heat = judge.subject.content(None if mates is None else direction, judge.batch_size)
        heats = [heat(z) for z in (x, shown)]
        heats = [judge.beyond(z, h) for z, h in zip((x, shown), heats, strict=True)]
        regions = region(heats[1]).bool().numpy()
        proof = judge.regions(x, heats[0], mates, seed)
    if parts.n_clusters == 1 and judge.subject.n_models == 1 and judge.subject.what != "normal":
        proof = replace(proof, alone=True)
    return Finding(
        judge.subject.index,
        view,
        kind,
        number,
        parts.n_clusters,
        rows,
        len(rows) / len(explained),
        heatmap.astype(np.float32),
        proof,
        direction,
        bands,
        regions,
    )


def _unit(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    return (flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)).reshape(values.shape)
