"""Mending a model: layers that remove what it should not use."""

from pfungst.mitigate.layers import GaussianBlur, Layer, LowPass, layer_from_dict

__all__ = ["GaussianBlur", "Layer", "LowPass", "layer_from_dict"]
