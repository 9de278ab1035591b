"""What an audit writes: ``result.json``, one schema for all audits, and arrays beside it.

The report, the gates of ``pfungst check`` and other programs read these and nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfungst.errors import DataError

SCHEMA = "pfungst.result/1"
FILE = "result.json"

Level = Literal["unfit", "provenance", "clever-hans", "fragile", "sound"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Verdict(Model):
    """The answer in plain language; `level` is the most serious thing found."""

    level: Level
    headline: str
    sentences: list[str] = []


class Metric(Model):
    """One number that ``pfungst check`` can gate on: the worst over what was audited, and where it was."""

    value: float
    where: str
    meaning: str
    better: Literal["lower", "higher"] = "lower"
    per: dict[str, float] = {}


class Interval(Model):
    """A value with its 95 % interval, where one could be computed."""

    value: float
    low: float | None = None
    high: float | None = None


class Skipped(Model):
    """An input that was left out, and why."""

    id: str
    reason: str


class Result(Model):
    """What every audit has."""

    schema_version: Literal["pfungst.result/1"] = "pfungst.result/1"
    kind: str
    title: str
    version: str
    created: str = Field(description="ISO 8601, UTC")
    seconds: float
    machine: str
    config: dict[str, Any]
    verdict: Verdict
    metrics: dict[str, Metric] = {}
    skipped: list[Skipped] = []
    notes: list[str] = Field([], description="how the numbers were made; warnings")


# --- anomaly ---------------------------------------------------------------------------------------------


class Scores(Model):
    """One detector on one test set, mean over seeds; rates at the detector's own threshold."""

    auroc: Interval
    f1: Interval
    f1_balanced: Interval
    fnr: Interval
    fpr: Interval
    balanced_accuracy: Interval
    clever_hans: Interval | None = Field(None, description="AUROC minus mean cosine of relevance and mask")
    mark: Literal["", "↓", "↓↓", "↑"] = Field("", description="of F1 against the column to compare with")
    p_value: float | None = Field(None, description="two-sided t-test over seeds; None for fewer than 3")


class Group(Model):
    name: str
    n_good: int
    n_defect: int
    mean_score: float
    auroc: float | None = Field(None, description="None where a class is missing")


class Provenance(Model):
    """Does the score follow where an image came from?"""

    column: str
    eta2_group: float
    eta2_label: float
    auroc_pooled: float
    auroc_within: float | None
    follows: bool
    reasons: list[str] = []
    groups: list[Group]


class Spectrum(Model):
    """Where in frequency the relevance lies, share per band (bands of the zigzag index)."""

    edges: list[int]
    original: list[float]
    mitigated: list[float] | None = None
    kept: list[float] = Field(description="energy of the deployed images relative to the original, per band")


class Example(Model):
    """One test image shown; its pictures are row `row` of the entry's arrays."""

    id: str
    row: int
    label: str
    defect: bool
    groups: dict[str, str] = {}
    score_original: float
    score_deployed: float
    score_mitigated: float | None = None
    flagged_original: bool
    flagged_deployed: bool
    flagged_mitigated: bool | None = None
    why: str = Field(description="why it is shown, for example 'missed after deployment'")


class Entry(Model):
    """One category and one detector.

    Arrays (npz): ``labels`` (N,) 1 = defect; ``kinds`` and ``ids`` (N,) str; ``scores_VARIANT`` (N,) and
    ``threshold_VARIANT`` () of the first seed, VARIANT one of the keys of `variants`; for the examples
    ``image``, ``image_deployed`` (E, S, S, 3) uint8, ``mask`` (E, S, S) uint8, ``heat``, ``heat_mitigated``
    (E, S, S) and ``joint`` (E, 3, S, S) float16, low, middle and high frequencies, all relevance of the image
    under the original condition; ``group_COLUMN`` (N,) str.
    """

    category: str
    model: str
    n_train: int
    n_good: int
    n_defect: int
    kinds: dict[str, int]
    variants: dict[str, Scores] = Field(
        description="original, deployed and, with a mitigation, mitigated_original, mitigated (both conditions)"
    )
    trivial_f1: float = Field(description="plain F1 of flagging everything")
    threshold: float
    spectrum: Spectrum | None = None
    exposure: dict[str, float] = Field(
        {}, description="high, outside_mask, lost_in_deployment: shares in [0, 1]"
    )
    per_seed: dict[str, dict[str, list[float]]] = Field(
        {}, description="variant → metric → value of each seed"
    )
    provenance: list[Provenance] = []
    examples: list[Example] = []
    arrays: str = Field(description="npz file, relative to the result")
    notes: list[str] = []
    skipped: list[Skipped] = []


class AnomalyResult(Result):
    kind: Literal["anomaly"] = "anomaly"
    original: str
    deployed: str
    mitigation: str | None
    protocol: Literal["held-out", "published"]
    size: int
    seeds: list[int]
    entries: list[Entry]
    mean: dict[str, dict[str, Scores]] = Field(description="per model, per variant: mean over categories")


# Where each kind of result is defined, imported when it is read.
KINDS = {
    "anomaly": "pfungst.audit.result:AnomalyResult",
    "similarity": "pfungst.audit.similarity_result:SimilarityResult",
    "classifier": "pfungst.audit.classifier_result:ClassifierResult",
}


def save(result: Result, folder: Path) -> Path:
    """Write ``result.json`` into `folder`, whole or not at all."""
    target = folder / FILE
    temporary = target.with_suffix(".json.part")
    temporary.write_text(result.model_dump_json(indent=1), encoding="utf-8")
    os.replace(temporary, target)
    return target


def load(folder: str | Path) -> Result:
    """Read the result of an audit from its folder (or from the file itself).

    Raises:
        DataError: there is none, or it is not a result of this version.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"no {FILE} in {folder}", "run `pfungst audit … --out` into this folder first"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "run the audit again") from None
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
        found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise DataError(
            f"{path} has schema {found!r}, not {SCHEMA!r}", "run the audit again with this version"
        )
    if data.get("kind") not in KINDS:
        raise DataError(f"{path} has kind {data.get('kind')!r}", f"known kinds: {', '.join(KINDS)}")
    module, _, name = KINDS[data["kind"]].partition(":")
    kind: type[Result] = getattr(importlib.import_module(module), name)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {error}", "run the audit again") from None
