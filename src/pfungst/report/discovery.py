"""The page of a discovery: what was found, how sure, what to do; then every cluster that was tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pfungst.audit.findings.result import (
    Discovered,
    DiscoveryEntry,
    DiscoveryResult,
    Mended,
    Proved,
    Shown,
    Told,
    called,
)
from pfungst.discover.subjects import WORDS
from pfungst.files import read
from pfungst.measure.limits import FALL
from pfungst.report import page as ui
from pfungst.report import parts, text
from pfungst.report.images import data_uri, file_tile, outline, overlay, ramp
from pfungst.report.maps import Map, panel

_WORDS = {
    "found": "found",
    "moves": "moves the answer",
    "object": "may be the object",
    "unproved": "not proved",
}
_CERTAIN = 0.05  # corrected p up to which a column is named beside a cluster
_SIDE = 176
_MOVING = 3  # exhibits of what moves answers
_REMEDY = "run the discovery again"
_PLANE = (
    "One point for each of the {}: the first two principal components of what was clustered. Clusters are "
    "found in up to 30, so that they may overlap here."
)


@ui.page_of(DiscoveryResult)
def page(result: DiscoveryResult, folder: Path) -> ui.Page:
    """The page of a discovery."""
    found = result.discovered
    pairs, sources = found.found(), found.sources()
    first = next(iter([*pairs, *found.moving()]), None)
    return ui.Page.of(
        result,
        facts=[
            ("Model", result.model),
            ("Topics", f"{len(found.entries):,}"),
            (f"{_noun(found).capitalize()} explained", f"{sum(e.n for e in found.entries):,}"),
            ("Clusters and columns tried", f"{found.tried:,}"),
            ("Witnesses", text.listing(result.witnesses) or "none"),
        ],
        sections=[
            ui.Section(
                "found",
                "What was found, and what to do",
                _found(found, folder, result.next_command, True),
                lead="Clusters of explanations that decide without being the object, the strongest first.",
            ),
            _tried(found),
            _classes(found, folder),
            parts.skipped(result),
            _method(result),
        ],
        stats=[
            ui.Stat(
                "Findings",
                [ui.Step("survived proof", str(len(pairs) + len(sources)))],
                f"Of {found.tried} tried.",
            ),
            *(_source(*sources[0]) if sources and not pairs else _first(*first) if first else []),
        ],
    )


def section(found: Discovered | None, folder: Path) -> ui.Section | None:
    """Discovery as a section of an audit's page: what was found, how sure, what to do; None without it."""
    if found is None:
        return None
    told = ui.Prose(found.sentences)
    rest = ui.Details(
        "Everything that was tried",
        [*_tried(found).blocks],
        id="discovery-tried",
        note=f"{found.tried} clusters and columns",
    )
    return ui.Section(
        "discovery", "What nobody named", [told, *_found(found, folder, ""), rest], lead=f"{found.headline}."
    )


_SAID = {  # evidence: what is turned, what is left
    "class": ("taken for it", "recognised"),
    "series": ("taken for it", "recognised"),
    "texts": ("taken for it", "recognised"),
    "normal": ("flagged", "flagged"),
    "defect": ("flagged", "flagged"),
}


def _first(entry: DiscoveryEntry, f: Proved) -> list[ui.Stat]:
    taken = [
        ui.Step("controls", text.percent(f.flips[1])),
        ui.Step("with it", text.percent(f.flips[0]), "deployed"),
    ]
    before = [
        ui.Step("as they are", text.percent(f.accuracy[0])),
        ui.Step("without it", text.percent(f.accuracy[1]), "deployed"),
    ]
    turned, left = _SAID[entry.what]
    name = f"Other {entry.noun} taken for {entry.name}"
    if entry.what in ("normal", "defect"):
        name = f"{WORDS[entry.what].targets.capitalize()} {turned}"
    return [
        ui.Stat(name, taken, f"{entry.noun.capitalize()} that it was put into."),
        ui.Stat(f"{entry.noun.capitalize()} {left}", before, "Of the cluster that it was taken out of."),
    ]


def _source(entry: DiscoveryEntry, t: Told) -> list[ui.Stat]:
    over = [
        ui.Step(f"all {entry.noun}", text.ratio(t.pooled)),
        ui.Step("same value", text.ratio(t.within), "deployed"),
    ]
    among = [
        ui.Step("elsewhere", text.percent(t.outside)),
        ui.Step(t.value, text.percent(t.inside), "deployed"),
    ]
    return [
        ui.Stat(f"AUROC of {entry.name}", over, f"Between {entry.noun} of the same {t.column}."),
        ui.Stat(f"{entry.name} by {t.column}", among, f"{t.share:.0%} of the {entry.noun} have {t.value}."),
    ]


def _noun(found: Discovered) -> str:
    """What was explained, in the plural."""
    return found.entries[0].noun if found.entries else "images"


def _found(found: Discovered, folder: Path, command: str, alone: bool = False) -> list[ui.Block]:
    """What survived, and what to do with it; `alone`, or in the audit that measures and mends it."""
    blocks: list[ui.Block] = []
    noun = _noun(found)
    pairs = found.found()
    if pairs:
        outlined = any(shown.region or shown.tokens for _, f in pairs for shown in f.images)
        what = "the outline is" if outlined else "brightness, contrast, colour or bands are"
        if noun == "series":
            what = "what is shaded is" if outlined else "level, spread or bands are"
        look = "Read the texts" if noun == "texts" else "Look at the pictures"
        todo = [f"{look}: {what} what was taken out and put elsewhere."]
        if command:
            todo.append(f"Measure and mend it: {command}")
        elif alone and noun == "series":
            todo.append(
                "No audit goes through series: train again on series without it, or with it in all classes."
            )
        elif alone and noun == "texts":
            todo.append("No audit mends probes on texts: train again without it, or with it in all classes.")
        if any(f.edits for _, f in pairs):
            todo.append("Which edit mends it, and at what price, is in the table below.")
        todo.append(f"Then discover again on the mended model, with the same {noun}.")
        blocks.append(ui.Prose(todo, bullets=True))
        arrays = {e.arrays: _regions(folder, e) for e, _ in pairs}
        exhibits = [_exhibit(e, f, folder, arrays[e.arrays]) for e, f in pairs]
        blocks.append(_gallery("What survived proof", exhibits, noun))
        if any(f.edits for _, f in pairs):
            blocks.append(_mends(pairs, noun))
    else:
        todo = ["No cluster both decides and leaves the object."]
        if command:
            todo.append(f"Measure and mend what was found: {command}")
        moving = found.moving()[:_MOVING]
        if moving:
            todo.append(
                "Look at what moves answers: where it is no part of the object, say so with pfungst label."
            )
        blocks.append(ui.Prose(todo))
        if moving:
            exhibits = [_exhibit(e, f, folder, _regions(folder, e)) for e, f in moving]
            blocks.append(_gallery("What moves the answer, too little to decide it", exhibits, noun))
    if found.sources():
        blocks.append(_sources(f"Where {noun} come from tells the class", found.sources(), noun))
    return blocks


def _sources(name: str, pairs: Sequence[tuple[DiscoveryEntry, Told]], noun: str) -> ui.Table:
    """What columns tell of classes."""
    percent, ratio = text.percent, text.ratio
    columns = [
        ui.words("Class and column", "", lambda e, t: (t.column, e.name)),
        ui.Column(f"All {noun}", "AUROC", lambda e, t: (ratio(t.pooled), str(t.n))),
        ui.Column("Same value", "AUROC", lambda e, t: (ratio(t.within), f"{t.pairs:.0%} of pairs")),
        ui.Column("Fall", "", lambda e, t: parts.cell(t.fall)),
        ui.words("Value of most surplus", f"share of the {noun}", lambda e, t: (t.value, percent(t.share))),
        ui.Column("Class there", "elsewhere", lambda e, t: (percent(t.inside), percent(t.outside))),
        ui.Column("P", "corrected", lambda e, t: text.number(t.corrected)),
        ui.words("Said", "", lambda e, t: _said(t)),
    ]
    caption = (
        f"Whether the evidence still tells the class between {noun} of the same value; each patient counts "
        "once, where that is known. It is no intervention: what goes with the column may also be the object."
    )
    return ui.Table.of(columns, pairs, name, caption)


def _said(found: Proved | Told) -> ui.Cell:
    return ui.Cell(_WORDS[found.standing], tone="bad" if found.standing == "found" else "")


def _mends(pairs: Sequence[tuple[DiscoveryEntry, Proved]], noun: str) -> ui.Table:
    """The edits that fit each finding and their price, best first."""
    write: Callable[[DiscoveryEntry, float], str] = lambda entry, value: (
        text.ratio(value) if entry.what in ("normal", "defect") else text.percent(value)
    )
    columns = [
        ui.words("Finding and edit", "", lambda _, e: (e.name, "does it" if _does_it(e) else "")),
        ui.Column("Turned by it", "before", lambda _, e: (text.percent(e.turned[0]), str(e.n))),
        ui.Column("After", "", lambda _, e: text.percent(e.turned[1])),
        ui.Column("Right as they are", "before", lambda entry, e: write(entry, e.right[0])),
        ui.Column("After", "", lambda entry, e: write(entry, e.right[1])),
        ui.Column("Price", "", lambda entry, e: write(entry, max(e.right[0] - e.right[1], 0.0))),
    ]
    groups = [
        ui.Rows.of(
            columns, [(entry, e) for e in f.edits], f"{entry.name}: {f.view}, {called(f.kind, entry.what)}"
        )
        for entry, f in pairs
        if f.edits
    ]
    caption = (
        f"Fitted on one half of the changed {noun}, measured on the other. Turned: other {noun} "
        "taken for the topic with the finding put into them; of a detector the cluster's images that are "
        f"flagged. Right: {noun} as they are, the topic's and others' in equal parts; of a detector the "
        f"AUROC. Does it: turns at most half as many, and costs less than {FALL:.2f}."
    )
    return ui.Table(columns=columns, groups=groups, name="What mends it, and the price", caption=caption)


def _does_it(edit: Mended) -> bool:
    return edit.turned[1] <= edit.turned[0] / 2 and edit.right[0] - edit.right[1] < FALL


def _gallery(title: str, exhibits: Sequence[ui.Exhibit], noun: str) -> ui.Gallery:
    how = "the window that was changed shaded" if noun == "series" else "the region that was changed outlined"
    where = "where along time its heatmaps lie" if noun == "series" else "where its heatmaps lie"
    caption = f"Typical {noun} of the cluster, {how}; first, {where}."
    if noun == "texts":
        caption = "Typical texts of the cluster, words coloured by relevance, what was changed outlined."
    return ui.Gallery(title=title, caption=caption, exhibits=exhibits, ramp=data_uri(ramp()), outlines=False)


def _exhibit(entry: DiscoveryEntry, f: Proved, folder: Path, regions: Mapping[str, np.ndarray]) -> ui.Exhibit:
    tags = [
        f"{c.column} = {c.value}: {c.inside:.0%} against {c.outside:.0%}"
        for c in f.columns
        if c.p <= _CERTAIN
    ]
    turned, left = _SAID[entry.what]
    with_it, without = f"{f.flips[0]:.0%} {turned}", f"{f.accuracy[1]:.0%} {left}"
    control = f"control {f.accuracy[2]:.0%}, as they are {f.accuracy[0]:.0%}"
    outcomes = [
        ui.Outcome(
            "put elsewhere", with_it, f.standing not in ("found", "moves"), f"controls {f.flips[1]:.0%}"
        ),
        ui.Outcome("taken out", without, True, control),
    ]
    if f.words:
        named = "changed" if f.kind == "words" else "more relevance than in the others"
        tags.append(f"{named}: {', '.join(f.words)}")
    tiles = [] if entry.what == "texts" else [_map(f, folder)]
    masks = regions.get(str(f.number))
    for place, shown in enumerate([] if entry.what == "texts" else f.images):
        name, alt = shown.id.rsplit("/", 1)[-1], f"{entry.name}: {shown.id}"
        if entry.what == "series":
            file, side, path = folder / (shown.region or shown.file), 3 * _SIDE, ""
        else:
            file, side, path = folder / shown.file, _SIDE, "" if masks is None else outline(masks[place])
        tiles.append(file_tile(file, name, alt, _REMEDY, side, outline=path))
    part = f"all {entry.noun}"
    if f.n_clusters > 1:
        part = f"cluster {f.cluster + 1} of {f.n_clusters}, {f.share:.0%} of the {entry.noun}"
    return ui.Exhibit(
        name=f"{entry.name} · {f.view} · {part}",
        reason=f"{_WORDS[f.standing]}: {f.reason}",
        tags=tags,
        outcomes=outcomes,
        strips=[
            ui.Strip(
                f"{f.n} {entry.noun}, {f.recognised:.0%} {left}",
                tiles,
                texts=[_words(shown) for shown in f.images if shown.tokens],
            )
        ],
    )


def _words(shown: Shown) -> ui.Words:
    """A text with its words coloured."""
    colour = lambda r: "rgb(214 13 23 / {a:.2f})" if r > 0 else "rgb(15 74 199 / {a:.2f})"
    words = [(t.word, colour(t.relevance).format(a=0.6 * abs(t.relevance)), t.changed) for t in shown.tokens]
    return ui.Words(shown.id, words)


def _map(f: Proved, folder: Path) -> ui.Tile:
    """The mean heatmap of a cluster, less that of the others, on grey."""
    heat = np.array(f.map)
    side = max(1, _SIDE // max(heat.shape))
    big = np.kron(heat, np.ones((side if len(heat) > 1 else _SIDE // 4, side)))
    grey = np.full((*big.shape, 3), 200, np.uint8)
    drawn = overlay(big, grey, max(float(np.abs(big).max()), 1e-12))
    label = "mean heatmap" if f.n_clusters == 1 else "mean heatmap, less the others'"
    return ui.Tile(label, "Mean heatmap", data_uri(drawn), size=(drawn.shape[1], drawn.shape[0]))


def _regions(folder: Path, entry: DiscoveryEntry) -> Mapping[str, np.ndarray]:
    return read(folder / entry.arrays, _REMEDY)


def _tried(found: Discovered) -> ui.Section:
    noun = _noun(found)
    kind = lambda f: called(f.kind, found.entries[0].what)
    columns = [
        ui.words("Topic and cluster", "", lambda f: (f"{f.view}, {_part(f)}", kind(f))),
        ui.Column(noun.capitalize(), "", lambda f: (text.percent(f.share), str(f.n))),
        ui.Column("Put elsewhere", "share of the way carried", lambda f: parts.cell(f.insert, text.percent)),
        ui.Column("Taken out", "evidence, more than control", lambda f: parts.cell(f.remove)),
        ui.Column("Still recognised", "", lambda f: parts.cell(f.retained, text.percent)),
        ui.Column("P", "corrected", lambda f: text.number(f.corrected)),
        ui.words("Said", "", _said),
    ]
    caption = (
        "Small figures are 95 % intervals. Evidence for a class is in nats; that of a detector is 0 at the "
        "median training image and 1 at the threshold."
    )
    groups = {entry.name: entry.findings for entry in found.entries if entry.findings}
    table = ui.Table.grouped(columns, groups, "Every cluster that was tried", caption)
    lead = (
        f"A finding needs all four: it raises other {noun}, its loss lowers the evidence, the object "
        "stays, and chance is excluded."
    )
    told = [(entry, t) for entry in found.entries for t in entry.told]
    blocks: list[ui.Block] = [
        table,
        *([_sources("Every column that was tried", told, noun)] if told else []),
    ]
    return ui.Section("tried", "Everything that was tried", blocks, lead)


def _part(f: Proved) -> str:
    return "all" if f.n_clusters == 1 else f"{f.cluster + 1} of {f.n_clusters}"


def _classes(found: Discovered, folder: Path) -> ui.Section:
    blocks: list[ui.Block] = []
    noun = _noun(found)
    for entry in found.entries:
        arrays = _regions(folder, entry)
        rest = [f for f in entry.findings if f.standing != "found" and f.n_clusters > 1]
        chosen = [
            (
                f"{g.view}: {text.plural(g.n_clusters, 'cluster')}",
                ", ".join(
                    f"gap after {k}: {a:.3f} (one cloud {b:.3f})"
                    for k, (a, b) in enumerate(zip(g.gaps, g.expected, strict=True), 1)
                    if k > 1
                )
                + "".join(f"; {k} clusters come out again with ARI {v:.2f}" for k, v in g.stability.items()),
            )
            for g in entry.groupings
        ]
        inside: list[ui.Block] = [ui.Facts(title="How many clusters", facts=chosen)]
        planes = [
            panel(
                f"{g.view}: {text.plural(g.n_clusters, 'cluster')}",
                np.array(g.plane),
                np.array([f"cluster {c + 1}" for c in g.cluster]),
            )
            for g in entry.groupings
            if g.plane
        ]
        if planes:
            inside.append(Map(panels=planes, caption=_PLANE.format(noun)))
        if rest:
            inside.append(_gallery("Not proved", [_exhibit(entry, f, folder, arrays) for f in rest], noun))
        note = f"{entry.n:,} {noun} · {entry.accuracy:.0%} {_SAID[entry.what][1]}"
        id_ = f"topic-{len(blocks)}"
        blocks.append(ui.Details(entry.name, inside, id=id_, note=note))
    return ui.Section(
        "classes",
        "Topic by topic",
        blocks,
        lead="Clusters that did not survive, and how their number was chosen.",
    )


def _method(result: DiscoveryResult) -> ui.Section:
    facts = [("Weights", result.weights), ("Topics", result.named_by)]
    facts += [(f"Too few {_noun(result.discovered)}: {name}", str(n)) for name, n in result.too_few.items()]
    return parts.method(
        result,
        facts,
        beside=[
            ui.Facts(title=_noun(result.discovered).capitalize(), facts=text.flatten(result.preprocessing))
        ],
    )
