"""The page of a similarity audit; it shows what the result and its verdict say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pfungst.audit.result import Variant
from pfungst.audit.similarity.result import (
    SIMILARITY,
    Fall,
    Mitigation,
    Pair,
    ProbeScores,
    Provenance,
    Region,
    SimilarityResult,
    Trial,
    named,
)
from pfungst.files import read
from pfungst.measure import limits
from pfungst.report import discovery, parts, text
from pfungst.report import page as ui
from pfungst.report.images import data_uri, overlay
from pfungst.report.maps import Map, Strips, panel
from pfungst.report.pairs import PairPicture, caption_of, image_pair, token_pair

ORIGINAL = Variant(condition="original")
MARKS = parts.marks("accuracy", "pruning")
FALLS = {mark: f"{meaning} against the other images of the same classes" for mark, meaning in MARKS.items()}
_TRIALS = 8  # best settings of the sweep; the others are folded away
_SIDE = 320  # pixels of a picture on the page, at most
_TILES = 12  # of a strip
_COLUMNS = 6  # group columns that are not folded away
_CLASSES = 30  # of a confusion matrix


@ui.page_of(SimilarityResult)
def page(result: SimilarityResult, folder: Path) -> ui.Page:
    """The page of a similarity audit."""
    arrays = read(folder / result.arrays, "run the audit again")
    images = result.modality == "images"
    if images:
        found = [_accuracy(result), _groups(result), _provenance(result)]
        if result.verdict.level == "provenance":
            found.reverse()
        found += [_pairs(result, arrays), _summaries(result, arrays), _mitigation(result)]
        found += [discovery.section(result.discovery, folder), _map(result, arrays), _errors(result)]
        found.append(parts.skipped(result))
    else:
        found = [_relations(result), _pairs(result, arrays)]
    facts = [
        ("Encoder", result.encoder),
        ("Weights", "trained" if result.trained else "random"),
        ("Representation", f"{result.width} values"),
        ("Data", text.plural(result.n, "image" if images else "sentence pair")),
        ("Classes" if images else "Relations", str(len(result.classes))),
        *([("Kept together", result.kept_together)] if result.kept_together else []),
        ("Explained in", result.basis),
    ]
    circumstances = [
        ("Seeds", ", ".join(map(str, result.seeds))),
        ("Split", result.split),
        ("Rules", result.composite),
        ("Error of the sums", text.number(result.conservation)),
    ]
    if result.remainder is not None:
        circumstances.append(("Left out of a pair", f"≤ {text.percent(result.remainder)}"))
    circumstances.append(("Faithfulness", str(result.faithfulness or "not measured")))
    sections = [*found, parts.method(result, circumstances)]
    stats = _image_stats(result) if images else _text_stats(result)
    return ui.Page.of(result, facts=facts, sections=sections, stats=stats)


# --- figures ---------------------------------------------------------------------------------------------


def _text_stats(result: SimilarityResult) -> list[ui.Stat]:
    stats = []
    if result.auroc is not None:
        note = f"{result.relations[0].name} against the others; 0.50 is chance."
        stats.append(ui.Stat("AUROC", [ui.Step("similarity", text.ratio(result.auroc))], note))
    values = [ui.Step(r.name, text.ratio(r.similarity.value)) for r in result.relations]
    shared = [ui.Step(r.name, text.percent(r.shared_tokens)) for r in result.relations]
    return [
        *stats,
        ui.Stat(f"Mean {SIMILARITY[result.metric]}", values),
        ui.Stat("Relevance between equal words", shared),
    ]


def _image_stats(result: SimilarityResult) -> list[ui.Stat]:
    about = result.verdict.about
    stats = []
    for p in result.provenance:
        if result.verdict.level == "provenance" and p.column == about.column:
            stats += parts.provenance_stats(p)
            alone = [ui.Step(f"{p.column} alone", text.ratio(p.by_group_alone))]
            note = "Class-balanced accuracy of naming each group's commonest label."
            stats.append(ui.Stat("Without looking", alone, note))
    chance = f"Class-balanced; chance is {text.ratio(1 / len(result.classes))}."
    base = result.pooled(ORIGINAL)
    assert base is not None
    if not result.conditions:
        stats.append(ui.Stat("Accuracy", [parts.step(ORIGINAL, base.accuracy, name="all images")], chance))
    for condition in result.conditions[:2]:
        mended = Variant(condition=condition.condition, mitigated=True)
        steps = [
            parts.step(v, s.accuracy, mark=s.mark, meanings=MARKS, name="pruned" if v is mended else "")
            for v in (ORIGINAL, condition, mended)
            if (s := result.pooled(v)) is not None
        ]
        stats.append(ui.Stat("Accuracy", steps, chance))
    for g, f in [(group, fall) for group in result.falling for fall in group.falls][:2]:
        steps = [
            ui.Step("others", text.ratio(f.outside), "original"),
            ui.Step(g.group, text.ratio(f.inside), "deployed", f.mark, FALLS[f.mark]),
        ]
        note = f"{', '.join(f.classes[:4])}; {text.plural(f.n, 'image')} of the group."
        stats.append(ui.Stat("Accuracy by group", steps, note))
    if result.faithfulness is not None:
        value = result.faithfulness.value
        note = f"95 % interval {text.interval(value.low, value.high)}; 0 is a random order of patches."
        stats.append(ui.Stat("Faithfulness", [ui.Step("explanations", text.ratio(value.value))], note))
    for a in result.artefacts[:1]:
        steps = [
            ui.Step("with it", text.percent(a.share), "deployed"),
            ui.Step("without", text.percent(a.share_without), "original"),
        ]
        note = f"{text.percent(a.area)} of the area; pairs of different classes."
        stats.append(ui.Stat("Relevance where it is pasted", steps, note))
    return stats


# --- probe -----------------------------------------------------------------------------------------------


def _accuracy(result: SimilarityResult) -> ui.Section:
    binary = any(s.fpr is not None or s.fnr is not None for s in result.scores)
    rated = [ORIGINAL, *result.conditions] if binary else []
    columns = [
        ui.words("Images"),
        ui.Column("n"),
        *[ui.Column(str(v), "class-balanced accuracy") for v in result.variants],
        ui.Column("Rebalanced", "original"),
        *[ui.Column("FPR", str(v)) for v in rated],
        *([ui.Column("FNR", "original")] if binary else []),
    ]
    rows: dict[str, list[list[ui.Cell]]] = {}
    for column, group in dict.fromkeys((s.column, s.group) for s in result.scores):
        found = {s.variant: s for s in result.scores if (s.column, s.group) == (column, group)}
        rows.setdefault(column, []).append(_accuracy_row(result, found, rated, binary))
    groups = [ui.Rows(of, f"by {column}" if column else "", strong=not column) for column, of in rows.items()]
    caption = f"{parts.legend(MARKS)} Rebalanced: no class counts more than 10 images."
    table = partial(ui.Table, columns=columns, caption=caption, name="Accuracy of the probe by group")
    lead = (
        "A linear probe on the representation, fitted on original images: how well it reads the label, in "
        "which group, under which condition."
    )
    return ui.Section("probe", "What the probe reads", _folded(groups, 1 + _COLUMNS, table), lead)


def _folded(groups: list[ui.Rows], shown: int, table: Callable[..., ui.Table]) -> list[ui.Block]:
    """A table of the first groups of rows; the others are folded away."""
    first, rest = table(groups=groups[:shown]), groups[shown:]
    return [first, ui.Details(f"{len(rest)} more", [table(groups=rest)])] if rest else [first]


def _accuracy_row(
    result: SimilarityResult, found: dict[Variant, ProbeScores], rated: Sequence[Variant], binary: bool
) -> list[ui.Cell]:
    first = found[ORIGINAL]
    counts = ", ".join(f"{k} {v}" for k, v in first.counts.items()) if len(first.counts) <= 4 else ""
    if len(first.counts) == 1:
        counts += ": one class only"
    rates = [found[v].fpr for v in rated] + ([first.fnr] if binary else [])
    return [
        ui.Cell(first.group or "all images", counts),
        ui.Cell(f"{first.n:,}"),
        *[parts.cell(found[v].accuracy, mark=found[v].mark, meanings=MARKS) for v in result.variants],
        parts.cell(first.rebalanced),
        *[parts.cell(rate, text.percent, missing="no image of that class") for rate in rates],
    ]


def _groups(result: SimilarityResult) -> ui.Section | None:
    """Every group against all others of the same classes; nothing is left unmarked in silence."""
    if not result.subgroups:
        return None
    blocks = []
    marked = sum(bool(g.falls) for g in result.subgroups)
    for g in sorted(result.subgroups, key=lambda g: not g.falls):
        likeness = ""
        if g.alike_excess is not None:
            ends = text.interval(g.alike_excess.low, g.alike_excess.high)
            likeness = (
                f"images of different classes: cosine similarity {text.ratio(g.alike)}, of the others "
                f"{text.ratio(g.alike_outside)} (difference {ends})"
            )
        if g.whole is None:
            rows = [[ui.Cell("too few"), ui.Cell(f"{g.n:,}"), *[ui.Cell("–")] * 5]]
            blocks.append(ui.Rows(rows, str(g), likeness))
        else:
            blocks.append(ui.Rows.of(_FALL_COLUMNS, [g.whole, *g.classes], str(g), note=likeness))
    caption = (
        f"Small figures are 95 % intervals. ↓ the accuracy is lower by {limits.FALL:.2f} or more than that "
        f"of the other images of the class, ↓↓ by {limits.LARGE_FALL:.2f} or more, only where P < "
        f"{limits.P_GROUP:g} over images, adjusted over all rows (Holm). Compared are classes with "
        f"{limits.TEST_IMAGES:g} images in the group and as many outside; too few: there is none."
    )
    name = "Groups against the other images of the same classes"
    table = partial(ui.Table, columns=_FALL_COLUMNS, caption=caption, name=name)
    shown, title = _folded(blocks, max(marked, 2 * _COLUMNS), table), "Which images it fails on"
    lead = "Does the probe do worse on some images than on others of the same classes, and what do they "
    return ui.Section("subgroups", title, shown, f"{lead}share?")


def _taken(f: Fall) -> tuple[str, str]:
    rates = f"{text.percent(f.into_inside)}, of the others {text.percent(f.into_outside)}"
    return (f.into, rates) if f.into else ("–", "")


_FALL_COLUMNS = [
    ui.words(
        "Group",
        "",
        lambda f: ("class-balanced", ", ".join(f.classes[:6])) if len(f.classes) > 1 else f.classes[0],
    ),
    ui.Column("n", "", lambda f: f"{f.n:,}"),
    ui.Column(
        "In it", "accuracy", lambda f: ui.Cell(text.ratio(f.inside), "", f.mark, FALLS.get(f.mark, ""))
    ),
    ui.Column("Others", "accuracy", lambda f: text.ratio(f.outside)),
    ui.Column("Fall", "", lambda f: parts.cell(f.fall)),
    ui.Column("P", "over images, Holm", lambda f: f"{f.p_value:.2g}"),
    ui.words("Taken for", "more than others", _taken),
]


def _provenance(result: SimilarityResult) -> ui.Section | None:
    if not result.provenance:
        return None
    columns = [
        ui.words("Column", "", lambda p: (p.column, f"score for {p.label}")),
        ui.Column("η² group", "", lambda p: text.percent(p.eta2_group)),
        ui.Column("η² label", "", lambda p: text.percent(p.eta2_label)),
        ui.Column("AUROC", "pooled", lambda p: text.ratio(p.auroc_pooled)),
        ui.Column("AUROC", "within", lambda p: text.ratio(p.auroc_within)),
        ui.Column("Accuracy", "pooled", lambda p: text.ratio(p.accuracy_pooled)),
        ui.Column("Accuracy", "within", lambda p: text.ratio(p.accuracy_within)),
        ui.Column("Group alone", "accuracy without looking", lambda p: text.ratio(p.by_group_alone)),
        ui.Column(
            "Group read",
            "from the representation",
            lambda p: (text.ratio(p.group_readable), f"chance {text.ratio(p.group_chance)}"),
        ),
        ui.Column("P", "beyond the label, Holm", lambda p: f"{p.p_value:.1g}"),
        ui.words("The score", "", _followed),
    ]
    caption = (
        "η²: share of the variance of the probe's score that the group or the label explains. Within: mean "
        "over the groups that have several labels. Group alone: class-balanced accuracy of naming each "
        "group's commonest label."
    )
    name = "Does the score follow where images come from?"
    table = ui.Table.of(columns, result.provenance, name, caption)
    lead = "Does the probe tell the labels apart, or one source of images from another?"
    return ui.Section("provenance", "Where the images come from", [table], lead)


def _followed(p: Provenance) -> ui.Cell:
    word = "follows the group" if p.follows else "does not"
    return ui.Cell(word, "; ".join(p.reasons), tone="bad" if p.follows else "")


def _errors(result: SimilarityResult) -> ui.Section | None:
    if len(result.classes) > _CLASSES:
        return None
    blocks: list[ui.Block] = []
    for variant in result.variants:
        c = result.confusion[variant.key]
        rows = []
        for i, (name, row) in enumerate(zip(result.classes, c.matrix, strict=True)):
            cells = [ui.Cell(str(v or "·"), tone="good" if i == j else "") for j, v in enumerate(row)]
            rows.append([ui.Cell(name), *cells])
        note = "no errors"
        if c.errors:
            note = f"{text.percent(c.share)} of {text.plural(c.errors, 'error')} fall into {c.into}"
        caption = f"First repetition; columns are predictions. {note}."
        if c.turned:
            wrong, share = text.plural(c.turned, "image"), text.percent(c.turned_share)
            caption += f" Of {wrong} that it turns wrong, {share} are taken for {c.into}."
        table = ui.Table(
            columns=[ui.words("True"), *[ui.Column(name) for name in result.classes]],
            groups=[ui.Rows(rows)],
            caption=caption,
            name=f"Confusion, {variant}",
        )
        opened = variant in result.conditions[:1]
        blocks.append(ui.Details(str(variant), [table], note=note, open=opened))
    lead = "Errors that gather in one class point to a feature that stands for it."
    return ui.Section("errors", "Where errors fall", blocks, lead)


# --- pruning ---------------------------------------------------------------------------------------------


def _mitigation(result: SimilarityResult) -> ui.Section | None:
    m = result.mitigation
    if m is None:
        return None
    lead = f"{m.spec} sets filters {', '.join(map(str, m.filters))} to zero{_recovered(m)}."
    first, *rest = m.trials
    shown = sorted(rest, key=lambda t: -(t.accuracy + t.conditions[next(iter(m.recovered))]))[:_TRIALS]
    taken = m.trials[m.chosen]
    shown += [taken] if all(t is not taken for t in shown) else []
    caption = (
        f"Class-balanced accuracy on {text.plural(m.images, 'validation image')}, of a probe fitted anew on "
        "each pruned encoder. Filters are those that respond most to the condition on training images. The "
        "figures on test images are in the first table."
    )
    blocks: list[ui.Block] = [_trials(m, [first, *shown], "Pruning, best settings first", caption)]
    if len(shown) < len(rest):
        every = _trials(m, m.trials, "Pruning, all settings", "In the order in which they were tried.")
        note = "by layer and number of filters"
        blocks.append(ui.Details(f"all {len(rest)} settings", [every], note=note))
    return ui.Section("mitigation", "Pruning", blocks, lead)


def _recovered(m: Mitigation) -> str:
    """What of each fall comes back on test images; pruning may also take more away."""
    back: list[str] = []
    worse: list[str] = []
    for condition, share in m.recovered.items():
        if share is not None:
            of = "more than the fall" if share > 1.05 else f"{text.percent(abs(share))} of the fall"
            (worse if share < 0 else back).append(f"{of} under {condition}")
    told = [f"brings back {text.listing(back)}"] * bool(back)
    told += [f"makes it worse by {text.listing(worse)}"] * bool(worse)
    return f" and, on test images, {' and '.join(told)}" if told else "; there was no fall to bring back"


def _trials(m: Mitigation, shown: Sequence[Trial], name: str, caption: str) -> ui.Table:
    taken = m.trials[m.chosen]

    def under(t: Trial, condition: str) -> ui.Cell:
        return ui.Cell(text.ratio(t.conditions[condition]), tone="mitigated" if t is taken else "")

    columns = [
        ui.words("Layer", "", lambda t: (t.layer or "as it is", "taken" if t is taken else "")),
        ui.Column("Filters", "", lambda t: str(t.k)),
        ui.words("Where", "", lambda t: t.where),
        ui.Column("Share", "of the positive response", lambda t: text.percent(t.share)),
        ui.Column("original", "", lambda t: text.ratio(t.accuracy)),
        *[ui.Column(c, "", partial(under, condition=c)) for c in m.recovered],
    ]
    return ui.Table.of(columns, shown, name, caption)


# --- explanations ----------------------------------------------------------------------------------------


def _pairs(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> ui.Section | None:
    if not result.pairs:
        return None
    about = result.verdict.about
    first = (about.entry, f"with {about.condition}", named(about.column, about.entry))
    titles = sorted(dict.fromkeys(p.title for p in result.pairs), key=lambda title: title not in first)
    blocks: list[ui.Block] = []
    for number, title in enumerate(titles):
        mine = [p for p in result.pairs if p.title == title]
        note = f"similarity up to {text.ratio(max(p.similarity for p in mine))}"
        pictures = [_picture(p, arrays, rank, result) for rank, p in enumerate(mine)]
        blocks.append(ui.Details(title, pictures, id=f"pairs-{number}", note=note, open=number < 2))
    lead = (
        "The most similar pairs, and which parts make them so. Red lines join parts that raise the "
        "similarity, blue ones lower it; opacity as in the paper. Point at a part, or walk with the arrow "
        "keys, to see what it alone is matched with."
    )
    links = [(f"pairs-{i}", t) for i, t in enumerate(titles)]
    return ui.Section("pairs", "What makes them alike", blocks, lead, links)


def _picture(pair: Pair, arrays: dict[str, np.ndarray], rank: int, result: SimilarityResult) -> PairPicture:
    note = caption_of(pair.similarity, pair.bias_share, result.metric)
    title = f"{'Most similar' if rank == 0 else 'Next'} pair of {pair.title}"
    if pair.title.startswith("with "):
        title = "The pair that it brings together most"
    elif pair.title not in result.classes:
        title += ", of different classes"
    sides = (pair.first, pair.second)
    if pair.tokens is not None:
        return token_pair(arrays[pair.array], pair.tokens, pair.similarity, title, sides, note)
    shown = tuple(arrays["pictures"][list(pair.rows)])
    return image_pair(arrays[pair.array], shown, pair.grids, pair.similarity, title, sides, pair.tags, note)


def _summaries(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> ui.Section | None:
    blocks: list[ui.Block] = [_strips(result, arrays)] if result.summaries else []
    blocks += [_artefacts(result)] if result.artefacts else []
    blocks += [_regions(result)] if result.regions else []
    lead = "Averages over pairs: what similarity within a class or group rests on."
    return ui.Section("groups", "What groups have in common", blocks, lead) if blocks else None


def _strips(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> Strips:
    limit = float(arrays["profiles"].max())
    strips = []
    for column in dict.fromkeys(s.column for s in result.summaries):
        tiles = []
        for s in [s for s in result.summaries if s.column == column][:_TILES]:
            background = arrays["background"][s.row]
            size = background.shape[0]
            heat = cv2.resize(arrays["profiles"][s.row], (size, size), interpolation=cv2.INTER_NEAREST)
            picture = data_uri(overlay(heat, background, limit=limit), side=_SIDE)
            alt = f"Where the relevance of similarities within {s.name} lies, over the mean image"
            side = min(size, _SIDE)
            tiles.append(ui.Tile(f"{s.name}: {text.ratio(s.similarity)}", alt, picture, size=(side, side)))
        strips.append(ui.Strip(f"by {column}" if column else "by label", tiles))
    caption = (
        "Mean |relevance| of each patch over pairs within a group, on the group's mean image; grey is none, "
        f"full red {text.number(limit)}, one scale for all. The figure is the mean similarity."
    )
    return Strips(title="Which patches carry similarity", caption=caption, strips=strips)


def _artefacts(result: SimilarityResult) -> ui.Table:
    columns = [
        ui.words("Condition", "", lambda a: a.condition),
        ui.Column("Area", "", lambda a: text.percent(a.area)),
        ui.Column("Share", "of relevance, with it", lambda a: text.percent(a.share)),
        ui.Column("Share", "without", lambda a: text.percent(a.share_without)),
        ui.Column("Similarity", "with it", lambda a: text.ratio(a.similarity)),
        ui.Column("Similarity", "without", lambda a: text.ratio(a.similarity_without)),
        ui.Column("Evidence", "share of the probe's, with it", lambda a: text.percent(a.evidence)),
        ui.Column("Evidence", "without", lambda a: text.percent(a.evidence_without)),
    ]
    caption = "Pairs of images of different classes, those left out that hold it already."
    return ui.Table.of(columns, result.artefacts, "What a pasted image does", caption)


def _regions(result: SimilarityResult) -> ui.Table:
    tone: Callable[[Region], ui.Tone] = lambda r: "bad" if r.share >= limits.TIMES * r.area else ""
    columns = [
        ui.words("Pairs within", "", lambda r: (r.group or "all images", r.column)),
        ui.Column("Share of relevance", "", lambda r: ui.Cell(text.percent(r.share), tone=tone(r))),
        ui.Column("Share of the area", "", lambda r: text.percent(r.area)),
    ]
    regions: dict[str, list[Region]] = {}
    for r in result.regions:
        regions.setdefault(r.name, []).append(r)
    caption = (
        "Relevance in proportion to the area would mean that a region counts as any other. Burnt-in text is "
        "what RapidOCR reads, marks are small, saturated and near an edge (a heuristic); pairs of images "
        "with some."
    )
    return ui.Table.grouped(columns, regions, "Border and burnt-in marks", caption)


def _map(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> ui.Section | None:
    points = arrays["embedding"]
    if len(points) < 4:
        return None
    right = np.where(arrays["predicted"] == arrays["labels"], "right", "wrong")
    panels = [
        panel("label", points, arrays["labels"]),
        *[panel(c, points, arrays[f"group_{c}"]) for c in result.columns[:_COLUMNS]],
        panel("probe", points, np.where(arrays["predicted"] == "", "not tested", right)),
    ]
    count = text.plural(len(points), "representation")
    caption = f"t-SNE of {count} scaled to unit length. Distances between clusters mean little."
    for number, variant in enumerate(result.conditions):
        both = arrays.get(f"stamped_{number}")
        if both is not None:
            labels = arrays["stamped_labels"]
            panels.append(panel(f"label, with and without {variant}", both, np.tile(labels, 2)))
            panels.append(panel(f"{variant}", both, np.repeat(["as it is", "with it"], len(labels))))
            caption += (
                f" The last maps hold {text.plural(len(labels), 'image')} twice, as it is and with the logo."
            )
    lead = "If a group parts the map more clearly than the label does, the encoder knows the group better."
    return ui.Section("map", "The map", [Map(panels=panels, caption=caption)], lead)


def _relations(result: SimilarityResult) -> ui.Section:
    columns = [
        ui.words("Relation", "", lambda r: r.name),
        ui.Column("Pairs", "", lambda r: f"{r.n:,}"),
        ui.Column("Similarity", SIMILARITY[result.metric], lambda r: parts.cell(r.similarity)),
        ui.Column("Equal words", "share of positive relevance", lambda r: text.percent(r.shared_tokens)),
        ui.Column("Markers", "separators and punctuation", lambda r: text.percent(r.special_tokens)),
        ui.Column("Biases", "absorb", lambda r: text.percent(r.bias_share)),
    ]
    caption = "Small figures are 95 % intervals of the mean."
    table = ui.Table.of(columns, result.relations, "Similarity by relation", caption)
    return ui.Section("relations", "Similarity by relation", [table])
