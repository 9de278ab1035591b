"""Linear readouts trained on representations, who they are tested on, and what they read."""

from pfungst.probes.heatmaps import explain_probe
from pfungst.probes.linear import LinearSVM, LogisticRegression, Probe, Readout
from pfungst.probes.plan import Plan, Predictions, fit_probe, predict

__all__ = [
    "LinearSVM",
    "LogisticRegression",
    "Plan",
    "Predictions",
    "Probe",
    "Readout",
    "explain_probe",
    "fit_probe",
    "predict",
]
