"""Anomaly detectors as features · distance · pooling, and their explanations."""

from pfungst.anomaly.base import Detector
from pfungst.anomaly.d2neighbors import D2Neighbors
from pfungst.anomaly.kde import KDE
from pfungst.anomaly.patchcore import PatchCore
from pfungst.anomaly.pooling import HarmonicMean, Max, Min, Pooling, SoftMin

__all__ = ["KDE", "D2Neighbors", "Detector", "HarmonicMean", "Max", "Min", "PatchCore", "Pooling", "SoftMin"]
