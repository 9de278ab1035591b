"""The tables and figures of the papers, each made by one command beside the paper's own numbers.

``catalogue.toml`` lists them, ``numbers.toml`` holds what the papers print, a module per family makes them
from the audits and measures of the rest of the package.
"""

from .catalogue import Piece, catalogue, find

__all__ = ["Piece", "catalogue", "find"]
