"""Explanations: what they are, and the bases they are read in."""

from pfungst.relevance.bases import Basis, DCTBands, Patches, PixelBands, Pixels, Tokens
from pfungst.relevance.relevance import Relevance, colour_limit

__all__ = ["Basis", "DCTBands", "Patches", "PixelBands", "Pixels", "Relevance", "Tokens", "colour_limit"]
