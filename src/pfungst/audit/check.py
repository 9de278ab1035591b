"""Gates on a result, for continuous integration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from pfungst.audit.result import Result
from pfungst.errors import ConfigError
from pfungst.suggest import suggest


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
        try:
            if not (name and sign):
                raise ValueError
            return cls(name.strip(), kind, float(bound))
        except ValueError:
            raise ConfigError(f"--{kind} {text!r} is not a gate", f"write --{kind} f1-drop=0.03") from None


@dataclass(frozen=True)
class Outcome:
    """What a gate found."""

    gate: Gate
    value: float
    where: str
    passed: bool

    def __str__(self) -> str:
        word = "pass" if self.passed else "FAIL"
        relation = "≤" if self.gate.kind == "max" else "≥"
        return f"{word}  {self.gate.metric} = {self.value:.4g} {relation} {self.gate.bound:g}  ({self.where})"


def check(result: Result, gates: list[Gate]) -> list[Outcome]:
    """Hold a result against gates. A metric that is not a number fails its gate.

    Raises:
        ConfigError: no gate, or a gate on a metric that the result does not have.
    """
    if not gates:
        known = ", ".join(
            f"{name} ({'max' if m.better == 'lower' else 'min'})" for name, m in result.metrics.items()
        )
        raise ConfigError("no gate is given", f"for example --max f1-drop=0.03; this result has {known}")
    outcomes = []
    for gate in gates:
        if gate.metric not in result.metrics:
            raise ConfigError(
                f"the result has no metric {gate.metric!r}",
                suggest(gate.metric, sorted(result.metrics), "it has"),
            )
        metric = result.metrics[gate.metric]
        passed = metric.value <= gate.bound if gate.kind == "max" else metric.value >= gate.bound
        outcomes.append(Outcome(gate, metric.value, metric.where, passed))
    return outcomes


def write_junit(outcomes: list[Outcome], path: str | Path) -> None:
    """Write the outcomes as JUnit XML, one test case per gate."""
    failures = sum(not outcome.passed for outcome in outcomes)
    suite = ElementTree.Element("testsuite", name="pfungst", tests=str(len(outcomes)), failures=str(failures))
    for outcome in outcomes:
        case = ElementTree.SubElement(suite, "testcase", classname="pfungst.check", name=outcome.gate.metric)
        if not outcome.passed:
            ElementTree.SubElement(case, "failure", message=str(outcome))
    ElementTree.indent(suite)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
