"""Discovery: what a model reads that nobody named. Explanations are clustered, then each cluster is
proved."""

from pfungst.discover.cluster import Clustering, Over, cluster, over_represented
from pfungst.discover.explain import Explanations, View, explain
from pfungst.discover.find import Finding, correct, find
from pfungst.discover.prove import Judge, Proof

__all__ = [
    "Clustering",
    "Explanations",
    "Finding",
    "Judge",
    "Over",
    "Proof",
    "View",
    "cluster",
    "correct",
    "explain",
    "find",
    "over_represented",
]
