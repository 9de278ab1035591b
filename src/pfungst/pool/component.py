"""What to search for: a component as the classifier audit or ``NeuralPCA.save`` left it on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pfungst.errors import DataError, InputError
from pfungst.files import read, reading
from pfungst.label import ComponentTask, read_task
from pfungst.pool.index import Pool
from pfungst.pool.parts import model_record
from pfungst.pool.search import Direction, direction
from pfungst.suggest import suggest


@dataclass(frozen=True)
class Component:
    """A component of a class, and what people should see with it.

    Args:
        direction: α as a function of features.
        class_name: of its class, its index where no name is known.
        names: those classes whose name is known, by index.
        reference: files of training images that show the component most.
    """

    direction: Direction
    class_name: str
    names: dict[int, str] = field(default_factory=dict)
    reference: list[Path] = field(default_factory=list)


def read_component(source: str | os.PathLike[str], class_: str, component: int) -> Component:
    """A component by its class, name or index, and its number.

    Args:
        source: folder of a classifier audit, or the stem of the files that ``NeuralPCA.save`` wrote.
        class_: name as in the audit, or index.
        component: counted from 0.

    Raises:
        DataError: the folder is no classifier audit.
        InputError: no such class or component.
    """
    from pfungst.spurious import NeuralPCA

    source = Path(source)
    names: dict[int, str] = {}
    if source.is_dir():
        file, remedy = source / "result.json", "give the --out of `pfungst audit classifier`"
        with reading(file, remedy):
            names = {int(entry["index"]): entry["name"] for entry in read(file, remedy)["entries"]}
    npca = NeuralPCA.load(source / "npca" if source.is_dir() else source)
    found = [index for index, name in names.items() if name == class_]
    if not found and not class_.isdecimal():
        raise InputError(f"there is no class {class_!r}", suggest(class_, names.values() or ["indices only"]))
    index = found[0] if found else int(class_)
    wanted = direction(npca, index, component)
    reference: list[Path] = []
    if (source / "label-task.json").is_file():
        task = read_task(source)
        if isinstance(task, ComponentTask):
            reference = [
                source / image.file
                for item in task.items
                if (item.class_index, item.component) == (index, component)
                for image in item.images[:5]
            ]
    return Component(wanted, names.get(index, f"class {index}"), names, reference)


def model_of(pool: Pool, component: Direction) -> str:
    """The model that scored the pool and has the component's head.

    Raises:
        DataError: none has, or several have, as when the same weights scored under two names.
    """
    names = sorted(p.parent.name for p in pool.folder.glob("scores/*/model.json"))
    fitting = [n for n in names if component.fits(model_record(pool, n))]
    if len(fitting) != 1:
        raise DataError(
            f"of the models that scored the pool ({', '.join(names) or 'none'}) {len(fitting)} have the "
            "head that the component was found on",
            "name one with --model" if fitting else "score the pool with the audited model",
        )
    return fitting[0]
