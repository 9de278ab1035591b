"""People judge the neurons of Singla and Feizi: a task for the labelling app, and the majority of five."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pfungst.audit.images import to_uint8
from pfungst.errors import DataError
from pfungst.label import ComponentItem, ComponentTask, ShownImage, Study, read_task, write_task
from pfungst.label.store import FILE_NAME as ANSWERS
from pfungst.label.task import FILE_NAME as TASK
from pfungst.spurious import majority


@dataclass(frozen=True)
class Neuron:
    """One neuron of a class with its top images: ids, pixels (n, 3, H, W), w·φ and probability of the class
    (n,)."""

    class_: int
    name: str
    number: int
    ids: Sequence[str]
    images: Tensor
    values: Sequence[float]
    confidence: Sequence[float]

    @property
    def key(self) -> str:
        """Names the neuron and its class in a task."""
        return f"{self.class_}-{self.number}"


def ask(folder: Path, model: str, fingerprint: dict[str, Any], neurons: Sequence[Neuron]) -> None:
    """Write the neurons as a task for ``pfungst label``, unless it lies there: answers belong to it."""
    if (folder / TASK).exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    items = []
    for neuron in neurons:
        shown = []
        for i, (id_, x) in enumerate(zip(neuron.ids, neuron.images, strict=True)):
            file = f"images/{neuron.key}-{i}.png"
            Image.fromarray(to_uint8(x)).save(folder / file)
            shown.append(ShownImage(file=file, id=id_))
        items.append(
            ComponentItem(
                id=neuron.key,
                class_index=neuron.class_,
                class_name=neuron.name,
                component=neuron.number,
                alpha=list(neuron.values),
                confidence=list(neuron.confidence),
                images=shown,
            )
        )
    write_task(folder, ComponentTask(title=f"Neurons of {model}", model=fingerprint, items=items))


def judged(folder: Path, fingerprint: dict[str, Any]) -> dict[str, bool]:
    """Which neurons three people or more call spurious, of those that five judged; empty before.

    Raises:
        DataError: the task there is about another model.
    """
    if (folder / TASK).exists() and read_task(folder).model != fingerprint:
        raise DataError(f"{folder} asks about the neurons of another model", "give another --out")
    if not (folder / ANSWERS).is_file():
        return {}
    study = Study(folder)
    try:
        answers = list(study.answers().values())
        keys = [k for k in study.items if sum(k in a for a in answers) >= 5]
    finally:
        study.close()
    return {
        k: bool(majority(np.array([a[k] == "spurious" for a in answers if k in a])[:, None])[0]) for k in keys
    }
