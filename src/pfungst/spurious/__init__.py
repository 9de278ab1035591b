"""Spurious features of classifiers: find them, look at them, measure them, switch them off (paper 003)."""

from pfungst.spurious.components import components_chosen_by, read_components, write_components
from pfungst.spurious.counterfactual import Counterfactual, Diffusion, counterfactual
from pfungst.spurious.diversity import Diversity, diversity
from pfungst.spurious.evidence import Evidence, Looked, Witness, correct, evidence, paper_rule, two_groups
from pfungst.spurious.features import FeatureStore, extract_features, match_classes
from pfungst.spurious.heads import FeatureHead, LinearHead
from pfungst.spurious.neurons import majority, neuron_importance, rank_neurons
from pfungst.spurious.npca import NeuralPCA
from pfungst.spurious.score import (
    ClassScore,
    SpuriousFolder,
    SpuriousScore,
    class_probabilities,
    score_probabilities,
    spurious_score,
)
from pfungst.spurious.spufix import SpuFix
from pfungst.spurious.visualise import Visualisation, apgd, select, visualise

__all__ = [
    "ClassScore",
    "Counterfactual",
    "Diffusion",
    "Diversity",
    "Evidence",
    "FeatureHead",
    "FeatureStore",
    "LinearHead",
    "Looked",
    "NeuralPCA",
    "SpuFix",
    "SpuriousFolder",
    "SpuriousScore",
    "Visualisation",
    "Witness",
    "apgd",
    "class_probabilities",
    "components_chosen_by",
    "correct",
    "counterfactual",
    "diversity",
    "evidence",
    "extract_features",
    "majority",
    "match_classes",
    "neuron_importance",
    "paper_rule",
    "rank_neurons",
    "read_components",
    "score_probabilities",
    "select",
    "spurious_score",
    "two_groups",
    "visualise",
    "write_components",
]
