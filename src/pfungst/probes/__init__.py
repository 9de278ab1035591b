"""Linear readouts trained on representations, and what they read."""

from pfungst.probes.linear import LinearSVM, LogisticRegression, Probe, Readout

__all__ = ["LinearSVM", "LogisticRegression", "Probe", "Readout"]
