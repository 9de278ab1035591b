"""Tar archives of samples, as WebDataset has them: files NAME.ENDING of one NAME are one sample.

Archives are not unpacked: each image is read where it lies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfungst.errors import DataError, few, lines
from pfungst.files import PICTURES, tar_members

from .decode import Undecodable
from .folders import images_in
from .item import Item
from .items import ImageSet
from .options import NAMES, Columns, Options, split_of
from .roles import SPLITS
from .tables import Found, label_names, split_sets

_TEXTS = ("cls", "txt", "json")
_ENDINGS = f"an image ({', '.join(sorted(PICTURES))}), .mask.png, {', '.join(f'.{text}' for text in _TEXTS)}"
_PACKED = re.compile(r".*\.(tgz|tar\.\w+)", re.IGNORECASE)
_RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of one member of an archive, read when called."""

    archive: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        try:
            with open(self.archive, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as error:
            raise Undecodable(f"{self.archive}: {error.strerror}") from None
        if len(found) < self.size:
            raise Undecodable(f"{self.archive} is shorter than when it was opened")
        return found


@dataclass(slots=True)
class _Sample:
    """What belongs to one name: its parts by ending (of the image "image", of its mask "mask")."""

    image: str = ""
    parts: dict[str, Member] = field(default_factory=dict)


def is_tar(path: Path) -> bool:
    """Whether a path names an archive, compressed or not, or a range of them, NAME-{0000..0009}.tar."""
    named = path.suffix.lower() == ".tar" or _PACKED.fullmatch(path.name) is not None
    return named and (path.is_file() or _RANGE.fullmatch(path.name) is not None)


def is_folder(path: Path) -> bool:
    """Whether a folder holds archives and, as they may be what was unpacked here, no images."""
    return path.is_dir() and bool(archives(path)) and not images_in(path, recursive=True)


def archives(path: Path) -> list[Path]:
    """The archives of a folder and below, of a range, or the one of a path.

    Raises:
        DataError: some of a range do not exist.
    """
    if path.is_dir():
        return sorted(p for p in path.rglob("*.tar") if not _hidden(p.relative_to(path).as_posix()))
    if path.is_file() or (found := _RANGE.fullmatch(path.name)) is None:
        return [path]
    before, first, last, after = found.groups()
    numbers = range(int(first), int(last) + 1)
    files = [path.with_name(f"{before}{number:0{len(first)}d}{after}") for number in numbers]
    if missing := [file for file in files if not file.is_file()] or ([path] if not files else []):
        raise DataError(
            f"{len(missing)} of {len(files)} archives of {path} do not exist: {few(missing)}",
            "give the range that there is, NAME-{0000..0009}.tar",
        )
    return files


def open_tars(path: Path, options: Options) -> list[ImageSet]:
    """Open archives of samples, or of class folders.

    ``.cls`` is the label (a name or a number, that ``labels.json`` beside the archive names), ``.txt`` the
    label where there is no other, else the column ``text``; ``.json`` an object of columns. Without them the
    folder of an image in the archive is its label. Archives or folders named train*, test* or val* give the
    split where no column does.

    Raises:
        DataError: an archive is compressed, damaged or cut off; a member occurs twice, has another ending,
            or lacks its partners; a text cannot be read. File, member and remedy are named.
    """
    files = archives(path)
    root = path if path.is_dir() else path.parent
    name = path.name if path.is_dir() else re.sub(r"[-_.]*(\{.*\})?\.tar$", "", path.name)
    notes: dict[str, None] = {}
    items = [found for file in files for found in _items(file, root, options, notes)]
    if not items:
        raise DataError(f"{path}: the archives hold no images", f"each sample needs {_ENDINGS}")
    return split_sets(name, items, list(notes))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _samples(file: Path) -> dict[str, _Sample]:
    """The samples of an archive by their names, in its order."""
    found: dict[str, _Sample] = {}
    seen: set[str] = set()
    for whole, offset, size in tar_members(file):
        name = whole.removeprefix("./")
        if _hidden(name):
            continue
        folder, slash, last = name.rpartition("/")
        stem, _, ending = last.partition(".")
        sample = found.setdefault(folder + slash + stem, _Sample())
        pictured = f".{ending.rpartition('.')[2].lower()}" in PICTURES
        kind = ending.lower()
        if pictured:
            kind = "mask" if kind.startswith("mask.") else "image"
        if kind not in ("image", "mask", *_TEXTS) or (kind == "image" and "." in ending):
            raise DataError(
                f"{file}: the ending of {name} is not known",
                f"a sample is {_ENDINGS}; write the archive without other members",
            )
        if name in seen or kind in sample.parts:
            raise DataError(
                f"{file}: " + (f"{name} occurs twice" if name in seen else f"{name} is a second {kind}"),
                "write each member once, and one image for each name",
            )
        seen.add(name)
        sample.parts[kind] = Member(file, offset, size)
        if kind == "image":
            sample.image = name
    _refuse_lonely(file, found)
    return found


def _refuse_lonely(file: Path, samples: Mapping[str, _Sample]) -> None:
    """Raise DataError where a sample lacks its image, or a text that others have."""
    kinds = {kind for sample in samples.values() for kind in sample.parts} & {"image", *_TEXTS}
    for kind in ("image", *sorted(kinds)):
        if lonely := [name for name, sample in samples.items() if kind not in sample.parts]:
            missing = "image" if kind == "image" else f".{kind}"
            raise DataError(
                f"{file}: {len(lonely)} of {len(samples)} samples have no {missing}:{lines(lonely)}",
                "add what is missing, or leave these samples out",
            )


def _items(file: Path, root: Path, options: Options, notes: dict[str, None]) -> Iterator[Found]:
    """Category and item of each sample of an archive."""
    place = file.relative_to(root).as_posix()
    samples = _samples(file)
    rows = [_row(file, sample) for sample in samples.values()]
    fields = list(dict.fromkeys(name for row in rows for name in row))
    columns = Columns.find(file, fields, options, "image")
    notes |= dict.fromkeys(columns.notes)
    names = label_names(file, None, columns.label)
    inside = None if file.parent == root else SPLITS.get(file.parent.name.lower())
    for sample, row in zip(samples.values(), rows, strict=True):
        label = row.get(columns.label) if columns.label else None
        if label is not None and label.isdecimal() and int(label) < len(names):
            label = names[int(label)]
        item = Item(
            f"{place}/{sample.image}",
            sample.parts["image"],
            options.labelled(label),
            sample.parts.get("mask"),
            row.get(columns.split or "") or split_of(file.stem) or inside,
            {g: row[g] for g in columns.groups if g in row},
        )
        yield row.get(columns.category or "", ""), item


def _row(file: Path, sample: _Sample) -> dict[str, str]:
    """The columns of a sample."""

    def unreadable(kind: str, why: object) -> DataError:
        return DataError(f"{file}: the .{kind} of {sample.image} cannot be read: {why}", "write it as UTF-8")

    def text(kind: str) -> str:
        try:
            return sample.parts[kind]().decode().strip()
        except (UnicodeDecodeError, Undecodable) as error:
            raise unreadable(kind, error) from None

    row: dict[str, str] = {}
    if "json" in sample.parts:
        try:
            told: Any = json.loads(text("json"))
        except ValueError as error:
            raise unreadable("json", error) from None
        if not isinstance(told, dict):
            raise unreadable("json", f"no object of columns but {type(told).__name__}")
        row = {str(k): _said(v) for k, v in told.items()}
    if "cls" in sample.parts:
        row["label"] = text("cls")
    if "txt" in sample.parts:
        row["text" if {n.lower() for n in row} & set(NAMES["label"]) else "label"] = text("txt")
    if not sample.parts.keys() & set(_TEXTS) and "/" in sample.image:
        row["label"] = sample.image.split("/")[-2]
    return row


def _said(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
