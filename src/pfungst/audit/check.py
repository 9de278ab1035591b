"""Gates on a result, for continuous integration."""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from pfungst.audit.config import LEVELS, levels_of
from pfungst.audit.result import Metric, Result
from pfungst.errors import ConfigError
from pfungst.files import reading, write
from pfungst.suggest import suggest

_BOUND = {"lower": "max", "higher": "min"}  # which side of a metric may be bounded


@dataclass(frozen=True)
class Gate:
    """A bound on one metric of a result."""

    metric: str
    kind: Literal["max", "min"]
    bound: float

    @classmethod
    def parse(cls, text: str, kind: Literal["max", "min"]) -> Gate:
        """A gate written ``metric=bound``. Raises ConfigError for anything else."""
        name, sign, bound = text.partition("=")
        wrong = ConfigError(f"--{kind} {text!r} is not a gate", f"write --{kind} f1-drop=0.03")
        if not (name.strip() and sign):
            raise wrong
        try:
            return cls.of(name.strip(), kind, float(bound))
        except ValueError as error:
            raise error if isinstance(error, ConfigError) else wrong from None

    @classmethod
    def of(cls, metric: str, kind: Literal["max", "min"], bound: Any) -> Gate:
        """A gate of its parts. Raises ConfigError for a bound that is no finite number: nothing fails it."""
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise ConfigError(f"{kind} {metric} = {bound!r} bounds nothing", "give a number")
        return cls(metric, kind, float(bound))


@dataclass(frozen=True)
class Gates:
    """All that a result is held against: bounds on metrics, and the verdicts that pass (none: all)."""

    bounds: tuple[Gate, ...] = ()
    verdicts: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        file: Path | None = None,
        maximum: Iterable[str] = (),
        minimum: Iterable[str] = (),
        verdicts: Iterable[str] = (),
    ) -> Gates:
        """Gates of a TOML file, those given here taking precedence.

        Args:
            file: with the tables ``[max]`` and ``[min]`` of metrics and bounds, and ``verdict``, a list.
            maximum, minimum: see :meth:`Gate.parse`. verdicts: levels, comma-separated.

        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        bounds: dict[tuple[str, str], Gate] = {}
        levels: tuple[str, ...] = ()
        if file is not None:
            with reading(file, "write metrics under [max] and [min]", ConfigError):
                data = tomllib.loads(file.read_text(encoding="utf-8"))
            known = ("max", "min", "verdict")
            for key, value in data.items():
                if key not in known or isinstance(value, dict) == (key == "verdict"):
                    raise ConfigError(f"{key!r} in {file} is no gate", suggest(key, known, "it may hold"))
                if key == "verdict":
                    levels = levels_of(value if isinstance(value, list) else [value])
                    continue
                for name, bound in value.items():
                    bounds[name, key] = Gate.of(name, "max" if key == "max" else "min", bound)
        given = [Gate.parse(t, "max") for t in maximum] + [Gate.parse(t, "min") for t in minimum]
        bounds |= {(gate.metric, gate.kind): gate for gate in given}
        return cls(tuple(bounds.values()), levels_of(verdicts) or levels)

    def __bool__(self) -> bool:
        return bool(self.bounds or self.verdicts)


@dataclass(frozen=True)
class Outcome:
    """What a gate found.

    Attributes:
        name: the metric, or "verdict". value: what it is; bound: what was asked for. where: its worst place.
        passed: a value that is not a number never does.
        seconds: that the gate took.
    """

    name: str
    value: str
    bound: str
    where: str
    passed: bool
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name} = {self.value} {self.bound}  ({self.where})"


def check(result: Result, gates: Gates) -> list[Outcome]:
    """Hold a result against gates.

    Raises:
        ConfigError: a gate on a metric that the result does not have, or against its direction: a bound from
            above of what is better high would pass what is worst.
    """
    for gate in gates.bounds:
        if gate.metric not in result.metrics:
            raise ConfigError(
                f"the result has no metric {gate.metric!r}",
                suggest(gate.metric, sorted(result.metrics), "it has"),
            )
        metric = result.metrics[gate.metric]
        if gate.kind != _BOUND[metric.better]:
            raise ConfigError(
                f"--{gate.kind} {gate.metric}: {metric.better} is better: this gate would pass what is bad",
                f"write --{_BOUND[metric.better]} {gate.metric}={gate.bound:g}",
            )
    outcomes = [_held(gate, result.metrics[gate.metric]) for gate in gates.bounds]
    if gates.verdicts:
        level, verdict = result.verdict.level, result.verdict
        told = f"in {', '.join(gates.verdicts)}"
        outcomes.append(Outcome("verdict", level, told, verdict.headline, level in gates.verdicts))
    return outcomes


def _held(gate: Gate, metric: Metric) -> Outcome:
    started = time.perf_counter()
    passed = metric.value <= gate.bound if gate.kind == "max" else metric.value >= gate.bound
    bound = f"{'≤' if gate.kind == 'max' else '≥'} {gate.bound:g}"
    found = gate.metric, f"{metric.value:.4g}", bound, metric.where, passed
    return Outcome(*found, time.perf_counter() - started)


def list_metrics(result: Result) -> str:
    """What could be gated on: every metric with its value, bound and meaning, and the verdict."""
    rows = [
        (f"--{_BOUND[m.better]} {name}={m.value:.4g}", m.where, m.meaning)
        for name, m in result.metrics.items()
    ]
    rows.append((f"--verdict {result.verdict.level}", result.verdict.headline, f"of {', '.join(LEVELS)}"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{min(widths[1], 40)}}  {c}" for a, b, c in rows)


def write_junit(outcomes: Sequence[Outcome], result: Result, path: str | Path) -> None:
    """Write the outcomes as JUnit XML, a test case per gate with value and bound; missing folders are made.

    Raises:
        DataError: it cannot be written.
    """
    failures, seconds = str(sum(not o.passed for o in outcomes)), f"{sum(o.seconds for o in outcomes):.6f}"
    totals = {"tests": str(len(outcomes)), "failures": failures, "errors": "0", "time": seconds}
    root = ElementTree.Element("testsuites", {"name": "pfungst", **totals})
    own = {"name": _xml(result.title), "timestamp": result.created, "skipped": "0"}
    suite = ElementTree.SubElement(root, "testsuite", own | totals)
    about = {"kind": result.kind, "version": result.version, "verdict": result.verdict.level}
    _properties(suite, about | {"audit-seconds": f"{result.seconds:.1f}"})
    for outcome in outcomes:
        named = {"classname": "pfungst.check", "name": outcome.name, "time": f"{outcome.seconds:.6f}"}
        case = ElementTree.SubElement(suite, "testcase", named)
        _properties(case, {"value": outcome.value, "bound": outcome.bound, "where": outcome.where})
        if not outcome.passed:
            told = _xml(str(outcome))
            ElementTree.SubElement(case, "failure", message=told, type="gate").text = told
    ElementTree.indent(root)
    write(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _properties(parent: ElementTree.Element, values: Mapping[str, str]) -> None:
    group = ElementTree.SubElement(parent, "properties")
    for name, value in values.items():
        ElementTree.SubElement(group, "property", name=name, value=_xml(value))


def _xml(text: str) -> str:
    """A text without the characters that XML 1.0 cannot hold, such as those of a file name."""
    allowed = lambda c: c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    return "".join(c if allowed(c) else "\ufffd" for c in text)


def markdown(outcomes: Sequence[Outcome], result: Result) -> str:
    """A summary for a pull request: the verdict and a table of the gates."""
    failed = sum(not o.passed for o in outcomes)
    word = f"{failed} of {len(outcomes)} gates failed" if failed else f"all {len(outcomes)} gates passed"
    told = f"**{result.verdict.level}**: {_cell(result.verdict.headline)}"
    lines = [f"### Pfungst: {word if outcomes else 'no gates'}", "", told, ""]
    if outcomes:
        lines += ["| | gate | value | bound | where |", "|---|---|---|---|---|"]
    for o in outcomes:
        cells = "✅" if o.passed else "❌", f"`{o.name}`", *map(_cell, (o.value, o.bound, o.where))
        lines.append(f"| {' | '.join(cells)} |")
    told = f"{result.kind} audit, {result.created}, Pfungst {result.version}"
    return "\n".join([*lines, "", f"<sub>{_cell(result.title)}; {told}</sub>", ""])


def _cell(text: str) -> str:
    """A text that stays in its cell."""
    text = "".join(f"\\{c}" if c in "\\|`*[]" else c for c in text)
    return " ".join(text.replace("<", "&lt;").replace(">", "&gt;").split())
