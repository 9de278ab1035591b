"""``composite="auto"``: the rules that conserve on the network at hand.

The choice follows from the operations that a run of the network went through, and from nothing else: not from the
values of the input, so that all inputs of a network are explained by the same rules, and not from its modules' names.

===========================================  ==========================================================
network                                      rules
===========================================  ==========================================================
convolutions, ReLU, BatchNorm, pooling       ``epsilon_plus_flat``
the same, read in frequency; rows of tables  ``epsilon_plus``: Flat ignores the values of the input
convolutions with SiLU, GELU, GroupNorm, …   ``epsilon_gamma``
attention, LayerNorm; no convolutions        ``transformer``
===========================================  ==========================================================

ZPlus drops the relevance of an output without a positive contribution. That is harmless where a ReLU discards negative
outputs and next to impossible where many terms are summed; it costs much in depthwise convolutions that no ReLU
follows. Gamma and Epsilon conserve for inputs and outputs of either sign.
"""

from __future__ import annotations

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

_RECTIFIED = {"relu", "relu6", "batch_norm", "linear", "add", "sub", "cat", "mean", "sum", "mul", "div"}
_RECTIFIED |= {"clamp", "sigmoid", "hardsigmoid"}  # gates, and ReLU written as a clamp
_ATTENTION = {"softmax", "scaled_dot_product_attention", "layer_norm", "rms_norm"}

_LAST: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def family(records: Sequence[Record]) -> str:
    """The kind of network that went through these operations: "rectified", "smooth", "dense" or "attention"."""
    maps = [r for r in records if r.kind in ("convolution", "linear")]
    convolutions = [r for r in maps if r.kind == "convolution"]
    others = {r.operation for r in records if r.kind == "other"}
    if others & _ATTENTION:
        return "attention"
    smooth = any(o not in _RECTIFIED and "pool" not in o for o in others)
    if not convolutions or any(r.first and r.kind == "linear" for r in maps):
        return "dense" if not smooth else "smooth" if convolutions else "attention"
    weak = any(r.terms < FEW and not r.discarded and not r.first for r in convolutions)
    return "smooth" if smooth or weak else "rectified"


def choose(records: Sequence[Record], spectral: bool = False) -> str:
    """The name of the composite that conserves on a network with these operations.

    Args:
        records: of a run under any rules.
        spectral: the relevance is read in frequency.
    """
    return _name(family(records), spectral)


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
    """One rewritten forward pass and the rules it followed, chosen for this network where `rules` leaves it open.

    A network is run under the choice for the network it was when last seen, the first time as a rectified one; the
    operations of that run say whether the choice was right, and if not it is run again.

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
