"""The task for the labelling app: what people are asked to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfungst.audit.classifier.result import ClassEntry
from pfungst.audit.findings.task import write_task


def write_label_task(
    folder: Path, title: str, fingerprint: dict[str, Any], entries: list[ClassEntry]
) -> None:
    """Write ``label-task.json`` beside the images it names, proven components first."""
    every = ((entry, c) for entry in entries for c in entry.components)
    ranked = sorted(every, key=lambda pair: pair[1].order, reverse=True)
    items = [
        {
            "id": f"{entry.index}-{c.component}",
            "class_index": entry.index,
            "class_name": entry.name,
            "component": c.component,
            "alpha": [image.alpha for image in c.images],
            "confidence": [image.confidence for image in c.images],
            "npfv": c.visual.file if c.visual else None,
            "npfv_confidence": c.visual.confidence if c.visual else None,
            "npfv_gradcam": None,
            "images": [{"file": i.file, "id": i.id, "gradcam": i.region} for i in c.images],
        }
        for entry, c in ranked
    ]
    write_task(folder, "components", title, fingerprint, items)
