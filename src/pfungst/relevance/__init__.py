"""Explanations: what they are, the bases they are read in, and the LRP engine that computes them."""

from pfungst.relevance.attribute import attribute
from pfungst.relevance.bases import Basis, DCTBands, Patches, PixelBands, Pixels, Tokens
from pfungst.relevance.composites import COMPOSITES, Composite, On, Site, composite, register
from pfungst.relevance.describe import describe
from pfungst.relevance.gradcam import gradcam
from pfungst.relevance.linearize import LinearizedModel, linearize
from pfungst.relevance.relevance import Relevance, colour_limit
from pfungst.relevance.replay import Replay
from pfungst.relevance.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Ignore,
    Norm,
    Pass,
    Rule,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
)
from pfungst.relevance.time_bands import TimeBands

__all__ = [
    "COMPOSITES",
    "AlphaBeta",
    "Basis",
    "Composite",
    "DCTBands",
    "Epsilon",
    "Flat",
    "Gamma",
    "Gradient",
    "Ignore",
    "LinearizedModel",
    "Norm",
    "On",
    "Pass",
    "Patches",
    "PixelBands",
    "Pixels",
    "Relevance",
    "Replay",
    "Rule",
    "Site",
    "TimeBands",
    "Tokens",
    "WSquare",
    "ZBox",
    "ZPlus",
    "Zero",
    "attribute",
    "colour_limit",
    "composite",
    "describe",
    "gradcam",
    "linearize",
    "register",
]
