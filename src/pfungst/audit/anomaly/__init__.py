"""Audit of anomaly detectors."""
