"""The part of an anomaly page about one category and one detector."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pfungst.audit.anomaly.result import Entry, Example, Exposure, Group, Provenance, Spectrum
from pfungst.errors import DataError
from pfungst.files import read
from pfungst.measure.limits import P_MARK
from pfungst.relevance import colour_limit
from pfungst.relevance.dct import band_periods
from pfungst.report import images, parts, plots, text
from pfungst.report import page as ui
from pfungst.report.anomaly_tables import COLUMNS, shown

Arrays = dict[str, np.ndarray]

BANDS = ("low", "middle", "high")
_WORDS = {
    (True, True): "flagged",
    (True, False): "missed",
    (False, True): "false alarm",
    (False, False): "passed",
}


def entry_id(entry: Entry) -> str:
    """Anchor of an entry; distinct for distinct names, safe in HTML."""
    name = f"{entry.category}\0{entry.model}"
    slug = re.sub(r"[^a-z0-9]+", "-", entry.category.lower()).strip("-")
    return f"entry-{slug}-{zlib.crc32(name.encode()):08x}"


def _arrays(entry: Entry, folder: Path) -> Arrays:
    """The arrays of an entry. Raises DataError where one is missing or has not the examples of the entry."""
    remedy = "run the audit again"
    data = read(folder / entry.arrays, remedy)
    keys = [s.variant.key for s in entry.scores]
    pictured = {"image", *(("heat", "joint") if entry.exposure else ())}
    needed = {"labels", "image_deployed", *pictured, *[f"group_{p.column}" for p in entry.provenance]}
    needed |= {f"{what}_{key}" for what in ("scores", "threshold") for key in keys}
    if missing := sorted(needed - set(data)):
        raise DataError(f"{entry.arrays} lacks {', '.join(missing)}", remedy)
    if any(len(data[name]) != len(entry.examples) for name in pictured):
        raise DataError(f"{entry.arrays} does not hold {text.plural(len(entry.examples), 'example')}", remedy)
    return dict(data)


def entry_blocks(entry: Entry, folder: Path, side: int) -> list[ui.Block]:
    """Everything about one category and one detector.

    Args:
        folder: where the arrays of the result are.
        side: longest side of pictures, in pixels.
    """
    data = _arrays(entry, folder)
    histogram = _histogram(entry, data)
    blocks: list[ui.Block] = [histogram]
    if entry.exposure is not None and entry.spectrum is not None:
        spectrum = _spectrum(entry, entry.spectrum, data["image"].shape[1:3])
        blocks = [_exposure(entry, entry.exposure), ui.Columns([histogram, spectrum])]
    if entry.examples:
        blocks.append(_gallery(entry, data, side))
    if entry.notes:
        blocks.append(ui.Prose(entry.notes, bullets=True))
    blocks.append(ui.Details("All numbers", [_numbers(entry)], level=4))
    return blocks


def _numbers(entry: Entry) -> ui.Table:
    columns = [
        *COLUMNS,
        ui.Column("Balanced accuracy", "higher is better", lambda s: parts.cell(s.balanced_accuracy)),
    ]
    if any(s.p_value is not None for s in entry.scores):
        columns.append(ui.Column("P", "permutation over images", lambda s: _p_value(s.p_value)))
    caption = (
        f"Threshold {text.number(entry.threshold)} in units of the anomaly score. Flagging every "
        f"image would give F1 {text.ratio(entry.trivial_f1)}."
    )
    return ui.Table.of(columns, entry.scores, f"All numbers of {entry.category}", caption)


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return f"<{text.THIN}{P_MARK:g}" if value < P_MARK else f"{value:.3f}"


def _exposure(entry: Entry, found: Exposure) -> ui.Stats:
    lost = "on energy that the deployed condition removes"
    shares = [
        ("Relevance in high frequencies", "share of all relevance", found.high),
        ("Relevance lost in deployment", lost, found.lost_in_deployment),
        ("Relevance outside the defect", "mean over defective images", found.outside_mask),
    ]
    stats = [ui.Stat(name, [ui.Step(of, text.percent(v))]) for name, of, v in shares if v is not None]
    faith, name = entry.faithfulness, "Faithfulness of the explanation"
    if faith is None:
        return ui.Stats([*stats, ui.Stat(name, [ui.Step("see the notes", "–")], "Not measured.")])
    of = f"95 % interval {text.interval(faith.low, faith.high, text.ratio)}"
    beats = "Beats" if faith.beats_random else "Does not beat"
    note = f"{beats} a random order of patches, which has 0; {faith.images} images."
    stats.append(ui.Stat(name, [ui.Step(of, text.ratio(faith.value))], note))
    return ui.Stats(stats)


def _histogram(entry: Entry, data: Arrays) -> ui.Figure:
    defect = data["labels"].astype(bool)
    samples = []
    for variant in (s.variant for s in shown(entry)):
        scores, limit = data[f"scores_{variant.key}"].astype(float), float(data[f"threshold_{variant.key}"])
        flagged = scores > limit
        missed, alarms = (defect & ~flagged).sum(), (~defect & flagged).sum()
        title = f"{parts.label(variant)}: missed {missed} of {entry.n_defect}, "
        title += f"false alarms {alarms} of {entry.n_good}"
        samples.append(plots.Sample(title, scores, defect, limit))
    return ui.Figure(
        title="Anomaly scores and threshold",
        picture=plots.histograms(samples, f"Histograms of anomaly scores, {entry.category}, {entry.model}"),
        legend=[
            ui.Key("defect", "defect", "bar"),
            ui.Key("good", "good", "bar"),
            ui.Key("threshold", "ink", "dashed"),
        ],
        caption="Images right of the dashed line are flagged. Defects left of it are missed, good images "
        "right of it are false alarms. First seed.",
    )


def _spectrum(entry: Entry, spectrum: Spectrum, shape: tuple[int, ...]) -> ui.Figure:
    lost = [b for b, kept in enumerate(spectrum.kept) if kept < plots.MOSTLY]
    over = "Mean over the defective test images. "
    caption = f"{over}No band loses more than half of its energy in deployment."
    legend = [ui.Key("original", "original", "bar")]
    if lost:
        caption = (
            f"{over}{text.percent(sum(spectrum.original[b] for b in lost))} of the original detector's "
            f"relevance "
        )
        caption += "lies in bands that lose more than half of their energy in deployment (shaded)"
        if spectrum.mitigated is not None:
            caption += f"; {text.percent(sum(spectrum.mitigated[b] for b in lost))} after mitigation"
        caption += "."
    if spectrum.mitigated is not None:
        legend.append(ui.Key("mended", "mitigated", "bar"))
    if lost:
        legend.append(ui.Key("mostly removed", "wash", "band"))
    label = f"Share of relevance and kept energy per frequency band, {entry.category}, {entry.model}"
    waves = spectrum.edges[-1]  # as many as pixels
    height = round((waves * shape[0] / shape[1]) ** 0.5)
    periods = band_periods(tuple(spectrum.edges), height, waves // height)
    picture = plots.spectrum(periods, spectrum.original, spectrum.mitigated, spectrum.kept, label)
    return ui.Figure(title="Relevance by frequency", picture=picture, legend=legend, caption=caption)


# --- examples --------------------------------------------------------------------------------------------


def _gallery(entry: Entry, data: Arrays, side: int) -> ui.Gallery:
    caption = "Each heatmap has its own scale: full colour at the value beside it, in units of the score."
    if entry.mended is not None:
        caption += " The mended detector should leave the surface grey and keep the defect red."
    return ui.Gallery(
        title="Examples",
        caption=caption,
        exhibits=[_exhibit(entry, e, data, side) for e in entry.examples],
        ramp=images.data_uri(images.ramp()),
    )


def _exhibit(entry: Entry, example: Example, data: Arrays, side: int) -> ui.Exhibit:
    outcomes = []
    for answer in example.answers:
        limit = float(data[f"threshold_{answer.variant.key}"])
        detail = f"score {text.number(answer.score)}, threshold {text.number(limit)}"
        word, right = _WORDS[example.defect, answer.flagged], answer.flagged == example.defect
        outcomes.append(ui.Outcome(parts.label(answer.variant), word, right, detail))
    tags = [example.label] if example.label else []
    tags += [f"{column}: {value}" for column, value in example.groups.items()]
    strips = _strips(f"{entry.category}, {example.label}", example, data, side)
    return ui.Exhibit(name=example.id, reason=example.why, tags=tags, outcomes=outcomes, strips=strips)


def _strips(what: str, example: Example, data: Arrays, side: int) -> list[ui.Strip]:
    """The image, where the relevance lies in it, and in which frequencies."""
    pictures = ("image", "image_deployed", "mask", "heat", "heat_mended", "joint")
    at = {name: data[name][example.row] for name in pictures if name in data}
    image, mask = at["image"], at.get("mask")
    path = images.outline(mask, max(1, max(mask.shape) // 75)) if mask is not None and example.defect else ""

    def photo(label: str, alt: str, picture: np.ndarray, drawn: str = "") -> ui.Tile:
        src = images.data_uri(picture, side=side)
        return ui.Tile(label, f"{what}: {alt}", src, drawn, (image.shape[1], image.shape[0]))

    def heats(title: str, maps: list[tuple[str, str, np.ndarray, float]]) -> ui.Strip:
        tiles = [photo(name, alt, images.overlay(h, image, limit), path) for name, alt, h, limit in maps]
        limits = " and ".join(f"±{text.number(v)}" for v in dict.fromkeys(limit for *_, limit in maps))
        return ui.Strip(title, tiles, f"full colour at {limits}")

    tiles = [photo("original", "image as in the original condition", image)]
    tiles.append(photo("deployed", "image as in the deployed condition", at["image_deployed"]))
    if path and mask is not None:
        bright = np.where(mask[..., None] > 0, image // 2 + 128, image // 3).astype(np.uint8)
        tiles.append(photo("mask", "mask of the defect, bright inside", bright, path))
    else:
        tiles.append(ui.Tile("mask", "", empty="no mask" if example.defect else "no defect"))
    strips = [ui.Strip("Image", tiles)]
    if "heat" not in at:
        return strips
    maps = []
    for key, name in (("heat", "original"), ("heat_mended", "mended")):
        if key in at:
            heat = np.nan_to_num(at[key].astype(np.float32))
            maps.append((name, f"relevance of the {name} detector over the image", heat, colour_limit(heat)))
    joint = np.nan_to_num(at["joint"].astype(np.float32))
    limit = colour_limit(joint)
    bands = [
        (band, f"relevance of the original detector in {band} frequencies", heat, limit)
        for band, heat in zip(BANDS, joint, strict=True)
    ]
    relevance, by_band = "Relevance of the detector", "Original detector, by frequency"
    found = [*strips, heats(relevance, maps), heats(by_band, bands)]
    if example.bands:
        most = max(example.bands)
        alt = f"{what}: share of the relevance per frequency band, at most {text.percent(most)}"
        tile = ui.Tile("low → high", alt, images.bars(np.array(example.bands)))
        found.append(ui.Strip("By band", [tile], f"full height at {text.percent(most)}"))
    return found


# --- provenance ------------------------------------------------------------------------------------------


def provenance_blocks(entry: Entry, folder: Path, stats: bool = True) -> list[ui.Block]:
    """Scores by group, and how much of the score the group explains (left out without `stats`)."""
    data = _arrays(entry, folder)
    blocks: list[ui.Block] = []
    for finding in entry.provenance:
        if stats:
            blocks.append(ui.Stats(parts.provenance_stats(finding, "the defect")))
        blocks += [_group_plot(entry, finding, data), _group_table(entry, finding)]
    return blocks


def _group_plot(entry: Entry, finding: Provenance, data: Arrays) -> ui.Figure:
    scores, defect = data["scores_original"].astype(float), data["labels"].astype(bool)
    sample = plots.Sample(finding.column, scores, defect, entry.threshold)
    names = data[f"group_{finding.column}"].astype(str)
    label = f"Anomaly scores by {finding.column}, {entry.category}, {entry.model}"
    follows = "follows" if finding.follows else "does not follow"
    return ui.Figure(
        title=f"Scores by {finding.column}",
        picture=plots.groups(sample, names, label, width=980),
        narrow=plots.groups(sample, names, label, width=344),
        legend=[
            ui.Key("good", "good", "circle"),
            ui.Key("defect", "defect", "diamond"),
            ui.Key("median and quartiles", "ink", "box"),
            ui.Key("threshold", "ink", "dashed"),
        ],
        caption="Every test image of the original condition, first seed. The score "
        f"{follows} {finding.column}: it explains {text.percent(finding.eta2_group)} of the variance, "
        f"the defect {text.percent(finding.eta2_label)}.",
    )


def _group_table(entry: Entry, finding: Provenance) -> ui.Table:
    auroc: Callable[[Group], ui.Cell | str] = lambda g: (
        ui.Cell("–", title="only one class here") if g.auroc is None else text.ratio(g.auroc)
    )
    columns = [
        ui.words(finding.column, "", lambda g: g.name),
        ui.Column("Good", "", lambda g: f"{g.n_good:,}"),
        ui.Column("Defective", "", lambda g: f"{g.n_defect:,}"),
        ui.Column("Mean score", "", lambda g: text.number(g.mean_score)),
        ui.Column("AUROC", "within", auroc),
    ]
    caption = f"Test images of {entry.category} by {finding.column}. AUROC needs good and defective ones."
    return ui.Table.of(columns, finding.groups, f"{entry.category} by {finding.column}", caption)
