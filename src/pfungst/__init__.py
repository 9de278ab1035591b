"""Pfungst: find out what a model really looks at, measure what that costs, and mend the model.

``pfungst.audit_anomaly``, ``audit_classifier`` and ``audit_similarity`` audit objects in memory; they are
imported when first asked for, with torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
_LAZY = ("audit_anomaly", "audit_classifier", "audit_similarity")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("pfungst.objects"), name)
    raise AttributeError(f"module 'pfungst' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
