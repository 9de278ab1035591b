"""The page of a discovery: what was found, how sure, what to do; then every cluster that was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pfungst.audit.discovery.result import DiscoveryEntry, DiscoveryResult, Proved
from pfungst.audit.result import Result
from pfungst.errors import DataError
from pfungst.files import open_picture, read
from pfungst.report import parts, text
from pfungst.report.images import data_uri, outline, overlay, ramp
from pfungst.report.page import (
    Block,
    Cell,
    Column,
    Details,
    Exhibit,
    Facts,
    Gallery,
    Outcome,
    Page,
    Prose,
    Rows,
    Section,
    Stat,
    Step,
    Strip,
    Table,
    Tile,
    expect,
)

_WORDS = {"found": "found", "object": "may be the object", "unproved": "not proved"}
_KINDS = {"place": "one place", "content": "content, wherever it is", "bands": "frequency bands"}
_CERTAIN = 0.05  # corrected p up to which a column is named beside a cluster
_SIDE = 176


def page(result: Result, folder: Path) -> Page:
    """The page of a discovery.

    Args:
        result: a :class:`DiscoveryResult`.
        folder: where its images and arrays are.

    Raises:
        DataError: images or arrays are missing or damaged, or it is another kind of result.
    """
    result = expect(result, DiscoveryResult)
    found = result.found()
    return Page.of(
        result,
        facts=[
            ("Model", result.model),
            ("Classes", f"{len(result.entries):,}"),
            ("Images explained", f"{sum(e.n for e in result.entries):,}"),
            ("Clusters tried", f"{result.tried:,}"),
            ("Witnesses", text.listing(result.witnesses) or "none"),
        ],
        sections=[
            _found(result, folder),
            _tried(result),
            _classes(result, folder),
            parts.skipped(result),
            _method(result),
        ],
        stats=[
            Stat("Findings", [Step("survived proof", str(len(found)))], f"Of {result.tried} clusters tried."),
            *([] if not found else _first(*found[0])),
        ],
        stats_note="",
    )


def _first(entry: DiscoveryEntry, f: Proved) -> list[Stat]:
    taken = [
        Step("controls", text.percent(f.flips[1])),
        Step("with it", text.percent(f.flips[0]), "deployed"),
    ]
    before = [
        Step("as they are", text.percent(f.accuracy[0])),
        Step("without it", text.percent(f.accuracy[1]), "deployed"),
    ]
    return [
        Stat(f"Other images taken for {entry.name}", taken, "Images of other classes that it was put into."),
        Stat(f"Images of {entry.name} recognised", before, "Images of the cluster that it was taken out of."),
    ]


def _found(result: DiscoveryResult, folder: Path) -> Section:
    """What survived, and what to do with it."""
    blocks: list[Block] = []
    found = result.found()
    if found:
        todo = ["Look at the pictures: the outline is what was taken out and put elsewhere."]
        if result.next_command:
            todo.append(f"Find its components and switch them off: {result.next_command}")
        todo.append("Then discover again on the mended model, with the same images.")
        blocks.append(Prose(paragraphs=todo, bullets=True))
        arrays = {e.index: _regions(folder, e) for e, _ in found}
        exhibits = [_exhibit(e, f, folder, arrays[e.index]) for e, f in found]
        blocks.append(_gallery("What survived proof", exhibits))
    else:
        said = (
            "No cluster both decides and leaves the object. The clusters that were tried, and why, are below."
        )
        blocks.append(Prose(paragraphs=[said]))
    lead = "Clusters of explanations that decide for a class without being its object, the strongest first."
    return Section(id="found", title="What was found, and what to do", lead=lead, blocks=blocks)


def _gallery(title: str, exhibits: Sequence[Exhibit]) -> Gallery:
    caption = (
        "Typical images of the cluster, the region that was changed outlined; first, where its heatmaps lie."
    )
    return Gallery(title=title, caption=caption, exhibits=exhibits, ramp=data_uri(ramp()), outlines=False)


def _exhibit(entry: DiscoveryEntry, f: Proved, folder: Path, regions: Mapping[str, np.ndarray]) -> Exhibit:
    tags = [
        f"{c.column} = {c.value}: {c.inside:.0%} against {c.outside:.0%}"
        for c in f.columns
        if c.p <= _CERTAIN
    ]
    outcomes = [
        Outcome(
            "put elsewhere",
            f"{f.flips[0]:.0%} taken for it",
            f.standing != "found",
            f"controls {f.flips[1]:.0%}",
        ),
        Outcome(
            "taken out",
            f"{f.accuracy[1]:.0%} recognised",
            True,
            f"control {f.accuracy[2]:.0%}, as they are {f.accuracy[0]:.0%}",
        ),
    ]
    tiles = [_map(f, folder)]
    masks = regions.get(str(f.number))
    for place, shown in enumerate(f.images):
        pixels = _picture(folder, shown.file)
        path = "" if masks is None else outline(masks[place])
        size = (pixels.shape[1], pixels.shape[0])
        alt = f"{entry.name}: {shown.id}"
        tiles.append(Tile(shown.id.rsplit("/", 1)[-1], alt, data_uri(pixels, side=_SIDE), path, size))
    part = (
        "all images"
        if f.n_clusters == 1
        else f"cluster {f.cluster + 1} of {f.n_clusters}, {f.share:.0%} of the images"
    )
    title = f"{f.n} images, {f.recognised:.0%} recognised"
    reason = f"{_WORDS[f.standing]}: {f.reason}"
    return Exhibit(
        name=f"{entry.name} · {f.view} · {part}",
        reason=reason,
        tags=tags,
        outcomes=outcomes,
        strips=[Strip(title, tiles)],
    )


def _map(f: Proved, folder: Path) -> Tile:
    """The mean heatmap of a cluster, less that of the others, on grey."""
    heat = np.array(f.map)
    side = max(1, _SIDE // max(heat.shape))
    big = np.kron(heat, np.ones((side, side)))
    grey = np.full((*big.shape, 3), 200, np.uint8)
    drawn = overlay(big, grey, max(float(np.abs(big).max()), 1e-12))
    size = (drawn.shape[1], drawn.shape[0])
    return Tile(
        "mean heatmap" if f.n_clusters == 1 else "mean heatmap, less the others'",
        "Mean heatmap",
        data_uri(drawn),
        "",
        size,
    )


def _picture(folder: Path, file: str) -> np.ndarray:
    try:
        with open_picture(folder / file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / file} cannot be shown: {error}", "run the discovery again") from None


def _regions(folder: Path, entry: DiscoveryEntry) -> Mapping[str, np.ndarray]:
    return read(folder / entry.arrays, "run the discovery again")


def _tried(result: DiscoveryResult) -> Section:
    columns = [
        Column("Class and cluster", numeric=False),
        Column("Images"),
        Column("Put elsewhere", "share of the class carried"),
    ]
    columns += [
        Column("Taken out", "nats more than control"),
        Column("Still recognised"),
        Column("P", "corrected"),
    ]
    columns += [Column("Said", numeric=False)]
    groups = [
        Rows([_row(entry, f) for f in entry.findings], label=entry.name)
        for entry in result.entries
        if entry.findings
    ]
    table = Table(
        columns=columns,
        groups=groups,
        name="Every cluster that was tried",
        caption="Small figures are 95 % intervals.",
    )
    lead = (
        "A finding needs all four: it raises other images, its loss lowers the class's, the object stays, "
        "and chance is excluded."
    )
    return Section(id="tried", title="Everything that was tried", lead=lead, blocks=[table])


def _row(entry: DiscoveryEntry, f: Proved) -> list[Cell]:
    part = "all" if f.n_clusters == 1 else f"{f.cluster + 1} of {f.n_clusters}"
    return [
        Cell(f"{f.view}, {part}", _KINDS[f.kind]),
        Cell(text.percent(f.share), str(f.n)),
        parts.cell(f.insert, text.percent),
        parts.cell(f.remove),
        parts.cell(f.retained, text.percent),
        Cell(text.number(f.corrected)),
        Cell(_WORDS[f.standing], tone="bad" if f.standing == "found" else ""),
    ]


def _classes(result: DiscoveryResult, folder: Path) -> Section:
    blocks: list[Block] = []
    for entry in result.entries:
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
        inside: list[Block] = [Facts(title="How many clusters", facts=chosen)]
        if rest:
            inside.append(_gallery("Not proved", [_exhibit(entry, f, folder, arrays) for f in rest]))
        note = f"{text.plural(entry.n, 'image')} · {entry.accuracy:.0%} recognised"
        blocks.append(Details(title=entry.name, id=f"class-{entry.index}", note=note, blocks=inside))
    return Section(
        id="classes",
        title="Class by class",
        lead="Clusters that did not survive, and how their number was chosen.",
        blocks=blocks,
    )


def _method(result: DiscoveryResult) -> Section:
    facts = [("Weights", result.weights), ("Classes", result.named_by)]
    facts += [(f"Too few images: {name}", str(n)) for name, n in result.too_few.items()]
    return parts.method(
        result, facts, beside=[Facts(title="Images", facts=text.flatten(result.preprocessing))]
    )
