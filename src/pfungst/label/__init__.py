"""The labelling app: people judge components, findings and images on their own, and no answer is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pfungst.label.export import export
from pfungst.label.study import Study
from pfungst.label.task import (
    ClusterItem,
    ClusterTask,
    ComponentItem,
    ComponentTask,
    ImageItem,
    ImageTask,
    ShownImage,
    read_task,
    write_task,
)

if TYPE_CHECKING:
    from pfungst.label.server import serve

__all__ = [
    "ClusterItem",
    "ClusterTask",
    "ComponentItem",
    "ComponentTask",
    "ImageItem",
    "ImageTask",
    "ShownImage",
    "Study",
    "export",
    "read_task",
    "serve",
    "write_task",
]


def __getattr__(name: str) -> Any:
    # FastAPI is an extra: reading and writing tasks works without it.
    if name == "serve":
        from pfungst.label.server import serve

        return serve
    raise AttributeError(name)
