"""The task folder: what people are asked to judge, written by the classifier audit, discovery and the pool.

``DIR/label-task.json`` names every image by a path relative to ``DIR``; nothing else in the folder is ever
served.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pfungst.errors import DataError, few
from pfungst.files import digest, read, write_json

FORMAT: Literal["pfungst.label-task/1"] = "pfungst.label-task/1"
FILE_NAME = "label-task.json"
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}

Text = Annotated[str, Field(min_length=1, max_length=500)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Confidence = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShownImage(_Strict):
    """One of the images that illustrate a component, and where in it α comes from.

    Args:
        file: the image, relative to the task folder.
        id: name of the image in its data set.
        gradcam: picture of where in this image α comes from (a heatmap, or the region outlined), or None.
    """

    file: Text
    id: Text
    gradcam: Text | None = None


class _Item(_Strict):
    """What people judge.

    Args:
        id: unique within the task.
        class_index, class_name: the class k, or the topic of a finding.
        component: index l by falling eigenvalue, from 0; of a finding its number in the topic.
    """

    id: Text
    class_index: Annotated[int, Field(ge=0)]
    class_name: Text
    component: Annotated[int, Field(ge=0)]


class ComponentItem(_Item):
    """One neural PCA component of a class, as in Fig. 9 of "Spurious Features Everywhere".

    Args:
        images: training images of highest α_l; alpha: their α_l; confidence: their softmax probability of k.
        npfv: the neural PCA feature visualisation, or None; npfv_confidence, npfv_gradcam: of that image.
    """

    alpha: list[Number]
    confidence: list[Confidence]
    images: Annotated[list[ShownImage], Field(min_length=1, max_length=24)]
    npfv: Text | None = None
    npfv_confidence: Confidence | None = None
    npfv_gradcam: Text | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        images, alpha, sure = len(self.images), len(self.alpha), len(self.confidence)
        if not images == alpha == sure:
            raise ValueError(f"{images} images but {alpha} alpha and {sure} confidence values")
        return self

    def files(self) -> Iterator[str]:
        """All images that it names, relative to the task folder."""
        return _files(self.images, self.npfv, self.npfv_gradcam)


class ImageItem(_Item):
    """One image of a pool that may show only the spurious feature of a class.

    Args:
        file: the image, relative to the task folder; alpha: its α_l.
        predictions: class that each model predicts, by the model's name.
        reference: images that show the component, to compare with.
    """

    file: Text
    alpha: Number
    predictions: dict[str, int | str] = {}
    reference: Annotated[list[Text], Field(max_length=12)] = []

    def files(self) -> Iterator[str]:
        """All images that it names, relative to the task folder."""
        return iter([self.file, *self.reference])


class ClusterItem(_Item):
    """What discovery found that a cluster of explanations shares, with its proof.

    Args:
        what: was clustered and what was changed, in words.
        share: of the topic's images; n: how many these are.
        outcomes: what putting it elsewhere and taking it out did, a sentence each.
        images: typical ones, each with the region that was changed outlined.
        map: picture of the mean heatmap, or None.
    """

    what: Text
    share: Confidence
    n: Annotated[int, Field(ge=1)]
    outcomes: Annotated[list[Text], Field(max_length=6)]
    images: Annotated[list[ShownImage], Field(min_length=1, max_length=24)]
    map: Text | None = None

    def files(self) -> Iterator[str]:
        """All images that it names, relative to the task folder."""
        return _files(self.images, self.map)


def _files(images: Sequence[ShownImage], *others: str | None) -> Iterator[str]:
    named = [*others, *(file for image in images for file in (image.file, image.gradcam))]
    return (file for file in named if file is not None)


Item = ComponentItem | ClusterItem | ImageItem
Judged = TypeVar("Judged", ComponentItem, ClusterItem, ImageItem)


class _Task(_Strict, Generic[Judged]):
    format: Literal["pfungst.label-task/1"] = FORMAT
    kind: str
    title: Text
    model: dict[str, Any] = {}
    items: Annotated[list[Judged], Field(min_length=1)]

    @property
    def digest(self) -> str:
        """What the answers belong to: the kind of question and the model, not the items, which may grow."""
        return digest(json.dumps([self.kind, self.model], sort_keys=True, ensure_ascii=False))

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"two items have the id {item.id!r}")
            seen.add(item.id)
        return self


class ComponentTask(_Task[ComponentItem]):
    """Components to be judged spurious, not spurious or unsure."""

    kind: Literal["components"] = "components"

    @model_validator(mode="after")
    def _once(self) -> Self:
        seen: set[tuple[int, int]] = set()
        for item in self.items:
            key = item.class_index, item.component
            if key in seen:
                raise ValueError(f"component {item.component} of class {item.class_index} appears twice")
            seen.add(key)
        return self


class ImageTask(_Task[ImageItem]):
    """Images to be judged in, out or trash."""

    kind: Literal["images"] = "images"


class ClusterTask(_Task[ClusterItem]):
    """Findings to be judged artefact, the object or unsure, and named."""

    kind: Literal["clusters"] = "clusters"


Task = ComponentTask | ClusterTask | ImageTask
_KINDS: dict[Any, type[Task]] = {"components": ComponentTask, "clusters": ClusterTask, "images": ImageTask}


def read_task(folder: str | os.PathLike[str]) -> Task:
    """The task of a folder, checked strictly.

    Args:
        folder: holds ``label-task.json`` and the images that it names.

    Returns:
        The task; every image it names is a regular file inside the folder, of a type that browsers show.

    Raises:
        DataError: the file is missing, is not a task, or names an image that is absent or outside the folder.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    remedy = "give the folder that `pfungst audit classifier`, `discover` or `pool search` wrote"
    if not path.exists():
        raise DataError(f"no {FILE_NAME} in {folder}", remedy)
    content = read(path, remedy)
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise DataError(f"{path}: kind is {kind!r}", "kind must be 'components', 'clusters' or 'images'")
    try:
        task: Task = _KINDS[kind].model_validate(content)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc'])) or 'task'}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path} is not a task: {few(wrong, 3, '; ')}", remedy) from None
    _locate_all(folder, task)
    return task


def write_task(folder: str | os.PathLike[str], task: Task) -> Path:
    """Write a task beside its images, which must be there already.

    Args:
        folder: where the images lie.
        task: what to ask.

    Returns:
        The path of ``label-task.json``.

    Raises:
        DataError: an image that the task names is absent or outside the folder.
    """
    path = Path(folder) / FILE_NAME
    _locate_all(path.parent, task)
    write_json(path, task.model_dump())
    return path


def _locate_all(folder: Path, task: Task) -> None:
    for item in task.items:
        for file in item.files():
            locate(folder, file)


def locate(folder: Path, file: str) -> Path:
    """The image that a task names, after checking that it is a file inside the folder.

    Raises:
        DataError: absolute or climbing path, link out of the folder, no such file, or no image type.
    """
    pure = PurePosixPath(file)
    remedy = f"name images by their path relative to {folder}, as png, jpg, webp or gif"
    if pure.is_absolute() or ".." in pure.parts or "\\" in file or "\0" in file or pure.drive:
        raise DataError(f"{FILE_NAME} names {file!r}, which is not a path inside its folder", remedy)
    if pure.suffix.lower() not in MEDIA_TYPES:
        raise DataError(f"{FILE_NAME} names {file!r}, which is not an image that browsers show", remedy)
    try:
        path = (folder / pure).resolve(strict=True)
    except OSError:
        told = f"{FILE_NAME} names {file!r}, but there is no such file in {folder}"
        raise DataError(told, remedy) from None
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise DataError(f"{FILE_NAME} names {file!r}, which is not a file inside {folder}", remedy)
    return path
