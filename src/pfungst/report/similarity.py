"""The page of a similarity audit."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pfungst.audit.result import Interval, Result
from pfungst.audit.similarity.result import Pair, ProbeScores, SimilarityResult, Trial
from pfungst.files import read
from pfungst.report import closing, text
from pfungst.report.images import data_uri, overlay
from pfungst.report.maps import Map, Strips, panel
from pfungst.report.page import (
    Block,
    Cell,
    Column,
    Columns,
    Details,
    Facts,
    Page,
    Prose,
    Rows,
    Section,
    Stat,
    Step,
    Strip,
    Table,
    Tile,
    Tone,
    expect,
)
from pfungst.report.pairs import PairPicture, caption_of, image_pair, token_pair

ORIGINAL = "original"
MARKS = {"↓": "accuracy fell by 0.03 or more", "↓↓": "by 0.06 or more", "↑": "rose by 0.03 or more"}
_TRIALS = 8  # best settings of the sweep; the others are folded away
_SIDE = 320  # pixels of a picture on the page, at most


def page(result: Result, folder: Path) -> Page:
    """The page of a similarity audit.

    Args:
        result: a :class:`SimilarityResult`.
        folder: where its arrays are.

    Raises:
        DataError: arrays are missing or damaged, or it is another kind of result.
    """
    result = expect(result, SimilarityResult)
    arrays = read(folder / result.arrays, "run the audit again")
    if result.modality == "texts":
        found = [_relations(result), _pairs(result, arrays)]
    else:
        found = [_accuracy(result), _provenance(result), _pairs(result, arrays), _summaries(result, arrays)]
        if result.verdict.level == "provenance":
            found[:2] = found[1::-1]
        found += [_mitigation(result), _map(result, arrays), _errors(result), closing.skipped(result)]
    count = text.plural(result.n, "sentence pair" if result.modality == "texts" else "image")
    facts = [("Encoder", result.encoder), ("Weights", "trained" if result.trained else "random")]
    facts += [("Representation", f"{result.width} values"), ("Data", count)]
    facts += [("Classes" if result.modality == "images" else "Relations", str(len(result.classes)))]
    facts += [("Kept together", result.kept_together)] if result.kept_together else []
    facts += [("Explained in", result.basis)]
    return Page.of(result, facts=facts, sections=[*found, _method(result)], stats=_stats(result))


def _conditions(result: SimilarityResult) -> list[str]:
    return [v for v in result.variants if v != ORIGINAL and not v.startswith("mitigated ")]


def _stats(result: SimilarityResult) -> list[Stat]:
    if result.modality == "texts":
        values = [Step(r.name, text.ratio(r.similarity.value)) for r in result.relations]
        shared = [Step(r.name, text.percent(r.shared_tokens)) for r in result.relations]
        stats = [Stat("Mean cosine similarity", values), Stat("Relevance between equal words", shared)]
        if result.auroc is not None:
            note = f"{result.relations[0].name} against the others; 0.50 is chance."
            stats.insert(0, Stat("AUROC", [Step("similarity", text.ratio(result.auroc))], note))
        return stats
    base = result.pooled(ORIGINAL)
    assert base is not None
    stats = []
    follows = [p for p in result.provenance if p.follows]
    if result.verdict.level == "provenance" and follows:
        p = max(follows, key=lambda p: p.eta2_group - p.eta2_label)
        steps = [
            Step(f"by {p.column}", text.percent(p.eta2_group)),
            Step("by the label", text.percent(p.eta2_label)),
        ]
        stats.append(Stat("Variance of the score explained", steps, "η², share of the score's variance."))
        if p.auroc_within is not None:
            steps = [
                Step("all together", text.ratio(p.auroc_pooled)),
                Step(f"within {p.column}", text.ratio(p.auroc_within)),
            ]
            stats.append(Stat("AUROC", steps, "0.50 is chance."))
        stats.append(Stat("Without looking", [Step(f"{p.column} alone", text.ratio(p.by_group_alone))], "Class-balanced accuracy of naming each group's commonest label."))  # fmt: skip
    chance = f"Class-balanced; chance is {text.ratio(1 / len(result.classes))}."
    conditions = _conditions(result)
    if not conditions:
        stats.append(Stat("Accuracy", [Step("all images", text.ratio(base.accuracy.value))], chance))
    for condition in conditions[:2]:
        steps = [Step("original", text.ratio(base.accuracy.value), "original")]
        tones: tuple[tuple[str, Tone, str], ...] = (
            (condition, "deployed", condition),
            (f"mitigated {condition}", "mitigated", "pruned"),
        )
        for variant, tone, label in tones:
            found = result.pooled(variant)
            if found is not None:
                steps.append(
                    Step(label, text.ratio(found.accuracy.value), tone, found.mark, MARKS.get(found.mark, ""))
                )
        stats.append(Stat("Accuracy", steps, chance))
    for a in result.artefacts[:1]:
        steps = [
            Step("with it", text.percent(a.share), "deployed"),
            Step("without", text.percent(a.share_without), "original"),
        ]
        stats.append(
            Stat(
                "Relevance where it is pasted",
                steps,
                f"{text.percent(a.area)} of the area; pairs of different classes.",
            )
        )
    return stats


# --- probe -----------------------------------------------------------------------------------------------


def _cell(value: Interval, mark: str = "", percent: bool = False) -> Cell:
    write = text.percent if percent else text.ratio
    tone: Tone = "mitigated" if mark == "↑" else ""
    return Cell(
        write(value.value), text.interval(value.low, value.high, write), mark, MARKS.get(mark, ""), tone
    )


def _accuracy(result: SimilarityResult) -> Section:
    columns = [Column("Images", numeric=False), Column("n")]
    columns += [Column(v, "class-balanced accuracy") for v in result.variants]
    columns.append(Column("Rebalanced", "original"))
    binary = any(s.fpr is not None or s.fnr is not None for s in result.scores)
    rated = [ORIGINAL, *_conditions(result)] if binary else []
    columns += [Column("FPR", v) for v in rated] + ([Column("FNR", ORIGINAL)] if binary else [])
    places = list(dict.fromkeys((s.column, s.group) for s in result.scores))
    blocks: dict[str, list[list[Cell]]] = {}
    for column, group in places:
        found: dict[str, ProbeScores] = {
            s.variant: s for s in result.scores if (s.column, s.group) == (column, group)
        }
        first = found[ORIGINAL]
        counts = ", ".join(f"{k} {v}" for k, v in first.counts.items()) if len(first.counts) <= 4 else ""
        one = len(first.counts) == 1
        row = [Cell(group or "all images", counts), Cell(f"{first.n:,}")]
        row += [_cell(found[v].accuracy, found[v].mark) for v in result.variants]
        row.append(_cell(first.rebalanced))
        for value in [found[v].fpr for v in rated] + ([first.fnr] if binary else []):
            row.append(_cell(value, percent=True) if value else Cell("–", title="no image of that class"))
        if one:
            row[0] = Cell(group, f"{counts}: one class only")
        blocks.setdefault(column, []).append(row)
    groups = [
        Rows(rows, f"by {column}" if column else "", strong=not column) for column, rows in blocks.items()
    ]
    caption = "Small figures are 95 % intervals. ↓ accuracy fell by 0.03 or more against the original images, ↓↓ by 0.06 or more, "
    caption += (
        "↑ the pruned encoder raised it by 0.03 or more under the same condition; only where P < 0.001. "
    )
    caption += "Rebalanced: no class counts more than 10 images."
    table = Table(columns=columns, groups=groups, caption=caption, name="Accuracy of the probe by group")
    lead = "A linear probe on the representation, fitted on original images: how well it reads the label, in which group, under which condition."
    return Section(id="probe", title="What the probe reads", lead=lead, blocks=[table])


def _provenance(result: SimilarityResult) -> Section | None:
    if not result.provenance:
        return None
    rows = []
    for p in result.provenance:
        verdict = Cell(
            "follows the group" if p.follows else "does not",
            "; ".join(p.reasons),
            tone="bad" if p.follows else "",
        )
        rows.append(
            [
                Cell(p.column, f"score for {p.label}"),
                Cell(text.percent(p.eta2_group)),
                Cell(text.percent(p.eta2_label)),
                Cell(text.ratio(p.auroc_pooled)),
                Cell("–" if p.auroc_within is None else text.ratio(p.auroc_within)),
                Cell(text.ratio(p.accuracy_pooled)),
                Cell("–" if p.accuracy_within is None else text.ratio(p.accuracy_within)),
                Cell(text.ratio(p.by_group_alone)),
                Cell(text.ratio(p.group_readable), f"chance {text.ratio(p.group_chance)}"),
                verdict,
            ]
        )
    columns = [Column("Column", numeric=False), Column("η² group"), Column("η² label"), Column("AUROC", "pooled"),
               Column("AUROC", "within"), Column("Accuracy", "pooled"), Column("Accuracy", "within"),
               Column("Group alone", "accuracy without looking"), Column("Group read", "from the representation"),
               Column("The score", numeric=False)]  # fmt: skip
    caption = "η²: share of the variance of the probe's score that the group or the label explains. Within: mean over the groups that have "
    caption += "several labels. Group alone: class-balanced accuracy of naming each group's commonest label."
    table = Table(
        columns=columns,
        groups=[Rows(rows)],
        caption=caption,
        name="Does the score follow where images come from?",
    )
    lead = "Does the probe tell the labels apart, or one source of images from another?"
    return Section(id="provenance", title="Where the images come from", lead=lead, blocks=[table])


def _errors(result: SimilarityResult) -> Section | None:
    if len(result.classes) > 30:
        return None
    blocks: list[Block] = []
    for variant, c in result.confusion.items():
        columns = [Column("True", numeric=False), *[Column(name) for name in result.classes]]
        rows = [
            [Cell(name), *[Cell(str(v) if v else "·", tone="good" if i == j else "") for j, v in enumerate(row)]]
            for i, (name, row) in enumerate(zip(result.classes, c.matrix, strict=True))
        ]  # fmt: skip
        note = (
            f"{text.percent(c.share)} of {text.plural(c.errors, 'error')} fall into {c.into}"
            if c.errors
            else "no errors"
        )
        turned = (
            f" Of {text.plural(c.turned, 'image')} that it turns wrong, {text.percent(c.turned_share)} are taken for {c.into}."
            if c.turned
            else ""
        )
        table = Table(
            columns=columns,
            groups=[Rows(rows)],
            caption=f"First repetition; columns are predictions. {note}.{turned}",
            name=f"Confusion, {variant}",
        )
        blocks.append(
            Details(title=variant, note=note, blocks=[table], open=variant in _conditions(result)[:1])
        )
    return Section(
        id="errors",
        title="Where errors fall",
        lead="Errors that gather in one class point to a feature that stands for it.",
        blocks=blocks,
    )


def _mitigation(result: SimilarityResult) -> Section | None:
    m = result.mitigation
    if m is None:
        return None
    conditions = list(m.recovered)
    columns = [
        Column("Layer", numeric=False),
        Column("Filters"),
        Column("Where", numeric=False),
        Column("Share", "of the positive response"),
        Column(ORIGINAL),
    ]
    columns += [Column(c) for c in conditions]

    def row(t: Trial) -> list[Cell]:
        mine = t is m.trials[m.chosen]
        return [
            Cell(t.layer or "as it is", "taken" if mine else ""),
            Cell(str(t.k)),
            Cell(t.where),
            Cell(text.percent(t.share)),
            Cell(text.ratio(t.accuracy)),
            *[Cell(text.ratio(t.conditions[c]), tone="mitigated" if mine else "") for c in conditions],
        ]

    back = [
        f"{'more than the fall' if v > 1.05 else f'{text.percent(v)} of the fall'} under {c}"
        for c, v in m.recovered.items()
        if v is not None
    ]
    lead = f"{m.spec} sets filters {', '.join(map(str, m.filters))} to zero"
    lead += (
        f" and, on test images, brings back {text.listing(back)}."
        if back
        else "; there was no fall to bring back."
    )
    caption = f"Class-balanced accuracy on {text.plural(m.images, 'validation image')}, of a probe fitted anew on each pruned encoder. Filters are "
    caption += "those that respond most to the condition on training images. The figures on test images are in the first table."
    first, *rest = m.trials
    ranked = sorted(rest, key=lambda t: -(t.accuracy + t.conditions[conditions[0]]))
    shown = ranked if len(rest) <= _TRIALS else ranked[:_TRIALS]
    taken = m.trials[m.chosen]
    shown += [taken] if all(t is not taken for t in shown) else []
    name = "Pruning, best settings first"
    blocks: list[Block] = [
        Table(columns=columns, groups=[Rows([row(t) for t in [first, *shown]])], caption=caption, name=name)
    ]
    if len(shown) < len(rest):
        every = Table(
            columns=columns,
            groups=[Rows([row(t) for t in m.trials])],
            caption="In the order in which they were tried.",
            name="Pruning, all settings",
        )
        note = "by layer and number of filters"
        blocks.append(Details(title=f"all {len(rest)} settings", note=note, blocks=[every]))
    return Section(id="mitigation", title="Pruning", lead=lead, blocks=blocks)


# --- explanations ----------------------------------------------------------------------------------------


def _pairs(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> Section | None:
    if not result.pairs:
        return None
    blocks: list[Block] = []
    titles = list(dict.fromkeys(p.title for p in result.pairs))
    if result.verdict.level == "clever-hans" and result.modality == "images":
        attracts = [result.confusion[c].into for c in _conditions(result)]
        titles.sort(key=lambda t: t not in attracts and not t.startswith("with "))
    for number, title in enumerate(titles):
        mine = [
            _picture(p, arrays, rank) for rank, p in enumerate(p for p in result.pairs if p.title == title)
        ]
        best = max(p.similarity for p in result.pairs if p.title == title)
        blocks.append(
            Details(
                title=title,
                id=f"pairs-{number}",
                note=f"similarity up to {text.ratio(best)}",
                blocks=mine,
                open=number < 2,
            )
        )
    lead = "The most similar pairs, and which parts make them so. Red lines join parts that raise the similarity, blue ones lower it; "
    lead += "opacity as in the paper. Point at a part, or walk with the arrow keys, to see what it alone is matched with."
    return Section(
        id="pairs",
        title="What makes them alike",
        lead=lead,
        blocks=blocks,
        links=[(f"pairs-{i}", t) for i, t in enumerate(titles)],
    )


def _picture(pair: Pair, arrays: dict[str, np.ndarray], rank: int) -> PairPicture:
    note = caption_of(pair.similarity, pair.bias_share)
    title = f"{'Most similar' if rank == 0 else 'Next'} pair of {pair.title}"
    if pair.title.startswith("with "):
        title = "The pair that it brings together most"
    sides = (pair.first, pair.second)
    if pair.tokens is not None:
        return token_pair(arrays[pair.array], pair.tokens, pair.similarity, title, sides, note)
    pictures = arrays["pictures"]
    shown = (pictures[pair.rows[0]], pictures[pair.rows[1]])
    tags = (pair.tags[0], pair.tags[1])
    return image_pair(arrays[pair.array], shown, pair.grids, pair.similarity, title, sides, tags, note)


def _summaries(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> Section | None:
    if not result.summaries:
        return None
    blocks: list[Block] = []
    strips = []
    for column in dict.fromkeys(s.column for s in result.summaries):
        tiles = []
        for s in [s for s in result.summaries if s.column == column][:12]:
            background = arrays["background"][s.row]
            size = background.shape[0]
            heat = cv2.resize(arrays["profiles"][s.row], (size, size), interpolation=cv2.INTER_NEAREST)
            picture = overlay(heat, background, limit=float(arrays["profiles"].max()))
            alt = f"Where the relevance of similarities within {s.name} lies, over the mean image"
            tiles.append(
                Tile(
                    f"{s.name}: {text.ratio(s.similarity)}",
                    alt,
                    data_uri(picture, side=_SIDE),
                    size=(min(size, _SIDE),) * 2,
                )
            )
        strips.append(Strip(f"by {column}" if column else "by label", tiles))
    caption = "Mean |relevance| of each patch over pairs within a group, over the group's mean image; the figure is the mean similarity."
    blocks.append(Strips(title="Which patches carry similarity", caption=caption, strips=strips))
    if result.artefacts:
        columns = [Column("Condition", numeric=False), Column("Area"), Column("Share", "of relevance, with it"), Column("Share", "without"),
                   Column("Similarity", "with it"), Column("Similarity", "without"),
                   Column("Evidence", "share of the probe's, with it"), Column("Evidence", "without")]  # fmt: skip
        rows = [
            [Cell(a.condition), Cell(text.percent(a.area)), Cell(text.percent(a.share)), Cell(text.percent(a.share_without)),
             Cell(text.ratio(a.similarity)), Cell(text.ratio(a.similarity_without)),
             Cell(text.percent(a.evidence)), Cell(text.percent(a.evidence_without))]
            for a in result.artefacts
        ]  # fmt: skip
        blocks.append(
            Table(
                columns=columns,
                groups=[Rows(rows)],
                caption="Pairs of images of different classes, those left out that hold it already.",
                name="What a pasted image does",
            )
        )
    regions: dict[str, list[list[Cell]]] = {}
    for r in result.regions:
        tone = "bad" if r.share >= 1.5 * r.area else ""
        name = r.group or "all images"
        regions.setdefault(r.name, []).append(
            [Cell(name, r.column), Cell(text.percent(r.share), tone=tone), Cell(text.percent(r.area))]  # type: ignore[arg-type]
        )
    if regions:
        columns = [
            Column("Pairs within", numeric=False),
            Column("Share of relevance"),
            Column("Share of the area"),
        ]
        groups = [Rows(rows, name) for name, rows in regions.items()]
        caption = "Relevance in proportion to the area would mean that a region counts as any other. Burnt-in marks are found by a heuristic: small, saturated, near an edge; pairs of images that have some, if two have."
        blocks.append(
            Table(columns=columns, groups=groups, caption=caption, name="Border and burnt-in marks")
        )
    lead = "Averages over pairs: what similarity within a class or group rests on."
    return Section(id="groups", title="What groups have in common", lead=lead, blocks=blocks)


def _map(result: SimilarityResult, arrays: dict[str, np.ndarray]) -> Section | None:
    points = arrays["embedding"]
    if len(points) < 4:
        return None
    panels = [panel("label", points, arrays["labels"])]
    panels += [panel(c, points, arrays[f"group_{c}"]) for c in result.columns]
    wrong = np.where(
        arrays["predicted"] == "",
        "not tested",
        np.where(arrays["predicted"] == arrays["labels"], "right", "wrong"),
    )
    panels.append(panel("probe", points, wrong))
    caption = f"t-SNE of {text.plural(len(points), 'representation')} scaled to unit length. Distances between clusters mean little."
    lead = "If colours of a group part the map more clearly than the label does, the encoder knows the group better."
    return Section(id="map", title="The map", lead=lead, blocks=[Map(panels=panels, caption=caption)])


def _relations(result: SimilarityResult) -> Section:
    columns = [Column("Relation", numeric=False), Column("Pairs"), Column("Similarity", "cosine"), Column("Equal words", "share of positive relevance"),
               Column("Markers", "separators and punctuation"), Column("Biases", "absorb")]  # fmt: skip
    rows = [
        [Cell(r.name), Cell(f"{r.n:,}"), _cell(r.similarity), Cell(text.percent(r.shared_tokens)),
         Cell(text.percent(r.special_tokens)), Cell(text.percent(r.bias_share))]
        for r in result.relations
    ]  # fmt: skip
    caption = "Small figures are 95 % intervals of the mean."
    table = Table(columns=columns, groups=[Rows(rows)], caption=caption, name="Similarity by relation")
    return Section(id="relations", title="Similarity by relation", blocks=[table])


def _method(result: SimilarityResult) -> Section:
    audit = [("Pfungst", result.version), ("Created", result.created), ("Machine", result.machine)]
    audit += [("Computed in", text.duration(result.seconds)), ("Seeds", ", ".join(map(str, result.seeds)))]
    audit += [
        ("Split", result.split),
        ("Rules", result.composite),
        ("Error of the sums", text.number(result.conservation)),
    ]
    blocks: list[Block] = [
        Prose(paragraphs=result.notes, bullets=True),
        Columns(blocks=[Facts(title="This audit", facts=audit)]),
    ]
    blocks.append(Facts(title="Configuration", facts=text.flatten(result.config)))
    blocks += [table for table in (closing.gates(result),) if table is not None]
    return Section(id="method", title="How every number was made", blocks=blocks)
