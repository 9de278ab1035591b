"""What the pages of audits share: marks, cells, variants, where a score comes from, how a page ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pfungst.audit.result import Interval, Result, Variant
from pfungst.measure import limits
from pfungst.measure.degradation import FALL, LARGE_FALL, RISE
from pfungst.report import page as ui
from pfungst.report import text

# --- marks -----------------------------------------------------------------------------------------------


def marks(measure: str, mended: str = "mitigation") -> dict[str, str]:
    """What each mark of a measure says; `mended` is what raised it, for example "pruning"."""
    return {
        FALL: f"{FALL} {measure} fell by {limits.FALL:.2f} or more",
        LARGE_FALL: f"{LARGE_FALL} by {limits.LARGE_FALL:.2f} or more",
        RISE: f"{RISE} {mended} raised it by {limits.FALL:.2f} or more",
    }


def legend(meanings: Mapping[str, str]) -> str:
    """The caption below a table with intervals and marks."""
    return (
        f"Small figures are 95 % intervals. {'; '.join(meanings.values())}; only where a permutation over "
        f"images gives P < {limits.P_MARK:g}."
    )


# --- cells and steps -------------------------------------------------------------------------------------


def cell(
    value: Interval | None,
    write: text.Writer = text.ratio,
    mark: str = "",
    meanings: Mapping[str, str] | None = None,
    tone: ui.Tone = "",
    missing: str = "",
) -> ui.Cell:
    """A value with its interval and mark; a dash where there is none, which `missing` explains."""
    if value is None:
        return ui.Cell("–", title=missing)
    return ui.Cell(
        write(value.value),
        text.interval(value.low, value.high, write),
        mark,
        (meanings or {}).get(mark, ""),
        tone or ("mitigated" if mark == RISE else ""),
    )


def label(variant: Variant) -> str:
    """A variant as a heading: "Deployed, mended"."""
    name = str(variant)
    return name[:1].upper() + name[1:]


def tone(variant: Variant) -> ui.Tone:
    """The colour of a variant."""
    if variant.mitigated:
        return "mitigated"
    return "original" if variant.condition == "original" else "deployed"


def key(label: str, colour: str) -> ui.Key:
    """Of a legend of variants, which have a shape each."""
    shapes = {"original": "circle", "deployed": "diamond", "mitigated": "square"}
    return ui.Key(label, colour, shapes[colour])


def step(
    variant: Variant,
    value: Interval,
    write: text.Writer = text.ratio,
    mark: str = "",
    meanings: Mapping[str, str] | None = None,
    name: str = "",
) -> ui.Step:
    """One value of a sequence such as original → deployed → mended; `name` replaces that of the variant."""
    return ui.Step(
        name or str(variant), write(value.value), tone(variant), mark, (meanings or {}).get(mark, "")
    )


# --- where a score comes from ----------------------------------------------------------------------------


class Finding(Protocol):
    """What the provenance of an audit has."""

    column: str
    eta2_group: float
    eta2_label: float
    auroc_pooled: float
    auroc_within: float | None


def provenance_stats(finding: Finding, what: str = "the label") -> list[ui.Stat]:
    """How much of the score the column and the label explain, and how well it ranks within the groups.

    Args:
        what: the label, as it is called on the page, for example "the defect".
    """
    within = "–" if finding.auroc_within is None else text.ratio(finding.auroc_within)
    return [
        ui.Stat(
            "Variance of the score explained (η²)",
            [
                ui.Step(f"by {finding.column}", text.percent(finding.eta2_group)),
                ui.Step(f"by {what}", text.percent(finding.eta2_label)),
            ],
            f"A score that follows {what} has the larger share on the right.",
        ),
        ui.Stat(
            "AUROC",
            [
                ui.Step("all together", text.ratio(finding.auroc_pooled)),
                ui.Step(f"within {finding.column}", within),
            ],
            "Far apart: the ranking depends on where an image comes from. 0.50 is chance.",
        ),
    ]


# --- the end of a page -----------------------------------------------------------------------------------

WORST = "Each gate takes the worst value over all that was audited; pfungst check compares it with a limit."


def skipped(result: Result) -> ui.Section | None:
    """Inputs that were left out, with the reason; None where there are none."""
    if not result.skipped:
        return None
    count = text.plural(len(result.skipped), "image")
    columns = [ui.words("Image", "", lambda s: s.id), ui.words("Why", "", lambda s: s.reason)]
    caption = f"{count} could not be used and count nowhere on this page."
    table = ui.Table.of(columns, result.skipped, "Images left out", caption)
    return ui.Section("skipped", "Images left out", [table])


def gates(result: Result, heading: str = "Worst value", caption: str = WORST) -> ui.Table:
    """The metrics of ``pfungst check``."""
    columns = [
        ui.words("Gate", "", lambda name, m: (name, f"{m.better} is better")),
        ui.Column(heading, "", lambda _, m: f"{m.value:.3f}".replace("-", "−")),
        ui.words("Where", "", lambda _, m: m.where),
        ui.words("Meaning", "", lambda _, m: m.meaning),
    ]
    name = "Values that pfungst check can hold to a limit"
    return ui.Table.of(columns, result.metrics.items(), name, caption)


def method(
    result: Result,
    facts: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    beside: Sequence[ui.Facts] = (),
    heading: str = "Worst value",
    caption: str = WORST,
) -> ui.Section:
    """The last section: how the numbers were made, the circumstances, the configuration, the gates.

    Args:
        facts: of this audit, after those that every result has.
        notes: before those of the result.
        beside: lists of facts beside the first one.
        heading, caption: of the table of gates, see :func:`gates`.
    """
    audit = [("Pfungst", result.version), ("Created", result.created), ("Machine", result.machine)]
    audit += [("Computed in", text.duration(result.seconds)), *facts]
    blocks: list[ui.Block] = [
        ui.Prose([*notes, *result.notes], bullets=True),
        ui.Columns([ui.Facts(title="This audit", facts=audit), *beside]),
    ]
    if result.config:
        blocks.append(ui.Facts(title="Configuration", facts=text.flatten(result.config)))
    if result.metrics:
        blocks.append(gates(result, heading, caption))
    return ui.Section("method", "How every number was made", blocks)
