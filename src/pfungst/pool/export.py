"""From hits to people, and from people to a data set."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfungst.data.decode import Undecodable, read_image
from pfungst.errors import DataError, InputError
from pfungst.files import whole, write
from pfungst.label import ImageItem, ImageTask, Study, write_task
from pfungst.pool.index import Place, open_pool
from pfungst.pool.parts import model_record
from pfungst.pool.read import read
from pfungst.pool.search import Hit

# First bytes of the formats that browsers show as they are.
_KNOWN = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"GIF8": ".gif"}


def to_label_task(
    folder: str | os.PathLike[str],
    hits: Sequence[Hit],
    out: str | os.PathLike[str],
    class_index: int,
    class_name: str,
    component: int,
    model: str,
    *,
    class_names: Mapping[int, str] | None = None,
    reference: Sequence[str | os.PathLike[str]] = (),
) -> ImageTask:
    """Write hits as a task folder for the labelling app.

    Args:
        folder: the scored pool; hits: found by ``search`` in it.
        out: the task folder to make.
        class_index, class_name, component: what was searched for.
        model: the model it was found on; its fingerprint goes into the task.
        class_names: names for the predictions shown; classes without one are shown by their index.
        reference: files of images that show the component.

    Returns:
        The task.

    Raises:
        DataError: an image cannot be read any more, or the folder has a task.
        InputError: there are no hits.
    """
    pool, out = open_pool(folder), Path(out)
    if not hits:
        raise InputError(
            "nothing was found, so there is nothing to label", "lower agree or search another component"
        )
    if (out / "label-task.json").exists():
        raise DataError(f"{out} has a task already", "give another folder")
    images = out / "images"
    shown = [
        _copy(Path(file).read_bytes(), images, f"reference-{i}", str(file))
        for i, file in enumerate(reference)
    ]
    places: dict[tuple[int, int], Place] = {}
    for shard in sorted({hit.shard for hit in hits}):
        content = pool.shard(shard)
        places.update({(hit.shard, hit.row): content[hit.row] for hit in hits if hit.shard == shard})
    pool.refuse_changed(places.values())
    order = sorted(places)
    found: dict[tuple[int, int], str] = {}
    for number, (key, content_) in enumerate(zip(order, read(pool, [places[k] for k in order]), strict=True)):
        if isinstance(content_, str):
            raise DataError(f"{places[key].id} cannot be read: {content_}", "restore the pool's images")
        found[key] = _copy(content_, images, f"{number:06d}", places[key].id)

    def name(index: int) -> str | int:
        return (class_names or {}).get(index, index)

    items = [
        ImageItem(
            id=hit.id,
            file=found[hit.shard, hit.row],
            class_index=class_index,
            class_name=class_name,
            component=component,
            alpha=hit.alpha,
            predictions={m: name(p) for m, p in hit.predictions.items()},
            reference=shown,
        )
        for hit in hits
    ]
    fingerprint: dict[str, Any] = {**model_record(pool, model)["head"], "name": model}
    task = ImageTask(
        title=f"{class_name}, component {component}: images of the pool", model=fingerprint, items=items
    )
    write_task(out, task)
    return task


def to_spurious_folder(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], labellers: list[str] | None = None
) -> dict[str, int]:
    """Copy the images that all labellers judged "out" into Spurious ImageNet's layout.

    Args:
        folder: a labelled task folder of images.
        out: gets one folder ``spurious_class_K_component_L`` per component.
        labellers: whose answers count; None takes everybody who answered.

    Returns:
        Number of images by folder.

    Raises:
        InputError: the task is about components.
        DataError: no image was accepted, or files cannot be written.
    """
    study = Study(folder, labellers)
    try:
        if study.task.kind != "images":
            raise InputError(f"{folder} is a task about components", "give a labelled task about images")
        verdicts = study.verdicts()
        counts: dict[str, int] = {}
        for item in study.task.items:
            if verdicts[item.id].final != "out":
                continue
            name = f"spurious_class_{item.class_index}_component_{item.component}"
            target = Path(out) / name / Path(item.file).name
            with whole(target) as part:
                shutil.copyfile(Path(folder) / item.file, part)
            counts[name] = counts.get(name, 0) + 1
    finally:
        study.close()
    if not counts:
        raise DataError(f"no image of {folder} was judged out by all labellers", "label and adjudicate first")
    return counts


def _copy(content: bytes, images: Path, stem: str, name: str) -> str:
    """Write an image under a name of ours; formats that browsers do not show become PNG."""
    suffix = next((s for start, s in _KNOWN.items() if content.startswith(start)), None)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        suffix = ".webp"
    if suffix is None:
        buffer = io.BytesIO()
        try:
            read_image(content).save(buffer, "PNG")
        except Undecodable as error:
            raise DataError(f"{name} cannot be read: {error}", "restore the pool's images") from None
        content, suffix = buffer.getvalue(), ".png"
    write(images / f"{stem}{suffix}", content)
    return f"images/{stem}{suffix}"
