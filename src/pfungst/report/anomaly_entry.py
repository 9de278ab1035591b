"""The part of an anomaly page about one category and one detector."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

from pfungst.audit.anomaly.result import AnomalyResult, Entry, Example, Provenance
from pfungst.errors import DataError
from pfungst.files import read
from pfungst.relevance import colour_limit
from pfungst.report import images, plots, text
from pfungst.report.anomaly_tables import MEASURES, VARIANT_KEYS, row
from pfungst.report.page import (
    Block,
    Cell,
    Column,
    Columns,
    Details,
    Exhibit,
    Figure,
    Gallery,
    Key,
    Outcome,
    Prose,
    Rows,
    Stat,
    Stats,
    Step,
    Strip,
    Table,
    Tile,
)

Arrays = dict[str, np.ndarray]

BANDS = ("low", "middle", "high")


def entry_id(entry: Entry) -> str:
    """Anchor of an entry; distinct for distinct names, safe in HTML."""
    name = f"{entry.category}\0{entry.model}"
    slug = re.sub(r"[^a-z0-9]+", "-", entry.category.lower()).strip("-")
    return f"entry-{slug}-{zlib.crc32(name.encode()):08x}"


def entry_blocks(result: AnomalyResult, entry: Entry, folder: Path, side: int) -> list[Block]:
    """Everything about one category and one detector.

    Args:
        folder: where the arrays of the result are.
        side: longest side of pictures, in pixels.
    """
    data = read(folder / entry.arrays, "run the audit again")
    blocks: list[Block] = []
    exposure = _exposure(entry)
    if exposure is not None:
        blocks.append(exposure)
    charts = [c for c in (_histogram(entry, data), _spectrum(entry)) if c is not None]
    if charts:
        blocks.append(Columns(blocks=charts))
    if entry.examples:
        blocks.append(_gallery(result, entry, data, side))
    if entry.notes:
        blocks.append(Prose(paragraphs=entry.notes, bullets=True))
    blocks.append(Details(title="All numbers", blocks=[_numbers(entry)], level=4))
    return blocks


def _numbers(entry: Entry) -> Table:
    tested = any(s.p_value is not None for s in entry.variants.values())
    heads = [Column("Images", numeric=False)]
    heads += [Column(label, hint) for _, label, _, hint in MEASURES]
    heads += [Column("Balanced accuracy", "higher is better")]
    heads += [Column("P", "t-test over seeds")] if tested else []
    rows = []
    for name in VARIANT_KEYS:
        if name not in entry.variants:
            continue
        scores = entry.variants[name]
        cells = row(name, scores)
        accuracy = scores.balanced_accuracy
        cells.append(Cell(text.ratio(accuracy.value), text.interval(accuracy.low, accuracy.high, text.ratio)))
        if tested:
            cells.append(Cell("–" if scores.p_value is None else _p_value(scores.p_value)))
        rows.append(cells)
    return Table(
        columns=heads,
        groups=[Rows(rows)],
        name=f"All numbers of {entry.category}",
        caption=f"Threshold {text.number(entry.threshold)} in units of the anomaly score. Flagging every image "
        f"would give F1 {text.ratio(entry.trivial_f1)}.",
    )


def _p_value(value: float) -> str:
    return "<\u202f0.001" if value < 0.001 else f"{value:.3f}"


def _exposure(entry: Entry) -> Stats | None:
    names = {
        "high": ("Relevance in high frequencies", "share of all relevance"),
        "lost_in_deployment": (
            "Relevance lost in deployment",
            "on energy that the deployed condition removes",
        ),
        "outside_mask": ("Relevance outside the defect", "mean over defective images"),
    }
    stats = [
        Stat(names[k][0], [Step(names[k][1], text.percent(entry.exposure[k]))])
        for k in names
        if k in entry.exposure
    ]
    return Stats(stats=stats) if stats else None


def _histogram(entry: Entry, data: Arrays) -> Figure | None:
    if "labels" not in data:
        return None
    defect = data["labels"].astype(bool)
    samples = []
    for name in ("original", "deployed", "mitigated"):
        scores, threshold = data.get(f"scores_{name}"), data.get(f"threshold_{name}")
        if scores is None or threshold is None:
            continue
        scores, limit = np.asarray(scores, dtype=np.float64), float(threshold)
        keep = np.isfinite(scores)
        if not keep.any():
            continue
        missed = int((scores[defect & keep] <= limit).sum())
        alarms = int((scores[~defect & keep] > limit).sum())
        title = f"{VARIANT_KEYS[name]}: missed {missed} of {entry.n_defect}, false alarms {alarms} of {entry.n_good}"
        samples.append(plots.Sample(title, scores[keep], defect[keep], limit))
    if not samples:
        return None
    return Figure(
        title="Anomaly scores and threshold",
        picture=plots.histograms(samples, f"Histograms of anomaly scores, {entry.category}, {entry.model}"),
        legend=[
            Key(label="defect", colour="defect", shape="bar"),
            Key(label="good", colour="good", shape="bar"),
            Key(label="threshold", colour="ink", shape="dashed"),
        ],
        caption="Images right of the dashed line are flagged. Defects left of it are missed, good images right of it "
        "are false alarms. First seed.",
    )


def _spectrum(entry: Entry) -> Figure | None:
    spectrum = entry.spectrum
    if spectrum is None:
        return None
    lost = [b for b, kept in enumerate(spectrum.kept) if kept < 0.5]
    if lost:
        caption = (
            f"{text.percent(sum(spectrum.original[b] for b in lost))} of the original detector's relevance lies in "
            "bands that lose more than half of their energy in deployment (shaded)"
        )
        if spectrum.mitigated is not None:
            caption += f"; {text.percent(sum(spectrum.mitigated[b] for b in lost))} after mitigation"
        caption += "."
    else:
        caption = "No band loses more than half of its energy in deployment."
    legend = [Key(label="original", colour="original", shape="bar")]
    if spectrum.mitigated is not None:
        legend.append(Key(label="mitigated", colour="mitigated", shape="bar"))
    if lost:
        legend.append(Key(label="mostly removed", colour="wash", shape="band"))
    return Figure(
        title="Relevance by frequency",
        picture=plots.spectrum(
            spectrum.edges,
            spectrum.original,
            spectrum.mitigated,
            spectrum.kept,
            f"Share of relevance and kept energy per frequency band, {entry.category}, {entry.model}",
        ),
        legend=legend,
        caption=caption,
    )


# --- examples --------------------------------------------------------------------------------------------


def _gallery(result: AnomalyResult, entry: Entry, data: Arrays, side: int) -> Gallery:
    mitigated = any(e.score_mitigated is not None for e in entry.examples)
    caption = "Each heatmap has its own scale: full colour at the value beside it, in units of the score."
    if mitigated:
        caption += " The mitigated detector should leave the surface grey and keep the defect red."
    return Gallery(
        title="Examples",
        caption=caption,
        exhibits=[_exhibit(result, entry, e, data, side) for e in entry.examples],
        ramp=images.data_uri(images.ramp()),
    )


def _exhibit(result: AnomalyResult, entry: Entry, example: Example, data: Arrays, side: int) -> Exhibit:
    outcomes = []
    for name in ("original", "deployed", "mitigated"):
        score, flagged = getattr(example, f"score_{name}"), getattr(example, f"flagged_{name}")
        if score is None or flagged is None:
            continue
        word = {(1, 1): "flagged", (1, 0): "missed", (0, 1): "false alarm", (0, 0): "passed"}[
            int(example.defect), int(flagged)
        ]
        detail = f"score {text.number(score)}"
        if (limit := data.get(f"threshold_{name}")) is not None:
            detail += f", threshold {text.number(float(limit))}"
        outcomes.append(Outcome(VARIANT_KEYS[name], word, flagged == example.defect, detail))
    tags = [example.label] if example.label else []
    tags += [f"{column}: {value}" for column, value in example.groups.items()]
    return Exhibit(
        name=example.id,
        reason=example.why,
        tags=tags,
        outcomes=outcomes,
        strips=_strips(result, entry, example, data, side),
    )


def _strips(result: AnomalyResult, entry: Entry, example: Example, data: Arrays, side: int) -> list[Strip]:
    def at(name: str) -> np.ndarray | None:
        values = data.get(name)
        if values is None:
            return None
        if not 0 <= example.row < len(values):
            raise DataError(
                f"{entry.arrays} holds {len(values)} examples, not row {example.row} of {name}",
                "run the audit again",
            )
        return np.asarray(values[example.row])

    image, deployed, mask = at("image"), at("image_deployed"), at("mask")
    if image is None:
        return []
    what = f"{entry.category}, {example.label}"
    size = (image.shape[1], image.shape[0])
    path = images.outline(mask, max(1, max(mask.shape) // 75)) if mask is not None and example.defect else ""

    def photo(label: str, alt: str, picture: np.ndarray, drawn: str = "") -> Tile:
        return Tile(label, alt, images.data_uri(picture, side=side), drawn, size)

    def heat(label: str, alt: str, values: np.ndarray, limit: float) -> Tile:
        return photo(label, alt, images.overlay(values, image, limit), path)

    tiles = [photo("original", f"{what}: image as in the original condition", image)]
    if deployed is not None:
        tiles.append(photo("deployed", f"{what}: image as in the deployed condition", deployed))
    if path and mask is not None:
        shown = np.where(mask[..., None] > 0, image // 2 + 128, image // 3).astype(np.uint8)
        tiles.append(photo("mask", f"{what}: mask of the defect, bright inside", shown, path))
    else:
        tiles.append(Tile("mask", "", empty="no defect" if not example.defect else "no mask"))
    strips = [Strip("Image", tiles)]
    heats = {"original": at("heat"), "mitigated": at("heat_mitigated")}
    present = {n: h.astype(np.float32) for n, h in heats.items() if h is not None}
    if present:
        limits = {n: colour_limit(np.nan_to_num(h)) for n, h in present.items()}
        strips.append(
            Strip(
                "Relevance of the detector",
                [heat(n, f"{what}: relevance of the {n} detector over the image", h, limits[n]) for n, h in present.items()],
                "full colour at " + " and ".join(f"±{text.number(v)}" for v in limits.values()),
            )
        )  # fmt: skip
    joint = at("joint")
    if joint is not None:
        joint = np.nan_to_num(joint.astype(np.float32))
        limit = colour_limit(joint)
        strips.append(
            Strip(
                "Original detector, by frequency",
                [
                    heat(b, f"{what}: relevance of the original detector in {b} frequencies", part, limit)
                    for b, part in zip(BANDS, joint, strict=True)
                ],
                f"full colour at ±{text.number(limit)}",
            )
        )
    return strips


# --- provenance ------------------------------------------------------------------------------------------


def provenance_blocks(entry: Entry, folder: Path, stats: bool = True) -> list[Block]:
    """Scores by group, and how much of the score the group explains (left out without `stats`)."""
    data = read(folder / entry.arrays, "run the audit again")
    blocks: list[Block] = []
    for finding in entry.provenance:
        if stats:
            blocks.append(_provenance_stats(finding))
        names, scores, limit = (
            data.get(k) for k in (f"group_{finding.column}", "scores_original", "threshold_original")
        )
        if names is not None and scores is not None and "labels" in data and len(names):
            blocks.append(
                _group_plot(entry, finding, data, float(entry.threshold if limit is None else limit))
            )
        blocks.append(_group_table(entry, finding))
    return blocks


def _provenance_stats(finding: Provenance) -> Stats:
    within = "–" if finding.auroc_within is None else text.ratio(finding.auroc_within)
    return Stats(
        stats=[
            Stat(
                "Variance of the score explained (η²)",
                [
                    Step(f"by {finding.column}", text.percent(finding.eta2_group)),
                    Step("by the defect", text.percent(finding.eta2_label)),
                ],
                "A detector of defects has the larger share on the right.",
            ),
            Stat(
                "AUROC",
                [
                    Step("all together", text.ratio(finding.auroc_pooled)),
                    Step(f"within {finding.column}", within),
                ],
                "Far apart: the ranking depends on where an image comes from. 0.50 is chance.",
            ),
        ]
    )


def _group_plot(entry: Entry, finding: Provenance, data: Arrays, limit: float) -> Figure:
    defect = data["labels"].astype(bool)
    scores = np.asarray(data["scores_original"], dtype=np.float64)
    names = data[f"group_{finding.column}"].astype(str)
    label = f"Anomaly scores by {finding.column}, {entry.category}, {entry.model}"
    follows = "follows" if finding.follows else "does not follow"
    draw = {
        width: plots.groups(scores, defect, names, limit, finding.column, label, width=width)
        for width in (980, 344)
    }
    return Figure(
        title=f"Scores by {finding.column}",
        picture=draw[980],
        narrow=draw[344],
        legend=[
            Key(label="good", colour="good", shape="circle"),
            Key(label="defect", colour="defect", shape="diamond"),
            Key(label="median and quartiles", colour="ink", shape="box"),
            Key(label="threshold", colour="ink", shape="dashed"),
        ],
        caption=f"Every test image of the original condition, first seed. The score {follows} {finding.column}: it explains "
        f"{text.percent(finding.eta2_group)} of the variance, the defect {text.percent(finding.eta2_label)}.",
    )


def _group_table(entry: Entry, finding: Provenance) -> Table:
    heads = [Column(finding.column, numeric=False), Column("Good"), Column("Defective")]
    heads += [Column("Mean score"), Column("AUROC", "within")]
    rows = [
        [
            Cell(g.name),
            Cell(f"{g.n_good:,}"),
            Cell(f"{g.n_defect:,}"),
            Cell(text.number(g.mean_score)),
            Cell("–", title="only one class here") if g.auroc is None else Cell(text.ratio(g.auroc)),
        ]
        for g in finding.groups
    ]
    return Table(
        columns=heads,
        groups=[Rows(rows)],
        name=f"{entry.category} by {finding.column}",
        caption=f"Test images of {entry.category} by {finding.column}. AUROC needs both good and defective images.",
    )
