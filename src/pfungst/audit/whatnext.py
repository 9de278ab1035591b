"""What to do after a verdict: one to three commands to paste."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pfungst.audit.result import Result
from pfungst.measure import limits

_MOST = 3
# Gates worth holding, with their bounds, the most telling first; those that a result has are proposed.
_GATES = {
    "condition-drop": f"--max condition-drop={limits.FALL:g}",
    "f1-drop": f"--max f1-drop={limits.FALL:g}",
    "group-drop": f"--max group-drop={limits.LARGE_FALL:g}",
    "provenance-gap": f"--max provenance-gap={limits.PROVENANCE_GAP:g}",
    "auroc": f"--min auroc={limits.FIT_AUROC:g}",
}
_BACKBONE = "patchcore:backbone=efficientnet-lite0"


def commands(result: Result) -> list[str]:
    """One to three commands for a shell, the most useful first; what a comment says is for the reader."""
    return list(islice(dict.fromkeys(_proposed(result)), _MOST))


def _proposed(result: Result) -> Iterator[str]:
    level, config = result.verdict.level, result.config
    out = shlex.quote(str(config.get("out", "pfungst-audit")))
    if result.kind in ("comparison", "watch"):
        pass  # made of audits, which have commands of their own
    elif level == "too-few" or (level == "not-established" and result.kind != "discovery"):
        yield f"{again(result)}  # with more images"
    elif result.kind == "anomaly":
        yield from _anomaly(result)
    elif result.kind == "similarity" and config.get("texts") is None:
        yield from _similarity(result)
    elif result.kind in ("classifier", "discovery"):
        yield from _classifier(result, out)
    if bounds := [text for name, text in _GATES.items() if name in result.metrics]:
        yield f"pfungst check {out} {' '.join(bounds[:2])}"
    elif result.metrics:
        yield f"pfungst check {out}"
    yield f"pfungst report {out}"


def _anomaly(result: Result) -> Iterator[str]:
    level, about = result.verdict.level, result.verdict.about
    if level == "provenance" or (level == "unfit" and about.column):
        told = f"with good images of every {about.column} to train on"
        yield f"{again(result, groups=[about.column])}  # {told}"
    elif level in ("clever-hans", "fragile", "sound") and result.config.get("mitigate") == "none":
        yield again(result, mitigate="blur")
    if level != "sound" and result.config.get("model") != [_BACKBONE]:
        yield again(result, model=[_BACKBONE])


def _similarity(result: Result) -> Iterator[str]:
    level, about, config = result.verdict.level, result.verdict.about, result.config
    if level in ("clever-hans", "fragile") and config.get("condition") and config.get("mitigate") == "none":
        yield again(result, mitigate="prune:auto")
    if level in ("provenance", "fragile") and about.column:
        yield again(result, groups=[about.column], pairs=10)
    if level == "unfit":
        yield again(result, probe="svm" if config.get("probe") == "logreg" else "logreg")
    if level == "sound" and not config.get("condition"):
        yield again(result, condition=["jpeg:30"])


def _classifier(result: Result, out: str) -> Iterator[str]:
    level, config = result.verdict.level, result.config
    if level == "unfit":
        yield f"{again(result, class_names='NAMES.txt')}  # the classes in the order of the outputs"
    elif result.kind == "classifier" and level in ("clever-hans", "fragile"):
        yield f"pfungst label {out} --labeller NAME"
        yield f"{again(result, components='components.json')}  # as the labelling page exports it"
    elif result.kind == "classifier" and level == "sound" and not config.get("condition"):
        yield again(result, condition=["jpeg:30"])
    elif result.kind == "discovery":
        if level in ("clever-hans", "not-established") and not config.get("answers"):
            yield f"pfungst label {out} --labeller NAME"
        most = int(config.get("per_class", 500))
        found = getattr(result, "discovered", None)
        if found is None or any(e.n >= most for e in found.entries):  # there may be more images to see
            yield again(result, per_class=2 * most, answers=None)


def again(result: Result, **changes: Any) -> str:
    """The command of an audit with some options changed, into a folder of its own; defaults are left out."""
    kind = result.kind
    module = importlib.import_module(f"pfungst.audit.{kind}.config")
    of = getattr(module, f"{kind.capitalize()}Config").model_fields
    argument = {"anomaly": "data"}.get(kind)
    values = {name: value for name, value in (result.config | changes).items() if name != "out"}
    values["out"] = f"{result.config.get('out', 'pfungst-audit')}-again"
    words = ["pfungst", "discover"] if kind == "discovery" else ["pfungst", "audit", kind]
    words += [str(values[argument])] if argument and argument in values else []
    for name, value in values.items():
        if name not in of or name in (argument, "resume", "overwrite"):
            continue
        default = of[name].get_default(call_default_factory=True)
        if value in (None, [], False) or str(value) == str(default) or value == default:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list):
            between = ";" if any("," in str(v) for v in value) else ","
            words.append(between.join(map(str, value)) + between * (between == ";" and len(value) == 1))
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)
