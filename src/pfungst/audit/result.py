"""What an audit writes: ``result.json``, one schema for all audits, and arrays beside it.

The report, the gates of ``pfungst check`` and other programs read these and nothing else.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pfungst.errors import ConfigError, DataError, few
from pfungst.files import read, write

SCHEMA = "pfungst.result/2"
FILE = "result.json"

Better = Literal["lower", "higher"]
Level = Literal["too-few", "unfit", "provenance", "clever-hans", "fragile", "not-established", "sound"]
SHOWN = 4  # sentences of a verdict that are read at once


class Model(BaseModel):
    """A part of a result: no unknown fields, infinities written as text."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    @classmethod
    def copied(cls, source: object, **more: Any) -> Self:
        """With the fields that `source` has as attributes of the same names, and with those given."""
        names = [name for name in cls.model_fields if name not in more and hasattr(source, name)]
        return cls(**{name: getattr(source, name) for name in names}, **more)


class Variant(Model):
    """Which images a model saw, and which model it was: one column of a table of scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    condition: str = Field(
        description="how the images reached the model: original, deployed, or a condition's name"
    )
    mitigated: bool = Field(False, description="whether it is the mended model")

    @property
    def key(self) -> str:
        """A name for arrays and files."""
        return f"{self.condition}-mended" if self.mitigated else self.condition

    def __str__(self) -> str:
        return f"{self.condition}, mended" if self.mitigated else self.condition


class About(Model):
    """What a verdict rests on, for reports and gates that need not look for it again."""

    entry: str = Field(
        "", description="the part of the audit: category / detector, class, group; empty for all of it"
    )
    column: str = Field("", description="of provenance or groups")
    condition: str = ""
    numbers: dict[str, float] = {}


class Verdict(Model):
    """The answer in plain language: the most serious level found, sentences from the most important on."""

    level: Level
    headline: str
    sentences: list[str] = []
    about: About = About()

    @property
    def shown(self) -> list[str]:
        """The sentences that are read at once."""
        return self.sentences[:SHOWN]

    @property
    def folded(self) -> list[str]:
        """The others."""
        return self.sentences[SHOWN:]


class Metric(Model):
    """One number that ``pfungst check`` can gate on: the worst over what was audited, and where it was."""

    value: float
    where: str
    meaning: str
    better: Better = "lower"
    per: dict[str, float] = {}

    @classmethod
    def worst(cls, per: dict[str, float], better: Better, meaning: str) -> Metric:
        """The worst of the values `per` where, a missing one (NaN) being worse than any."""
        missing = [where for where, value in per.items() if math.isnan(value)]
        worst = missing[0] if missing else (max if better == "lower" else min)(per, key=lambda w: per[w])
        return cls(value=per[worst], where=worst, meaning=meaning, better=better, per=per)

    @classmethod
    def table(cls, rows: Iterable[MetricRow]) -> dict[str, Metric]:
        """The worst by name; rows without a value are left out."""
        found: dict[str, tuple[dict[str, float], Better, str]] = {}
        for name, better, meaning, where, value in rows:
            per, *_ = found.setdefault(name, ({}, better, meaning))
            per |= {} if value is None else {where: float(value)}
        return {name: cls.worst(*of) for name, of in found.items() if of[0]}


MetricRow = tuple[str, Better, str, str, float | None]  # name, better, meaning, where, value


class Interval(Model):
    """A value with its 95 % interval, where one could be computed; a tuple of the three is read as well."""

    value: float
    low: float | None = None
    high: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_tuple(cls, value: Any) -> Any:
        return dict(zip(("value", "low", "high"), value, strict=True)) if isinstance(value, tuple) else value

    def ends(self, form: str = ".2f") -> str:
        """Its ends in brackets, after a blank; empty where there are none."""
        if self.low is None or self.high is None or math.isnan(self.low):
            return ""
        return f" ({self.low:{form}} to {self.high:{form}})"


class Skipped(Model):
    """An input that was left out, and why."""

    id: str
    reason: str


class Result(Model):
    """What every audit has."""

    schema_version: Literal["pfungst.result/2"] = "pfungst.result/2"
    kind: str
    title: str
    version: str
    created: str = Field(description="ISO 8601, UTC")
    seconds: float
    machine: str
    config: dict[str, Any]
    inputs: str = Field("", description="digest of options, files, data and version, for --resume")
    verdict: Verdict
    metrics: dict[str, Metric] = {}
    skipped: list[Skipped] = []
    notes: list[str] = Field([], description="how the numbers were made; warnings")

    def _repr_html_(self) -> str:
        """Verdict and metrics, for notebooks."""
        rows = "".join(
            f"<tr><td>{escape(n)}</td><td>{m.value:.4g}</td><td>{escape(m.where)}</td><td>"
            f"{escape(m.meaning)}; {m.better} is better</td></tr>"
            for n, m in self.metrics.items()
        )
        told = "".join(f"<li>{escape(s)}</li>" for s in self.verdict.sentences[:4])
        return (
            f"<div><p><b>{escape(self.verdict.level)}</b>: {escape(self.verdict.headline)}</p><ul>{told}</ul>"
            f"<details><summary>{len(self.metrics)} metrics of {escape(self.title)}</summary><table>"
            f"<tr><th>metric</th><th>value</th><th>where</th><th>meaning</th></tr>{rows}</table></details></div>"
        )


# Where each kind of result is defined, imported when it is read.
KINDS = {
    "anomaly": "pfungst.audit.anomaly.result:AnomalyResult",
    "similarity": "pfungst.audit.similarity.result:SimilarityResult",
    "classifier": "pfungst.audit.classifier.result:ClassifierResult",
    "discovery": "pfungst.audit.findings.result:DiscoveryResult",
    "comparison": "pfungst.audit.compare:ComparisonResult",
    "watch": "pfungst.audit.watch:WatchResult",
    "models": "pfungst.audit.compare_models:ModelsResult",
}


def save(result: Result, folder: Path) -> Path:
    """Write ``result.json`` into `folder`, whole or not at all."""
    target = folder / FILE
    write(target, result.model_dump_json(indent=1))
    return target


def recovered(share: float, of: str) -> str:
    """What a mend does to a fall, in words: it may also make it worse."""
    return f"makes it worse by {-share:.0%} of {of}" if share < 0 else f"recovers {share:.0%} of {of}"


def refuse_other(folder: Path | None, kind: str) -> None:
    """Raise ConfigError where a folder holds a result of another kind, which would be lost."""
    if folder is None or not (folder / FILE).exists():
        return
    try:
        found = load(folder).kind
    except DataError:
        found = "that cannot be read"
    if found != kind:
        raise ConfigError(f"{folder} holds a result of kind {found}", "choose another --out")


def load(folder: str | Path) -> Result:
    """Read the result of an audit from its folder (or from the file itself).

    Raises:
        DataError: there is none, or it is not a result of this version.
    """
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise DataError(f"no {FILE} in {folder}", "run `pfungst audit … --out` into this folder first")
    data = read(path, "run the audit again")
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
        found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        ours = str(found).startswith("pfungst.result/")
        told = "was written by another version of Pfungst:" if ours else "has"
        remedy = "run the audit again, with --overwrite to replace it"
        raise DataError(f"{path} {told} schema {found!r}, not {SCHEMA!r}", remedy)
    if str(data.get("kind")) not in KINDS:
        raise DataError(f"{path} has kind {data.get('kind')!r}", f"known kinds: {', '.join(KINDS)}")
    module, _, name = KINDS[data["kind"]].partition(":")
    kind: type[Result] = getattr(importlib.import_module(module), name)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        wrong = few((f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()), 3, "; ")
        raise DataError(f"{path} is damaged: {wrong}", "run the audit again") from None
