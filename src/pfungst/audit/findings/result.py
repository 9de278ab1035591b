"""What discovery finds, on its own and as a part of the audits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pfungst.audit.result import Interval, Model, Result

What = Literal[
    "class", "series", "texts", "normal", "defect"
]  # as of pfungst.discover.Subject, without torch
Standing = Literal["found", "moves", "object", "unproved"]
KINDS = {
    "place": "one place",
    "content": "content, wherever it is",
    "tone": "brightness, contrast, colour",
    "bands": "frequency bands",
    "text": "burnt-in text",
    "words": "words",
}


IMAGES = "images"  # key of the names of a topic's images in its arrays


def called(kind: str, what: What) -> str:
    """What was changed, in words."""
    return "level and spread" if (kind, what) == ("tone", "series") else KINDS[kind]


def members(number: int) -> str:
    """Key of the places among them of a finding's images."""
    return f"{IMAGES} of {number}"


class Column(Model):
    """The value of a column that a cluster has more often than the other images of its topic."""

    column: str
    value: str
    inside: float = Field(description="its share in the cluster")
    outside: float = Field(description="its share in the topic's other images")
    p: float = Field(description="of that by chance, corrected for all columns and values")


class Token(Model):
    """A word of a text."""

    word: str
    relevance: float = Field(description="for the topic; the largest of the text is 1 or −1")
    changed: bool = False


class Shown(Model):
    """A typical image of a cluster; the file is relative to the result. Of a text a picture of it."""

    id: str
    file: str
    region: str | None = Field(None, description="the same with what was changed outlined")
    tokens: list[Token] = Field([], description="of a text, in order")


class Answered(Model):
    """What people say of a finding."""

    answer: Literal["artefact", "object", "unsure"]
    names: list[str] = []


class Mended(Model):
    """An edit that fits a finding, measured on images that it was not fitted to."""

    name: str
    turned: tuple[float, float] = Field(
        description="other images taken for the topic with the finding put into them (of a detector the "
        "cluster's images that are flagged), before and after"
    )
    right: tuple[float, float] = Field(
        description="images as they are that are answered rightly, topic and others in equal parts (of a "
        "detector AUROC), before and after"
    )
    n: int = Field(description="images that `turned` is measured on")


class Proved(Model):
    """A cluster and its proof; what each number means is in :class:`pfungst.discover.Proof`."""

    number: int = Field(description="key of the regions of `images` in the arrays of its topic")
    view: str = Field(
        description="what was clustered: heatmaps, features, similarity or spectra; or a COLUMN = VALUE"
    )
    kind: str = Field(
        description="what was changed: a place, content wherever it is, tone, frequency bands or text"
    )
    cluster: int
    n_clusters: int
    n: int
    share: float = Field(description="of the topic's images")
    recognised: float = Field(description="share of the cluster that the model takes for the class, or flags")
    columns: list[Column]
    images: list[Shown]
    map: list[list[float]] = Field(description="mean heatmap by patches, less that of the other images")
    bands: list[int] = []
    words: list[str] = Field([], description="of texts: that hold more of the relevance than in the others")
    changed: int
    remove: Interval
    insert: Interval
    accuracy: tuple[float, float, float]
    flips: tuple[float, float]
    retained: Interval
    p: float = Field(description="before correction")
    corrected: float = Field(1.0, description="for all clusters of all topics (Holm)")
    alone: bool = Field(False, description="all images have it, and no witness tells it from the object")
    edits: list[Mended] = Field([], description="best first; of what may survive")
    standing: Standing = Field(
        "unproved",
        description="found: it decides, and is not the object; moves: likewise beyond chance, but too little "
        "for that; object: it decides, and may be the object",
    )
    reason: str = ""
    judged: Answered | None = Field(None, description="by people, where they were asked")


class Told(Model):
    """A column that tells a class; what each number means is in :class:`pfungst.discover.Told`."""

    column: str
    value: str
    share: float
    inside: float
    outside: float
    pooled: float
    within: float
    fall: Interval
    pairs: float
    n: int
    p: float = Field(description="before correction")
    corrected: float = Field(1.0, description="for all clusters and columns of all topics (Holm)")
    standing: Literal["found", "unproved"] = "unproved"
    reason: str = ""


class Grouped(Model):
    """How the number of clusters of a view was chosen."""

    view: str
    n_clusters: int
    gaps: list[float] = Field(description="eigengap after 1, 2, … clusters")
    expected: list[float] = Field(description="the same of single clouds of that covariance")
    stability: dict[int, float] = Field(
        description="adjusted Rand index over resamples, by number of clusters"
    )
    plane: list[tuple[float, float]] = Field(
        [], description="images on the first two principal components of what was clustered; 1,000 at most"
    )
    cluster: list[int] = Field([], description="of these images")


class DiscoveryEntry(Model):
    """One topic: a class, or the scores of a detector on normal or on defective images."""

    index: int
    name: str
    what: What = "class"
    n: int
    accuracy: float = Field(description="share that is taken for the class, or flagged")
    groupings: list[Grouped]
    findings: list[Proved] = Field(description="what is proved first")
    told: list[Told] = Field([], description="columns, what tells most first")
    arrays: str = Field(
        description="regions that were changed in the images shown, boolean (n, H, W) by number; names of "
        "all images, and which of them are in each cluster"
    )

    @property
    def noun(self) -> str:
        """What is explained, in the plural."""
        return self.what if self.what in ("series", "texts") else "images"


class Discovered(Model):
    """What was found, and all that was tried."""

    headline: str
    sentences: list[str]
    tried: int = Field(description="clusters and columns that were proved or not")
    entries: list[DiscoveryEntry]

    def found(self) -> list[tuple[DiscoveryEntry, Proved]]:
        """What survived proof, with its topic: text, which is no object, first; then the strongest."""
        pairs = [(e, f) for e in self.entries for f in e.findings if f.standing == "found"]
        return sorted(pairs, key=lambda p: (p[1].kind != "text", -(p[1].insert.low or 0)))

    def moving(self) -> list[tuple[DiscoveryEntry, Proved]]:
        """What moves answers, too little to decide them, with its topic: text, which is no object, before the
        rest, by the images that it turns."""
        pairs = [(e, f) for e in self.entries for f in e.findings if f.standing == "moves"]
        return sorted(pairs, key=lambda p: (p[1].kind != "text", p[1].flips[1] - p[1].flips[0]))

    def sources(self) -> list[tuple[DiscoveryEntry, Told]]:
        """Columns that tell a class, with their topic, what falls most first."""
        pairs = [(e, t) for e in self.entries for t in e.told if t.standing == "found"]
        return sorted(pairs, key=lambda pair: -pair[1].fall.value)

    def arrays(self) -> set[str]:
        """The files of changed regions."""
        return {e.arrays for e in self.entries}

    def files(self) -> set[str]:
        """The pictures shown."""
        shown = [s for e in self.entries for f in e.findings for s in f.images]
        return {file for s in shown for file in (s.file, s.region) if file is not None}


class DiscoveryResult(Result):
    """What ``pfungst discover`` writes."""

    kind: Literal["discovery"] = "discovery"
    model: str
    weights: str
    preprocessing: dict[str, Any]
    witnesses: list[str]
    named_by: str
    discovered: Discovered
    too_few: dict[str, int] = Field({}, description="classes with too few images, and how many")
    next_command: str = Field("", description="to go on with what was found")
