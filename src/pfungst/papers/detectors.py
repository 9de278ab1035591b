"""Detectors under another way of resizing: 001 table 2 and figure 4; 002 table 3, figures 7 and 8."""

from __future__ import annotations

from pathlib import Path

from pfungst.anomaly import detector_from_spec
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.result import AnomalyResult, Entry, Scored
from pfungst.audit.result import Interval
from pfungst.encoders.packages import PACKAGES, installed
from pfungst.errors import ConfigError
from pfungst.papers import stand_ins
from pfungst.papers.made import Made, Numbers, Wish, mean_of
from pfungst.report.anomaly_entry import entry_blocks
from pfungst.report.page import Block, Details

RETAINED = ("bottle", "capsule", "pill", "toothbrush", "wood")
LEAST_F1 = 0.9  # of D2Neighbors on the original images, for a category to be retained
_SIDE = 224


def _patchcore() -> str:
    """The best backbone whose weights are here; the paper's is wide_resnet50_2."""
    name = "efficientnet-lite0"
    there = installed(PACKAGES[name].distribution.replace("-", "_")) is not None
    return f"patchcore:backbone={name if there else 'resnet18'}"


def models(wish: Wish) -> dict[str, str]:
    """Detectors by their names in the paper."""
    named = {
        "D2Neighbors": "d2neighbors",
        "D2Neighbors ℓ1": "d2neighbors:p=1",
        "D2Neighbors ℓ4": "d2neighbors:p=4",
    }
    if wish.models:
        detector_from_spec(wish.models)  # a wrong one is said before anything is audited
    return named | {"PatchCore": wish.models or _patchcore()}


def categories(wish: Wish) -> tuple[str, ...]:
    """The categories of a table: those named, the paper's five where the data have them, else all that
    D2Neighbors predicts with an F1 above 0.9.

    Raises:
        ConfigError: it predicts none so well.
    """
    if wish.stand_in or wish.classes:
        return tuple(wish.classes)
    if all((wish.given() / category).is_dir() for category in RETAINED):
        return RETAINED
    result, _ = audit(wish, ["d2neighbors"])
    found = tuple(e.category for e in result.entries if e.original.f1.value > LEAST_F1)
    if not found:
        raise ConfigError(f"D2Neighbors predicts no category with an F1 above {LEAST_F1:g}", "name --classes")
    return found


def audit(wish: Wish, detectors: list[str], chosen: tuple[str, ...] = ()) -> tuple[AnomalyResult, Path]:
    """The audit that all of them share; the paper's conditions, protocol and mitigation are its defaults."""
    from pfungst.audit.anomaly.run import run

    data = stand_ins.parts(wish) if wish.stand_in else wish.given()
    size, seeds = (48, 1) if wish.tiny else (wish.size or _SIDE, wish.seeds or 5)
    options = {"size": size, "seeds": seeds, "protocol": "published", "groups": ["none"], "examples": 6}
    name = "detectors-" + "-".join(d.partition(":")[0] + d.partition("p=")[2] for d in detectors)
    return wish.audited(
        AnomalyConfig, run, name, data=data, model=detectors, category=list(chosen), **options
    )


def _numbers(entries: list[Entry], prefix: str = "") -> dict[str, dict[str, Interval]]:
    """F1 and FNR of one detector, means over categories: as it is, and mended."""

    def of(measure: str, condition: str, mitigated: bool) -> Interval:
        return mean_of([getattr(e.of(condition, mitigated), measure) for e in entries])

    return {
        f"{prefix}{', mended' if mitigated else ''}": {
            f"{measure.upper()} {condition}": of(measure, condition, mitigated)
            for measure in ("f1", "fnr")
            for condition in ("original", "deployed")
        }
        for mitigated in (False, True)
    }


def table2(wish: Wish) -> Made:
    """F1 and FNR before and after deployment."""
    named = models(wish)
    result, folder = audit(wish, list(named.values()), categories(wish))
    ours: dict[str, dict[str, Interval]] = {}
    for name, spec in named.items():
        ours |= _numbers([e for e in result.entries if e.model == spec], name)
    caption = "Means over the categories; intervals of the images, independent between categories. Plain F1."
    return Made(
        [Numbers.of("F1 and FNR", ours, wish.piece.numbers, caption=caption)],
        notes=_notes(wish),
        audits=[folder],
    )


def table3(wish: Wish) -> Made:
    """F1 by category."""
    named = models(wish)
    result, folder = audit(wish, list(named.values()), categories(wish))
    ours: dict[str, dict[str, Interval]] = {}
    for name, spec in named.items():
        entries: list[Entry] = [e for e in result.entries if e.model == spec]
        for mitigated in (False, True):
            row = ours.setdefault(name + (", mended" if mitigated else ""), {})
            for condition in ("original", "deployed"):
                found: list[Scored] = list(entries)
                row[f"mean {condition}"] = mean_of([e.of(condition, mitigated).f1 for e in found])
                row |= {f"{e.category} {condition}": e.of(condition, mitigated).f1 for e in entries}
    return Made([Numbers.of("F1 by category", ours, wish.piece.numbers)], notes=_notes(wish), audits=[folder])


def retained(wish: Wish) -> Made:
    """The categories that D2Neighbors predicts well enough to be retained."""
    result, folder = audit(wish, ["d2neighbors"])
    ours: dict[str, dict[str, Interval | float | None]] = {
        e.category: {"F1": e.original.f1, "retained": float(e.original.f1.value > LEAST_F1)}
        for e in result.entries
    }
    paper = {} if wish.stand_in else {c: {"retained": 1.0} for c in RETAINED}
    caption = f"Retained (1): F1 above {LEAST_F1:g} on the original images."
    return Made(
        [Numbers.of("Categories", ours, paper, caption=caption, counts=["retained"])], audits=[folder]
    )


def frequencies(wish: Wish) -> Made:
    """Where D2Neighbors looks: pixels, frequencies, pixels within frequency bands."""
    wood = wish.piece.id.startswith("001") and not wish.stand_in and not wish.classes
    result, folder = audit(wish, ["d2neighbors"], ("wood",) if wood else categories(wish))
    entries = result.entries
    if wish.piece.id.startswith("001") and wish.stand_in:
        entries = [e for e in entries if e.category == "wood_stripes"] or entries[:1]
    ours = {e.category: {"share of high frequencies": e.exposure.high} for e in entries if e.exposure}
    blocks: list[Block] = [
        Details(title=e.category, blocks=entry_blocks(e, folder, _SIDE), open=i == 0)
        for i, e in enumerate(entries)
    ]
    return Made([Numbers.of("Exposure", ours, wish.piece.numbers)], blocks, audits=[folder])


def resizing(wish: Wish) -> Made:
    """The same images resized without and with antialiasing."""
    result, folder = audit(wish, ["d2neighbors"], categories(wish))
    kept = {
        e.category: {"energy kept by the deployed condition, highest band": e.spectrum.kept[-1]}
        for e in result.entries
        if e.spectrum
    }
    blocks: list[Block] = [
        Details(title=e.category, blocks=entry_blocks(e, folder, _SIDE), open=i == 0)
        for i, e in enumerate(result.entries)
    ]
    return Made([Numbers.of("Resizing", kept, {})], blocks, audits=[folder])


def _notes(wish: Wish) -> list[str]:
    backbone = models(wish)["PatchCore"]
    return (
        []
        if "wide_resnet50_2" in backbone
        else [f"PatchCore here is {backbone}; the paper's is WideResNet-50."]
    )
