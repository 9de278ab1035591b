"""Linear readouts trained on representations, and what they read."""

from pfungst.probes.heatmaps import explain_probe, mean_heatmaps
from pfungst.probes.linear import LinearSVM, LogisticRegression, Probe, Readout

__all__ = ["LinearSVM", "LogisticRegression", "Probe", "Readout", "explain_probe", "mean_heatmaps"]
