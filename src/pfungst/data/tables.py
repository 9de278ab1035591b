"""Tables of images: CSV with paths, Parquet with the bytes inside."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pfungst.errors import DataError, lines
from pfungst.files import content, reading

from .delimited import read_rows, require, require_distinct
from .item import Item
from .items import ImageSet

_WHICH = "say which one to use, or that there are no labels (label_column=None)"


@dataclass(frozen=True)
class Columns:
    """Which column means what; see ``open_images``."""

    path: str = "path"
    label: str | None = "label"
    mask: str = "mask"
    split: str = "split"
    groups: tuple[str, ...] | None = None
    normal: str = "good"
    category: str = "category"

    def labelled(self, label: str | None) -> str | None:
        """The label as items have it: "good" for normal images."""
        return "good" if label == self.normal else label

    def grouping(self, available: Iterable[str], taken: Iterable[str], file: Path) -> list[str]:
        """The group columns; all that are not taken unless named."""
        names = list(available)
        if self.groups is None:
            used = {self.label, self.mask, self.split, self.category, *taken}
            return [c for c in names if c not in used]
        require(file, names, self.groups, _WHICH)
        return list(self.groups)


def _split_sets(name: str, items: Sequence[tuple[str, Item]], notes: list[str]) -> list[ImageSet]:
    by_category: dict[str, list[Item]] = {}
    for category, item in items:
        by_category.setdefault(category, []).append(item)
    return [ImageSet(category or name, chosen, notes) for category, chosen in by_category.items()]


def open_csv(
    file: Path, columns: Columns, root: Path | None = None, name: str | None = None
) -> list[ImageSet]:
    """Open a CSV of image paths, one set per value of the column ``category`` if there is one.

    Raises:
        DataError: columns are missing, files do not exist or lie outside the folder, or test images lack a
            label.
    """
    base = (root or file.parent).resolve()
    table = read_rows(file)
    fields = table.fields
    require(file, fields, [columns.path, columns.label], _WHICH)
    groups = columns.grouping(fields, [columns.path], file)
    folder_column = "folder" if "folder" in fields and columns.path != "folder" else None
    known: dict[Path, bool] = {}
    problems: list[str] = []

    def locate(value: str, folder: str, line: int) -> Path | None:
        path = base / value
        for candidate in [path, base / folder / value] if folder else [path]:
            try:
                if not candidate.resolve().is_relative_to(base):
                    problems.append(f"line {line}: {value} lies outside {base}")
                    return None
                if known.setdefault(candidate, candidate.is_file()):
                    return candidate
            except OSError as error:
                problems.append(f"line {line}: {value[:40]!r}… is no path: {error.strerror}")
                return None
        problems.append(f"line {line}: {path} does not exist")
        return None

    items: list[tuple[str, Item]] = []
    unlabelled: list[str] = []
    bare = 0
    for line, row in zip(table.lines, table.rows, strict=True):
        image = locate(row[columns.path], row.get(folder_column or "", ""), line)
        mask_path = row.get(columns.mask) or None
        mask = locate(mask_path, "", line) if mask_path else None
        if image is None:
            continue
        label = columns.labelled(row[columns.label] or None) if columns.label else None
        split = row.get(columns.split) or None
        if columns.label and split == "test" and label is None:
            unlabelled.append(f"line {line}: {row[columns.path]}")
        bare += split != "train" and label not in (None, "good") and mask is None and columns.mask in fields
        item = Item(
            image.relative_to(base).as_posix(), image, label, mask, split, {g: row[g] for g in groups}
        )
        items.append((row.get(columns.category, ""), item))
    if problems:
        _complain(
            file,
            f"{len(problems)} paths cannot be used",
            problems,
            "paths are relative to the CSV; pass root=… for another folder",
        )
    if unlabelled:
        _complain(
            file,
            f"{len(unlabelled)} test images have no label",
            unlabelled,
            f"fill the column {columns.label!r}",
        )
    if not items:
        raise DataError(f"{file} lists no images", "it needs a line per image below the header")
    notes = [f"{bare} defective images have no mask; measures that need masks leave them out"] if bare else []
    return _split_sets(name or file.stem, items, notes)


def _complain(file: Path, what: str, problems: list[str], remedy: str) -> None:
    raise DataError(f"{file}: {what}:{lines(problems)}", remedy)


class RowGroups:
    """Image columns of Parquet files, read a row group at a time; the last few groups stay in memory.

    Args:
        columns: the columns to read.
        keep: how many groups to keep.
    """

    def __init__(self, columns: Sequence[str], keep: int = 4) -> None:
        self.columns = list(columns)
        self.keep = keep
        self._groups: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def cell(self, file: Path, group: int, row: int, column: str) -> Any:
        """One value as a Python object."""
        with self._lock:
            key = (file, group)
            if key not in self._groups:
                with reading(file, "repair or remove it"), pq.ParquetFile(file) as handle:
                    self._groups[key] = handle.read_row_group(group, columns=self.columns)
                while len(self._groups) > self.keep:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            table = self._groups[key]
        return table[column][row].as_py()


@dataclass(frozen=True)
class Cell:
    """The bytes of an image in a Parquet file, read when called."""

    groups: RowGroups
    file: Path
    group: int
    row: int
    column: str

    def __call__(self) -> bytes:
        value = self.groups.cell(self.file, self.group, self.row, self.column)
        if isinstance(value, Mapping):
            if value.get("bytes"):
                return value["bytes"]
            path = value.get("path")
            return content(self.file.parent / path) if path and (self.file.parent / path).is_file() else b""
        return value or b""


def open_parquet(files: Sequence[Path], root: Path, name: str, columns: Columns) -> list[ImageSet]:
    """Open Parquet files with images inside: ``image: {bytes, path}``, or bytes in ``image``, ``jpeg`` or
    ``bytes``.

    Integer labels become names where the schema (Hugging Face) or a ``labels.json`` beside the file knows
    them. Files named train*, test* or validation* give the split where there is no split column.

    Raises:
        DataError: a file is no Parquet, or there is no image column or a named column is missing.
    """
    taken: set[str] = set()
    items = [found for file in files for found in _parquet_items(file, root, columns, taken)]
    if mask_items := [i for _, i in items if i.mask is not None]:
        empty = {i.id for i in mask_items if not i.mask()}  # type: ignore[operator,misc]
        items = [(c, replace(i, mask=None) if i.id in empty else i) for c, i in items]
    if not items:
        raise DataError(f"{root / name}: the Parquet files hold no rows", "it needs a row per image")
    return _split_sets(name, items, [])


def _parquet_items(file: Path, root: Path, columns: Columns, taken: set[str]) -> Iterator[tuple[str, Item]]:
    """Category and item of each row of a file; ids are added to those `taken`."""
    with reading(file, "repair or remove it"):
        handle = pq.ParquetFile(file)
    with handle:
        schema = handle.schema_arrow
        fields = schema.names
        require_distinct(file, fields)
        image = next((c for c in ("image", "jpeg", "bytes") if c in fields), "image")
        require(file, fields, [image, columns.label], _WHICH)
        mask = columns.mask if columns.mask in fields else None
        groups = columns.grouping(fields, [image, columns.path], file)
        names = _label_names(file, schema, columns.label)
        reader = RowGroups([image] + ([mask] if mask else []))
        plain = [c for c in fields if c not in (image, mask)]
        paths = _image_paths(file, handle, image)
        start = 0
        for group in range(handle.num_row_groups):
            count = handle.metadata.row_group(group).num_rows
            with reading(file, "repair or remove it"):
                rows = handle.read_row_group(group, columns=plain).to_pylist() if plain else [{}] * count
            for r, row in enumerate(rows):
                number = start + r
                known = row.get(columns.path) or (paths[number] if paths else None)
                unique = str(known) if known else f"{file.relative_to(root).as_posix()}#{number}"
                unique = f"{unique}#{file.stem}-{number}" if unique in taken else unique
                taken.add(unique)
                label = row.get(columns.label) if columns.label else None
                if isinstance(label, int) and 0 <= label < len(names):
                    label = names[label]
                item = Item(
                    unique,
                    Cell(reader, file, group, r, image),
                    None if label is None else columns.labelled(str(label)),
                    Cell(reader, file, group, r, mask) if mask else None,
                    row.get(columns.split) or _split_of(file),
                    {g: "" if row.get(g) is None else str(row[g]) for g in groups},
                )
                yield str(row.get(columns.category, "") or ""), item
            start += count


def _image_paths(file: Path, handle: pq.ParquetFile, image: str) -> list[str | None]:
    kind = handle.schema_arrow.field(image).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0):
        return []
    with reading(file, "repair or remove it"):
        column = handle.read(columns=[f"{image}.path"])[image]
    return [None if v is None else v["path"] for v in column.to_pylist()]


def _label_names(file: Path, schema: pa.Schema, label: str | None) -> list[str]:
    beside = file.parent / "labels.json"
    try:
        if beside.is_file():
            names = json.loads(content(beside))
            return [str(n) for n in names] if isinstance(names, list) else []
        features = (
            json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        )
        return [str(n) for n in features.get(label, {}).get("names", [])]
    except (OSError, ValueError, AttributeError, RecursionError):
        raise DataError(
            f"the names of the labels of {file} cannot be read from {beside.name}",
            "it is a JSON list of names",
        ) from None


def _split_of(file: Path) -> str | None:
    stem = file.stem.lower()
    for start, split in (("train", "train"), ("test", "test"), ("val", "validation")):
        if stem.startswith(start):
            return split
    return None
