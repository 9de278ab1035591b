"""Mending a model: layers that remove what it should not use."""

from pfungst.mitigate.cutoff import Cutoff, propose_cutoff
from pfungst.mitigate.layers import GaussianBlur, Layer, LowPass, layer_from_dict

__all__ = ["Cutoff", "GaussianBlur", "Layer", "LowPass", "layer_from_dict", "propose_cutoff"]
