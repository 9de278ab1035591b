"""Classifiers of the audit, by :func:`pfungst.encoders.load`."""

from pathlib import Path
from typing import Any

from pfungst.encoders import Classifier, load
from pfungst.encoders.specification import short_name

__all__ = ["Classifier", "load_classifier", "short_name"]


def load_classifier(spec: str, checkpoint: str | Path | None = None, **options: Any) -> Classifier:
    """The classifier of a specification; options as for :func:`pfungst.encoders.load`."""
    return load(spec, "classifier", checkpoint=checkpoint, **options)
