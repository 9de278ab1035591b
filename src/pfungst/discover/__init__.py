"""Discovery: what a model reads that nobody named. Explanations are clustered, then each cluster is
proved."""

from pfungst.discover.cluster import Clustering, Over, cluster, over_represented
from pfungst.discover.explain import Explanations, View, explain, explain_scores
from pfungst.discover.find import Finding, correct, find
from pfungst.discover.prove import Effects, Judge, Proof
from pfungst.discover.subjects import ClassSubject, ScoreSubject, Subject

__all__ = [
    "ClassSubject",
    "Clustering",
    "Effects",
    "Explanations",
    "Finding",
    "Judge",
    "Over",
    "Proof",
    "ScoreSubject",
    "Subject",
    "View",
    "cluster",
    "correct",
    "explain",
    "explain_scores",
    "find",
    "over_represented",
]
