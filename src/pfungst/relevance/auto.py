"""``composite="auto"``: the rules that conserve on the network at hand.

The choice follows from the operations that a run of the network went through, and from nothing else: not from
the values of the input, so that all inputs of a network are explained by the same rules, and not from its
modules' names.

===========================================  ==========================================================
network                                      rules
===========================================  ==========================================================
convolutions, ReLU, BatchNorm, pooling       ``epsilon_plus_flat``
the same, read in frequency; rows of tables  ``epsilon_plus``: Flat ignores the values of the input
convolutions with SiLU, GELU, GroupNorm, …   ``epsilon_gamma``
attention, LayerNorm; no convolutions        ``transformer``
===========================================  ==========================================================

ZPlus drops the relevance of an output without a positive contribution. That is harmless where a ReLU discards
negative outputs and next to impossible where many terms are summed; it costs much in depthwise convolutions
that no ReLU follows. Gamma and Epsilon conserve for inputs and outputs of either sign.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pfungst.relevance.bases import Basis, DCTBands, PixelBands
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.mode import Record
from pfungst.relevance.engine.run import Run, execute

#: Sums of fewer terms can lack a positive one.
FEW = 32

_RECTIFIERS = {"relu", "relu6", "hardtanh", "clamp"}
_RECTIFIED = _RECTIFIERS | {"batch_norm", "add", "sub", "cat", "mean", "sum", "mul", "div"}
_GATES = {"sigmoid", "hardsigmoid"}  # of whole channels; SiLU written by hand is no gate
_ATTENTION = {"softmax", "scaled_dot_product_attention", "layer_norm", "rms_norm"}

_LAST: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def family(records: Sequence[Record]) -> str:
    """The kind of network that went through these operations: "rectified", "smooth", "dense" or
    "attention"."""
    maps = [r for r in records if r.kind in ("convolution", "linear")]
    convolutions = [r for r in maps if r.kind == "convolution"]
    others = {r.operation for r in records if r.kind == "other"}
    if others & _ATTENTION:
        return "attention"
    gates = [r for r in records[:-1] if r.operation in _GATES]  # the last may make a probability of the score
    squashed = len(gates) > sum("gate" in r.rule for r in records) or not all(map(_pooled, gates))
    smooth = squashed or any(o not in _RECTIFIED | _GATES and "pool" not in o for o in others)
    if not convolutions or any(r.first and r.kind == "linear" for r in maps):
        return "dense" if not smooth else "smooth" if convolutions else "attention"
    # a rule is applied when the consumer is known, so that the consumer comes next; in-place writes repeat a
    # map
    discarded = {_identity(r) for r, after in itertools.pairwise(records) if _discards(after)}
    weak = any(r.terms < FEW and not r.first and _identity(r) not in discarded for r in convolutions)
    return "smooth" if smooth or weak else "rectified"


def _identity(record: Record) -> tuple[Any, ...]:
    return record.name, record.operation, record.terms, record.shape


def _discards(record: Record) -> bool:
    """Whether negative numbers do not pass, or only as a constant."""
    return record.operation in _RECTIFIERS or (record.operation in _GATES and _pooled(record))


def _pooled(record: Record) -> bool:
    """Whether an output has no positions, as the gates of squeeze and excitation."""
    return math.prod(record.shape[2:]) == 1


def _name(kind: str, spectral: bool) -> str:
    if kind == "rectified":
        return "epsilon_plus" if spectral else "epsilon_plus_flat"
    return {"dense": "epsilon_plus", "smooth": "epsilon_gamma", "attention": "transformer"}[kind]


def spectral(basis: Basis) -> bool:
    """Whether a basis reads relevance in frequency."""
    return isinstance(basis, DCTBands | PixelBands)


def run(
    model: nn.Module, x: Any, rules: Composite, output: Any = None, frequency: bool = False, **options: Any
) -> tuple[Run, Composite]:
    """One rewritten forward pass and the rules it followed, chosen for this network where `rules` leaves it
    open.

    A network is run under the choice for the network it was when last seen, the first time as a rectified
    one; the operations of that run say whether the choice was right, and if not it is run again.

    Args:
        x, output, options: of :func:`execute`.
        frequency: the relevance is read in frequency.
    """
    if not rules.auto:
        return execute(model, x, rules, output, **options), rules
    kind = _LAST.get(model, "rectified")
    for _ in range(3):
        chosen = _composite(_name(kind, frequency))
        if rules.entries:
            chosen = replace(
                chosen, entries=(*rules.entries, *chosen.entries), name=f"{chosen.name} (adapted)"
            )
        found = execute(model, x, chosen, output, **options)
        seen = family(found.records)
        if seen == kind:
            break
        _LAST[model] = kind = seen
    return found, chosen
