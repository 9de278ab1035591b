"""Find what the explanations of a subject share, and prove it: cluster each view of them, intervene on each
cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pfungst.data.traits import PREFIX
from pfungst.discover.cluster import Clustering, cluster
from pfungst.discover.explain import Explanations, Images, Kind, Marks, View
from pfungst.discover.mend import Edit, Pairs
from pfungst.discover.prove import FEWEST, PICTURES, Effects, Judge, Medium, Proof
from pfungst.discover.subjects import Heat, Subject
from pfungst.discover.texts import Texts, groups, surplus
from pfungst.errors import InputError
from pfungst.measure import best_split, holm
from pfungst.measure.limits import CARRIED_ALONE, DECIDES, P_SPURIOUS

SHOWN = 6  # prototypes
HAVING = "texts with"  # view of those that have words
LOST = "what removal costs"  # view of a class parted by that
_KINDS: tuple[Kind, ...] = ("place", "content", "tone", "bands")
_FIRST = 10  # images that a try begins with; where they show that it carries too little, no more are changed
_MEASURED = 100  # images that the way to the class is measured on
WRITTEN = 100  # images that text is taken out of, at least: it is small, and where it lies is known
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
        regions: (n, H, W) boolean, where the first n were changed; None of kind "bands".
        proof: what interventions did, on images drawn from the cluster.
        words: of texts those that hold more of the relevance than in the others; of kind "words" what was
            taken out and put in.
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
    words: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()

    @property
    def rank(self) -> tuple[bool, bool, bool, float]:
        """Sorts findings by what is proved when sorted in falling order; those that say which images before a
        class as a whole."""
        return self.proof.survives, self.proof.decides, self.n_clusters > 1, self.proof.insert.low


class _Try(NamedTuple):
    """A cluster (`number` of `parts`) to intervene on; `whole`: nothing but interventions told it from its
    class."""

    view: str
    kind: Kind
    parts: Clustering
    number: int
    whole: bool
    words: tuple[str, ...] = ()


Mend = Callable[[Finding, Pairs, Explanations], list[Edit]]
Probes = tuple[np.ndarray, np.ndarray]


class _Panel:
    """A judge for each probe, and which of them each image is for: the one that was not fitted to it."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        images: Images,
        n: int,
        others: Tensor,
        probes: Probes | None,
        batch_size: int,
        seed: int,
        medium: Medium = PICTURES,
    ) -> None:
        self.medium = medium
        self.part, beside = probes or (np.zeros(n, int), np.zeros(len(others), int))
        order = np.random.default_rng((seed, subjects[0].index)).permutation(n)
        firsts = order[np.unique(self.part[order], return_index=True)[1]]
        own = np.unique(np.concatenate([order[:_MEASURED], firsts]))
        self.judges = {
            int(p): Judge(
                subjects[p],
                images(own[self.part[own] == p].tolist()),
                others[beside == p],
                batch_size,
                medium,
            )
            for p in np.unique(self.part)
        }
        self.subject, self.batch_size = subjects[0], batch_size
        for i in range(self.subject.n_models):
            sides = zip(*(j.ends[i] for j in self.judges.values()), strict=True)
            way = self.subject.way(*(np.concatenate(side) for side in sides))
            for judge in self.judges.values():
                judge.way[i] = way

    def split(self, rows: Sequence[int] | np.ndarray) -> list[tuple[int, Judge, np.ndarray]]:
        """The judges of some rows, each with its number and the places of its rows among them."""
        part = self.part[np.asarray(rows, dtype=int)]
        return [(p, j, np.flatnonzero(part == p)) for p, j in self.judges.items() if (part == p).any()]

    def masks(self, rows: Sequence[int] | np.ndarray, x: Tensor, heat: _Heats) -> Tensor:
        """Where in images (n, C, H, W) of these rows the heat is, (n, H, W) of 0 and 1."""
        out = x.new_zeros(len(x), *x.shape[-2:])
        for _, judge, at in self.split(rows):
            out[at] = self.medium.region(x[at], judge.beyond(x[at], heat(judge)(x[at]))).to(out)
        return out

    def falls(self, rows: Sequence[int] | np.ndarray, x: Tensor, heat: _Heats, seed: int) -> np.ndarray:
        """Fall of the evidence in images without what is hot, beyond a control."""
        out, masks = np.zeros(len(x)), self.masks(rows, x, heat)
        for _, judge, at in self.split(rows):
            out[at] = judge.falls(x[at], masks[at], seed)
        return out


_Heats = Callable[[Judge], Heat]


def find(
    subject: Subject | Sequence[Subject],
    explained: Explanations,
    images: Images,
    others: Tensor,
    *,
    views: Sequence[View] | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    text: Marks | None = None,
    units: np.ndarray | None = None,
    probes: Probes | None = None,
    mend: Mend | None = None,
    medium: Medium = PICTURES,
    most: int = 6,
    n_images: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[list[Finding], dict[str, Clustering]]:
    """Cluster the explanations of a subject and intervene on each cluster of at least 6 images.

    Args:
        subject: a class, or the score of a detector. Without witnesses, the object is what the audited model
            still recognises. Several where images are answered by different probes of the same features.
        explained: of its images.
        images: gives the images of rows, in the same order.
        others: (M, C, H, W) that are not of it.
        views: what is clustered; all of the explanations by default.
        columns: values (N,) as text, "" for unknown. Of the columns that the evidence follows (Kruskal and
            Wallis, Holm over all columns), the group of most evidence is tried like a cluster.
        text: where text is burnt into images, "file: text = text": the images that have some are tried.
        units: (N,) of what is not independent, such as patients: of a cluster as many as there are of these
            are changed before a second image of any, and each counts once.
        probes: (N,) and (M,) which of several subjects answers for each image and each other image: one that
            was fitted to no image of its unit. What is put into an image is of the same part, so that all
            differences are within one probe; each needs others.
        mend: gives the edits that fit a finding, with what its proof changed.
        medium: what the inputs are, images by default.
        most: clusters per view.
        n_images: of a cluster that are changed, drawn at random; of those with text at least 100. Where ten
            of them show that it carries too little (upper end below ``DECIDES``) it stays with these.
        batch_size: images at a time.
        seed: of all that is drawn.

    Returns:
        The findings, p not yet corrected (:func:`correct`, over all classes), and the clustering of each
        view.

    Raises:
        InputError: fewer than 6 images, or none of others.
    """
    n = len(explained)
    subjects = list(subject) if isinstance(subject, Sequence) else [subject]
    if n < FEWEST:
        number = subjects[0].index
        raise InputError(f"{n} images of subject {number} prove nothing", f"pass at least {FEWEST}")
    panel = _Panel(subjects, images, n, others, probes, batch_size, seed, medium)
    who = np.arange(n) if units is None else np.unique(units, return_inverse=True)[1]

    def drawn(rows: np.ndarray, rng: np.random.Generator, least: int) -> list[int]:
        rows = rng.permutation(rows)
        first = np.isin(np.arange(len(rows)), np.unique(who[rows], return_index=True)[1])
        return sorted(np.concatenate([rows[first], rows[~first]])[: max(n_images, least)].tolist())

    found: list[Finding] = []
    tried, clusterings = _tries(explained, explained.views() if views is None else views, most, seed)
    of_columns = _KINDS if explained.words is None else ("place", "content", "words")
    for name, parts in _followed(explained.evidence, columns or {}):
        tried += [_Try(name, kind, parts, 0, False) for kind in of_columns]
    tried += _marked(text, n, batch_size)
    for which in tried:  # grows by the parts of what decides a class as a whole
        one, pairs, heat = _tried(panel, explained, images, which, text, drawn, who, seed)
        if replace(one.proof, corrected=one.proof.p).decides:
            if one.n_clusters == 1 and heat is not None:
                having = _having(panel, images, n, heat, seed)
                tried += [] if having is None else [_Try(LOST, one.kind, having, 0, True)]
            if mend is not None:
                one = replace(one, edits=tuple(mend(one, pairs, explained)))
        found.append(one)
    return found, clusterings


def _tries(
    explained: Explanations, views: Sequence[View], most: int, seed: int
) -> tuple[list[_Try], dict[str, Clustering]]:
    """What the views say is to be tried, and the clustering of each; of texts also those with some words."""
    tried: list[_Try] = []
    clusterings: dict[str, Clustering] = {}
    for view in views:
        parts = clusterings[view.name] = cluster(view.vectors, most, seed=seed)
        whole = parts.n_clusters == 1
        if whole and any(t.whole for t in tried):
            continue  # the whole is tried once
        for number in range(parts.n_clusters):
            if len(parts.rows(number)) >= FEWEST:
                kinds = [k for k in view.kinds if not whole or k in ("place", "content", "words")]
                tried += [_Try(view.name, kind, parts, number, whole) for kind in kinds]
    for g in groups(explained) if explained.words is not None else ():
        if g.member.sum() >= FEWEST:
            parts, name = Clustering.of(g.member, -g.held), f"{HAVING} {' '.join(g.words)}"
            tried.append(_Try(name, "words", parts, 0, bool(g.member.all()), g.words))
    return tried, clusterings


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
            yield name, Clustering.of(member, far)


def _batches(n: int, size: int) -> list[range]:
    return [range(i, min(i + size, n)) for i in range(0, n, size)]


def _marked(text: Marks | None, n: int, batch_size: int) -> list[_Try]:
    """The images with burnt-in text (0) against those without, where at least 6 have some."""
    if text is None:
        return []
    some = np.concatenate([text(b).flatten(1).any(1).numpy() for b in _batches(n, batch_size)])
    if some.sum() < FEWEST:
        return []
    return [_Try(f"{PREFIX}text = text", "text", Clustering.of(some), 0, bool(some.all()))]


def _having(panel: _Panel, images: Images, n: int, heat: _Heats, seed: int) -> Clustering | None:
    """Of a class that something decides: the images that lose evidence without it (0) against the others;
    None where their falls, or those of 100 drawn from many, are not two groups of at least 6."""

    def of(rows: np.ndarray) -> np.ndarray:
        parts = (rows[b.start : b.stop].tolist() for b in _batches(len(rows), panel.batch_size))
        return np.concatenate([panel.falls(b, images(b), heat, seed + i) for i, b in enumerate(parts)])

    if n > 2 * _MEASURED:
        some = np.random.default_rng((seed, panel.subject.index, 3)).permutation(n)[:_MEASURED]
        if best_split(of(np.sort(some))).separation <= 0:
            return None
    falls = of(np.arange(n))
    split = best_split(falls)
    others = falls <= split.threshold
    if split.separation <= 0 or not FEWEST <= others.sum() <= n - FEWEST:
        return None
    return Clustering.of(~others, -falls)


def _tried(
    panel: _Panel,
    explained: Explanations,
    images: Images,
    which: _Try,
    text: Marks | None,
    drawn: Callable[[np.ndarray, np.random.Generator, int], list[int]],
    who: np.ndarray,
    seed: int,
) -> tuple[Finding, Pairs, _Heats | None]:
    """A cluster and its proof, what that changed, and for a place and content where in images what it shares
    lies."""
    view, kind, parts, number, whole, words = which
    subject = panel.subject
    rng = np.random.default_rng((seed, subject.index, number))
    rows, rest = parts.rows(number), np.flatnonzero(parts.labels != number)
    some, beside = (drawn(r, rng, WRITTEN if kind == "text" else 0) for r in (rows, rest))
    able = [r for r in some if panel.part[r] in panel.part[beside]]  # content of the rest for the same probe
    some, beside = (able, beside) if min(len(beside), len(able)) >= FEWEST else (some, [])
    mates = images(beside) if beside else None
    contrast = lambda values: values[rows].mean(0) - (values[rest].mean(0) if mates is not None else 0)
    heatmap = contrast(_unit(explained.maps))
    direction = None if explained.psi is None else contrast(explained.psi)
    shown = rows[:SHOWN].tolist()
    if explained.words is not None and not words:
        words = surplus(explained, rows, rest if mates is not None else rest[:0])
    bands: tuple[int, ...] = ()
    heat = None
    kept = np.zeros(explained.spectra.shape[1], bool)
    if kind == "bands":
        kept = _held(contrast(_unit(explained.spectra)))
        bands = tuple(np.flatnonzero(kept).tolist())
    elif kind == "place":
        heat = _fixed(heatmap, panel.medium)
    elif kind == "content":  # of a whole class the logit itself
        along = None if mates is None else direction
        heat = cache(lambda judge: judge.subject.content(along, judge.batch_size))

    where = _where(panel, kind, heat, text, words)

    def proved(chosen: list[int]) -> tuple[Effects, Proof]:
        x = images(chosen)
        masks = where(chosen, x)

        def effects(judge: Judge, at: np.ndarray, of: np.ndarray) -> Effects:
            own, others = x[at], None if mates is None else mates[of]
            if masks is not None:
                return judge.regions(own, masks[at], others, seed, letters=kind == "text")
            others = own if others is None else others
            return judge.bands(own, kept, others, seed) if kind == "bands" else judge.tone(own, others, seed)

        split = panel.split(chosen)
        found = Effects.joined(
            {p: effects(j, at, np.flatnonzero(panel.part[beside] == p)) for p, j, at in split}
        )
        return found, found.proof(seed, who[[chosen[i] for _, _, at in split for i in at]])

    few = len(some) >= 2 * _FIRST and kind != "text"
    first = sorted(rng.permutation(some)[:_FIRST].tolist()) if few else some
    found, proof = proved(first)
    if few and proof.insert.high >= DECIDES:
        found, proof = proved(some)
    regions = where(shown, images(shown))
    weak = parts.n_clusters == 1 and proof.insert.low < CARRIED_ALONE
    if subject.what != "normal" and (weak or (whole and subject.n_models == 1)):
        proof = replace(proof, alone=True)
    finding = Finding(
        subject.index,
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
        None if regions is None else regions.bool().numpy(),
        words,
    )
    return finding, found.pairs, heat


def _where(
    panel: _Panel, kind: Kind, heat: _Heats | None, text: Marks | None, words: Sequence[str]
) -> Callable[[Sequence[int], Tensor], Tensor | None]:
    """The masks of rows and their images; None of what has no place."""
    if kind == "text" and text is not None:
        return lambda chosen, x: text(chosen)
    if kind == "words" and isinstance(medium := panel.medium, Texts):
        return lambda chosen, x: medium.named(x, words)
    return lambda chosen, x: None if heat is None else panel.masks(chosen, x, heat)


def _held(contrast: np.ndarray) -> np.ndarray:
    """The bands that hold most of what a mean spectrum has more than another, boolean."""
    more = np.clip(contrast, 0, None)
    order = np.argsort(-more)
    kept = np.zeros(len(more), bool)
    kept[order[np.cumsum(more[order]) - more[order] < _BAND_SHARE * max(more.sum(), 1e-12)]] = True
    return kept


def _fixed(heatmap: np.ndarray, medium: Medium = PICTURES) -> _Heats:
    """The same place (R, S) in every image."""
    grid = torch.from_numpy(heatmap).float().clamp_min(0)
    return lambda judge: lambda z: medium.spread(grid, z)


def _unit(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    return (flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)).reshape(values.shape)
