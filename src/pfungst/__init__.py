"""Pfungst: find out what a model really looks at, measure what that costs, and mend the model."""

__version__ = "0.2.0"
