"""Audit of classifiers: features that are right for the wrong reason."""
