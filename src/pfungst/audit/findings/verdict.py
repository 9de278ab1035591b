"""From proofs to sentences: what was found, how sure, and what can have escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pfungst.audit.findings.result import Answered, Column, Discovered, DiscoveryEntry, Proved, What, called
from pfungst.audit.findings.search import corrected
from pfungst.audit.findings.task import Key, judged
from pfungst.audit.findings.topics import Effort
from pfungst.audit.result import About, Level, Metric, Verdict
from pfungst.discover.prove import FEWEST
from pfungst.discover.subjects import WORDS
from pfungst.errors import few
from pfungst.measure.limits import CARRIED, DECIDES, P_SPURIOUS, RETAINED, STABLE

_CALLED = {
    "place": "something at one place",
    "tone": "brightness, contrast or colour",
    "text": "burnt-in text",
    "bands": "frequency bands",
    "words": "words",
}
_BLIND = (
    "An artefact in nearly all of a class can escape, and what has neither a place, nor content that "
    "moves, nor a tone or frequency of its own."
)
_BLIND_TEXTS = (
    "An artefact in nearly every text of a class can escape, and what lies in no words: order, grammar, tone."
)


def conclude(
    entries: Sequence[DiscoveryEntry],
    witnesses: Sequence[str] = (),
    answers: Mapping[Key, Answered] | None = None,
) -> Discovered:
    """What the proofs of all topics together say.

    Args:
        entries: of every topic, p not yet corrected.
        witnesses: names of other models that judged what the object is.
        answers: what people say of findings.
    """
    entries = judged(corrected(entries), answers or {})
    tried = sum(len(e.findings) + len(e.told) for e in entries)
    made = lambda headline, *sentences: Discovered(
        headline=headline, sentences=list(sentences), tried=tried, entries=entries
    )
    if not tried:
        return made(f"Nothing could be tried: no class has {FEWEST} images beside those of others")
    basis = f"{tried} clusters of explanations and columns were tried"
    unsure = [e.name for e in entries if any(f.standing == "object" for f in e.findings)]
    pairs, moved, sources = made("").found(), made("").moving(), made("").sources()
    told = [
        f"{e.name}: {t.reason}; {t.share:.0%} of the {e.noun} have {t.column} = {t.value}, of which "
        f"{t.inside:.0%} are {e.name}, of the others {t.outside:.0%}. No intervention: it goes with the "
        "class, whatever the reason."
        for e, t in sources[:3]
    ]
    if not pairs and sources:
        entry, top = sources[0]
        more = len(sources) - 1
        return made(
            f"{entry.name} is told by where {entry.noun} come from: {top.column}"
            + (f"; and {more} more columns" if more else ""),
            *told,
            f"{basis}; compare within its values, or balance the training {entry.noun} over it.",
        )
    if not pairs:
        open_ = f"{few(unsure)}: the model follows what it cannot do without, the object or a shortcut."
        classes = any(e.what in ("class", "series") and e.name in unsure for e in entries)
        hint = " Only another model can tell: name one with --witness." if classes and not witnesses else ""
        headline = "Nothing beside the object was proved to decide"
        if moved:
            e, f = moved[0]
            headline = f"{e.name} is moved by {what_of(f, e.what)}, too little to be proved to decide it"
        return made(
            f"{headline}; {basis}",
            *[_moving(e, f) for e, f in moved[:3]],
            *([open_ + hint] if unsure and not witnesses else []),
            "What was not found is not shown to be absent.",
            _BLIND if entries[0].what != "texts" else _BLIND_TEXTS,
        )
    entry, first = pairs[0]
    more = len({e.name for e, _ in pairs}) - 1
    by = _word(first.kind, entry.what, "something")
    by += f" ({few(first.words)})" if first.kind == "words" else ""
    by = first.judged.names[0] if first.judged and first.judged.names else by
    verb = "decided" if (first.insert.low or 0) >= DECIDES else "moved"  # by what people call an artefact
    group = f" ({first.view})" if " = " in first.view and first.kind != "text" else ""
    own = f"{entry.name} is {verb} by {by} beside the object in {first.share:.0%} of its {entry.noun}{group}"
    decided = {
        "class": own,
        "series": own,
        "texts": own,
        "normal": f"{entry.name}: {first.share:.0%} are scored by {by}, which is no defect",
        "defect": f"{entry.name}: {first.share:.0%} are scored by {by}, which is not needed to flag them",
    }[entry.what]
    sentences = [f"{e.name}: {what_of(f, e.what)}: {f.reason}." for e, f in pairs[:3]]
    if not witnesses and any(e.what != "normal" and f.judged is None for e, f in pairs):
        sentences.append("Without a witness, the object is what the audited model itself still recognises.")
    sentences += told
    look = "read the texts" if entry.what == "texts" else "look at the pictures"
    return made(
        decided + (f"; and {more} more" if more else ""),
        *sentences,
        f"{basis}; {look} before you call it spurious.",
    )


def _moving(e: DiscoveryEntry, f: Proved) -> str:
    """What moves answers, and how far."""
    words = WORDS[e.what]
    return (
        f"{e.name}: {what_of(f, e.what)} moves the answer: put into {words.targets} "
        f"it turns {f.flips[0]:.0%} of them (controls {f.flips[1]:.0%}) and carries "
        f"{f.insert.value:.0%}{f.insert.ends('.0%')} of {words.carried}, below {DECIDES:.0%} at "
        f"the lower end; without it the evidence falls by {f.remove.value:.2f}{f.remove.ends()} {words.unit} "
        f"(P = {f.corrected:.2g}, Holm)."
        f"{'' if f.kind == 'text' else ' It may be a part of the object: look, or ask people.'}"
    )


def verdict(found: Discovered, too_few: dict[str, int]) -> Verdict:
    """The verdict of a discovery on its own."""
    if not found.tried:
        there = f"There are {few(f'{n} of {c}' for c, n in too_few.items())}."
        return Verdict(level="too-few", headline=found.headline, sentences=[there] if too_few else [])
    pairs = found.found()
    if not pairs and not found.sources():
        level: Level = "not-established" if found.moving() else "sound"
        return Verdict(level=level, headline=found.headline, sentences=found.sentences)
    if not pairs:
        entry, top = found.sources()[0]
        numbers = {
            "share": top.share,
            "pooled": top.pooled,
            "within": top.within,
            "found": len(found.sources()),
        }
        about = About(entry=entry.name, column=top.column, numbers=numbers)
        return Verdict(level="clever-hans", headline=found.headline, sentences=found.sentences, about=about)
    entry, first = pairs[0]
    numbers = {
        "share": first.share,
        "insert": first.insert.value,
        "flips": first.flips[0],
        "found": len(pairs),
    }
    about = About(entry=entry.name, numbers=numbers)
    return Verdict(level="clever-hans", headline=found.headline, sentences=found.sentences, about=about)


def _word(kind: str, what: What, otherwise: str) -> str:
    return called(kind, what) if what == "series" and kind == "tone" else _CALLED.get(kind, otherwise)


def what_of(f: Proved, what: What = "class") -> str:
    """What a cluster shares, in words that start a sentence."""
    shared = _word(f.kind, what, "content that the explanations share")
    noun = WORDS[what].noun
    shared += f" ({few(f.words)})" if f.kind == "words" else ""
    bands = f" {few(map(str, f.bands))} of 8" if f.bands else ""
    some = f"{shared}{bands} in {f'{f.share:.0%}' if f.n_clusters > 1 else 'all'} of its {noun}"
    if f.kind == "text":
        return some
    if " = " in f.view:
        return f"{some} ({f.view})"
    named = next((f" ({c.column} = {c.value} in {c.inside:.0%}, else {c.outside:.0%})" for c in sure(f)), "")
    return some + named


def sure(f: Proved) -> list[Column]:
    """The columns that a cluster surely goes with."""
    return [c for c in f.columns if c.p <= P_SPURIOUS]


def metrics(found: Discovered) -> dict[str, Metric]:
    """What ``pfungst check`` can gate on."""
    if not found.entries:
        return {}
    alive = {e.name: [f for f in e.findings if f.standing == "found"] for e in found.entries}
    count = {
        e.name: float(len(alive[e.name]) + sum(t.standing == "found" for t in e.told)) for e in found.entries
    }
    flips = {name: max((f.flips[0] - f.flips[1] for f in fs), default=0.0) for name, fs in alive.items()}
    return {
        "findings": Metric.worst(count, "lower", "findings that survived proof"),
        "flips": Metric.worst(
            flips, "lower", "other images that it turns once put into them, beyond controls"
        ),
    }


def how(effort: Effort, noun: str = "images") -> list[str]:
    """How the numbers came about."""
    lines = [
        f"Explained is the logit of a class, or the score of a detector, on up to {effort.per_topic} of its "
        "images, by layer-wise relevance propagation; clustered are heatmaps by patches, spectra, and where "
        "there are any relevance by penultimate features and the similarity with the class, each of norm 1.",
        "Groups of the columns that the evidence follows most (Kruskal and Wallis, Holm over columns), at "
        "most three, are tried like clusters. Of every column it is asked whether the evidence still tells "
        "the class between images of the same value (AUROC, each patient once where that is known); found is "
        f"where at least {CARRIED:.0%} of what is told beyond chance falls away (lower end), with "
        f"P ≤ {P_SPURIOUS:g} after the same correction; p is that of 4,999 permutations of the column within "
        "the class and within the others.",
        "Clusters are spectral, on a graph of 10 nearest neighbours. Their number is that of the eigengap "
        "which most exceeds those of 19 single clouds of the same covariance, if resamples agree (adjusted "
        f"Rand index {STABLE:.1f} or more); else one.",
        f"Each cluster of {FEWEST} images or more is tried on {effort.changed} of them, drawn at random, and "
        "on ten where these show that it carries too little. "
        "Found is what lowers the evidence when taken away more than a control does, raises it when put into "
        "other images, beyond other content of the same images and the content of the topic's other images, "
        f"by {DECIDES:.0%} of the way at the lower end, with P ≤ {P_SPURIOUS:g} after Holm's correction for "
        f"all clusters, and without which at least {RETAINED:.0%} (lower end) of the images are still "
        "recognised (of normal images, which hold no object, that is not asked). What all images of a class "
        "have is found only where a witness judged it.",
        "Intervals are 95 % bootstrap over the changed images.",
    ]
    if noun == "texts":
        lines[0] = (
            f"Explained is the logit of a class on up to {effort.per_topic} of its texts, by layer-wise "
            "relevance propagation to the tokens; clustered are relevance by words (that six texts have), "
            "by penultimate features and by places, each of norm 1. Texts that have the words of most "
            "relevance, with those that go with them, are tried like clusters."
        )
    return [line.replace("images", noun) for line in lines]
