"""What a discovery goes through, whatever the inputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.audit.findings.topics import Topic
from pfungst.errors import InputError
from pfungst.spurious import FeatureHead


@dataclass
class Given:
    """What is gone through, and what the result says of the model.

    Attributes:
        weights, preprocessing: of the model. named_by: how classes were named.
        skipped: inputs that cannot be read, and why. too_few: classes with too few, and how many.
    """

    topics: list[Topic]
    weights: str
    preprocessing: dict[str, Any]
    named_by: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    too_few: dict[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


def check_witnesses(witnesses: Mapping[str, nn.Module], head: FeatureHead, example: Tensor) -> None:
    """Raise InputError where a witness has other outputs than the model."""
    for spec, witness in witnesses.items():
        with torch.no_grad():
            shape = tuple(witness(example[:2].to(head.device)).shape)
        if shape != (2, head.linear.n_classes):
            raise InputError(
                f"the witness {spec} has {shape[-1]} outputs, the model {head.linear.n_classes}",
                "name a model with the same outputs",
            )
