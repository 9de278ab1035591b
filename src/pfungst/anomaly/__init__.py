"""Anomaly detectors as features · distance · pooling, and their explanations."""

from pfungst.anomaly.autoencoder import Autoencoder
from pfungst.anomaly.bag import Bag
from pfungst.anomaly.base import Detector, register
from pfungst.anomaly.d2neighbors import D2Neighbors
from pfungst.anomaly.kde import KDE
from pfungst.anomaly.letters import LettersCNN, rendered_letters, train_letters
from pfungst.anomaly.mixture import GaussianMixture
from pfungst.anomaly.one_class import DeepOneClass
from pfungst.anomaly.own import OwnDetector
from pfungst.anomaly.patchcore import PatchCore
from pfungst.anomaly.pooling import HarmonicMean, Max, Min, Pooling, SoftMin
from pfungst.anomaly.spec import detector_from_spec
from pfungst.anomaly.tiled import Tiled
from pfungst.anomaly.wrapping import wrap

__all__ = [
    "KDE",
    "Autoencoder",
    "Bag",
    "D2Neighbors",
    "DeepOneClass",
    "Detector",
    "GaussianMixture",
    "HarmonicMean",
    "LettersCNN",
    "Max",
    "Min",
    "OwnDetector",
    "PatchCore",
    "Pooling",
    "SoftMin",
    "Tiled",
    "detector_from_spec",
    "register",
    "rendered_letters",
    "train_letters",
    "wrap",
]
