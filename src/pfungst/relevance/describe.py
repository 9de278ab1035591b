"""What every operation of a network gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pfungst.errors import InputError
from pfungst.relevance import auto
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.inputs import Inputs
from pfungst.relevance.engine.run import check_model


def describe(model: nn.Module, x: Any, composite: str | Composite = "auto", output: Any = None) -> str:
    """A table of what each operation of `model` gets for the input `x`.

    Args:
        model, x, composite: as in :func:`attribute`.
        output: a callable that picks the explained tensor where the model returns several.

    Returns:
        Text with one line per operation: number, module, operation, output shape, rule.

    Raises:
        InputError: inputs or model that cannot be explained.
        UncoveredOperation: the network uses an operation without a rule.
    """
    if output is not None and not callable(output):
        raise InputError(
            f"output={output!r} is no callable",
            "leave it out: all outputs share one table; a callable picks one of several tensors",
        )
    with torch.inference_mode(False):
        run, rules = auto.run(check_model(model), Inputs.read(x), _composite(composite), output)
    header = ("#", "module", "operation", "output", "rule")
    rows = [
        (str(i), r.name or "(model)", r.operation, "×".join(map(str, r.shape)), r.rule)
        for i, r in enumerate(run.records, 1)
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(4)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]])
        for row in (header, *rows)
    ]
    return "\n".join([f"composite {rules.name}", *lines])
