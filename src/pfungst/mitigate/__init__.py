"""Mending a model: layers that remove what it should not use."""

from pfungst.mitigate.cutoff import Cutoff, propose_cutoff
from pfungst.mitigate.layers import GaussianBlur, Layer, LowPass, layer_from_dict
from pfungst.mitigate.pruning import (
    Pruning,
    Response,
    Sweep,
    filter_responses,
    prunable_layers,
    prune,
    region,
    sweep,
)

__all__ = [
    "Cutoff",
    "GaussianBlur",
    "Layer",
    "LowPass",
    "Pruning",
    "Response",
    "Sweep",
    "filter_responses",
    "layer_from_dict",
    "propose_cutoff",
    "prunable_layers",
    "prune",
    "region",
    "sweep",
]
