"""From hits to people, and from people to a data set."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfungst import files
from pfungst.data.decode import Undecodable, read_image
from pfungst.errors import DataError, InputError, lines
from pfungst.files import Lock, digest, whole, write, write_json
from pfungst.label import ImageItem, ImageTask, Study, write_task
from pfungst.pool.index import Place, open_pool
from pfungst.pool.parts import model_record
from pfungst.pool.read import read
from pfungst.pool.search import Hit

EXPORTED = "export.json"
"""What an export wrote, with digests, beside its folders."""

_EXPORT = "pfungst.export/1"

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
        Number of images by folder. Images of an earlier export that are no longer accepted are removed;
        nothing that no export wrote is touched.

    Raises:
        InputError: the task is about components.
        DataError: no image was accepted, files cannot be written, or other files stand in their way.
    """
    out = Path(out)
    study = Study(folder, labellers)
    try:
        if study.task.kind != "images":
            raise InputError(f"{folder} is a task about components", "give a labelled task about images")
        verdicts = study.verdicts()
        accepted: dict[str, Path] = {}
        for item in study.task.items:
            if verdicts[item.id].final == "out":
                name = f"spurious_class_{item.class_index}_component_{item.component}"
                accepted[f"{name}/{Path(item.file).name}"] = Path(folder) / item.file
    finally:
        study.close()
    if not accepted:
        raise DataError(f"no image of {folder} was judged out by all labellers", "label and adjudicate first")
    with Lock(out / ".lock", str(out)):
        _replace(out, accepted)
    return dict(Counter(name.partition("/")[0] for name in accepted))


def _replace(out: Path, accepted: Mapping[str, Path]) -> None:
    """Make a folder hold copies of these files, besides what was there and no export wrote."""
    listing = out / EXPORTED
    ours: dict[str, str] = (
        files.read(listing, "delete it", format=_EXPORT)["files"] if listing.exists() else {}
    )
    now = {name: _digest(file) for name, file in accepted.items()}
    there = {name: _digest(out / name) for name in {**ours, **now} if (out / name).exists()}
    foreign = [name for name, found in there.items() if found not in (ours.get(name), now.get(name))]
    if foreign:
        raise DataError(
            f"{len(foreign)} files in {out} are not those that an export wrote:{lines(sorted(foreign))}",
            "move them away, or export into another folder",
        )
    write_json(listing, {"format": _EXPORT, "files": now | ours})  # first, so that nothing is left unknown
    for name in ours.keys() - accepted.keys():
        (out / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            (out / name).parent.rmdir()
    for name, file in accepted.items():
        if there.get(name) != now[name]:
            with whole(out / name) as part:
                shutil.copyfile(file, part)
    write_json(listing, {"format": _EXPORT, "files": now})


def _digest(file: Path) -> str:
    return digest(file.read_bytes())


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
