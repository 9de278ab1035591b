"""What makes two inputs look alike to an encoder: BiLRP, computed once per input."""

from pfungst.similarity.decomposition import Decomposition
from pfungst.similarity.explainer import SimilarityExplainer
from pfungst.similarity.factors import Factors
from pfungst.similarity.likeness import (
    PastedLikeness,
    SharedLikeness,
    flat_map,
    pasted_likeness,
    relevance_on,
    shared_likeness,
    similar_pairs,
)
from pfungst.similarity.pairs import PairRelevance, Pairs, line_strength, strongest
from pfungst.similarity.sketch import Sketch
from pfungst.similarity.summary import GroupSummary

__all__ = [
    "Decomposition",
    "Factors",
    "GroupSummary",
    "PairRelevance",
    "Pairs",
    "PastedLikeness",
    "SharedLikeness",
    "SimilarityExplainer",
    "Sketch",
    "flat_map",
    "line_strength",
    "pasted_likeness",
    "relevance_on",
    "shared_likeness",
    "similar_pairs",
    "strongest",
]
