"""Tables of images: CSV or Parquet with paths; Parquet and Hugging Face data sets with the bytes inside."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pfungst.errors import DataError, few, lines
from pfungst.files import content, reading

from .delimited import Rows, read_rows, require_distinct
from .folders import visible
from .item import Item
from .items import ImageSet
from .options import NAMES, Columns, Options, split_of
from .roles import SPLITS, canonical_split

PICTURES = ("image", "jpeg", "png", "img", "bytes", "image_bytes")
"""What the column with the images themselves is called."""

Found = tuple[str, Item]  # category and item


def listing(folder: Path) -> Path:
    """The one CSV of a folder.

    Raises:
        DataError: there are several.
    """
    found = _listings(folder)
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise DataError(f"{folder} holds {len(found)} CSV files: {names}", "give the path of one of them")
    return found[0]


def has_listing(folder: Path) -> bool:
    """Whether a folder holds a CSV."""
    return folder.is_dir() and bool(_listings(folder))


def _listings(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.csv") if visible(p, folder))


def open_csv(file: Path, options: Options, name: str | None = None) -> list[ImageSet]:
    """Open a CSV of image paths, one set per value of the column ``category`` if there is one.

    Raises:
        DataError: columns are missing, files do not exist or lie outside the folder, or test images lack a
            label.
    """
    return _open_paths(file, read_rows(file), options, name or file.stem)


def _open_paths(file: Path, table: Rows, options: Options, name: str) -> list[ImageSet]:
    base = (options.root or file.parent).resolve()
    columns = Columns.find(file, table.fields, options)
    folder_column = "folder" if "folder" in table.fields and columns.path != "folder" else None
    known: dict[Path, bool] = {}
    problems: list[str] = []

    def locate(value: str, folder: str, line: int) -> Path | None:
        values = [value, value.replace("\\", "/")] if "\\" in value else [value]
        values += [n for v in values for form in ("NFC", "NFD") if (n := normalize(form, v)) not in values]
        paths = [base / f / v for v in values for f in (["", folder] if folder else [""])]
        for candidate in paths:
            try:
                if not candidate.resolve().is_relative_to(base):
                    problems.append(f"line {line}: {value} lies outside {base}")
                    return None
                if known.setdefault(candidate, candidate.is_file()):
                    return candidate
            except OSError as error:
                problems.append(f"line {line}: {value[:40]!r}… is no path: {error.strerror}")
                return None
        problems.append(f"line {line}: {paths[0]} does not exist")
        return None

    items: list[Found] = []
    unlabelled: list[str] = []
    bare = 0
    for line, row in zip(table.lines, table.rows, strict=True):
        place = row[columns.path or ""]
        image = locate(place, row.get(folder_column or "", ""), line)
        mask_path = row.get(columns.mask or "")
        mask = locate(mask_path, "", line) if mask_path else None
        if image is None:
            continue
        label = options.labelled(row[columns.label] or None) if columns.label else None
        split = canonical_split(row.get(columns.split or ""))
        if columns.label and split == "test" and label is None:
            unlabelled.append(f"line {line}: {place}")
        bare += split != "train" and label not in (None, "good") and mask is None and columns.mask is not None
        groups = {g: row[g] for g in columns.groups}
        item = Item(image.relative_to(base).as_posix(), image, label, mask, split, groups)
        items.append((row.get(columns.category or "", ""), item))
    if problems:
        _complain(
            file,
            f"{len(problems)} paths cannot be used",
            problems,
            "paths are relative to the table; give another folder: --root FOLDER (root=)",
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
    return split_sets(name, items, [*columns.notes, *notes])


def split_sets(name: str, items: Sequence[Found], notes: Sequence[str]) -> list[ImageSet]:
    """One set for each category, or one of this name."""
    by_category: dict[str, list[Item]] = {}
    for category, item in items:
        by_category.setdefault(category, []).append(item)
    return [ImageSet(category or name, chosen, notes) for category, chosen in by_category.items()]


def _complain(file: Path, what: str, problems: list[str], remedy: str) -> None:
    raise DataError(f"{file}: {what}:{lines(problems)}", remedy)


class Shard:
    """A file of Parquet, or of an Arrow stream as Hugging Face writes it, read a row group at a time.

    Raises:
        DataError: it is neither.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._arrow = file, file.suffix == ".arrow"
        with reading(file, "repair or remove it"):
            stream = pa.ipc.open_stream(pa.memory_map(str(file))) if self._arrow else None
            self._source: Any = stream.read_all() if stream else pq.ParquetFile(file)
        self.schema: pa.Schema = self._source.schema if self._arrow else self._source.schema_arrow
        self.groups: int = 1 if self._arrow else self._source.num_row_groups

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """The columns of one row group."""
        with reading(self.file, "repair or remove it"):
            if self._arrow:
                return self._source.select([c.partition(".")[0] for c in columns])
            return self._source.read_row_group(group, columns=list(columns))

    def rows(self, group: int) -> int:
        """How many rows a group has."""
        return self._source.num_rows if self._arrow else self._source.metadata.row_group(group).num_rows

    def close(self) -> None:
        """Close the file."""
        if not self._arrow:
            self._source.close()


class RowGroups:
    """Image columns of shards, read a row group at a time; of all shards the last few groups stay in memory.

    Args:
        keep: how many groups to keep.
    """

    def __init__(self, keep: int = 4) -> None:
        self.columns: dict[Path, list[str]] = {}
        self.keep = keep
        self._groups: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"columns": self.columns, "keep": self.keep}  # other processes read for themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["keep"])  # type: ignore[misc]
        self.columns = state["columns"]

    def cell(self, file: Path, group: int, row: int, column: str) -> Any:
        """One value as a Python object."""
        with self._lock:
            key = (file, group)
            if key not in self._groups:
                shard = Shard(file)
                self._groups[key] = shard.read(group, self.columns[file])
                shard.close()
                while len(self._groups) > self.keep:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            table = self._groups[key]
        return table[column][row].as_py()


@dataclass(frozen=True, slots=True)
class Cell:
    """The bytes of an image in a shard, read when called."""

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
            beside = self.file.parent / path if path else None
            return content(beside) if beside and beside.is_file() else b""
        return value or b""


def shards(folder: Path) -> list[Path]:
    """The Parquet files in a folder and below."""
    return sorted(p for p in folder.rglob("*.parquet") if visible(p, folder))


def is_hugging_face(folder: Path) -> bool:
    """Whether ``datasets`` wrote a folder with ``save_to_disk``."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_hugging_face(folder: Path, options: Options) -> list[ImageSet]:
    """Open what ``datasets`` wrote with ``save_to_disk``, of one split or several.

    Raises:
        DataError: it holds no Arrow files; see :func:`open_shards`.
    """
    files = sorted(p for p in folder.rglob("*.arrow") if visible(p, folder))
    if not files:
        raise DataError(f"{folder} holds no Arrow files", "write it anew with save_to_disk")
    return open_shards(files, folder, folder.name, options)


def open_shards(files: Sequence[Path], root: Path, name: str, options: Options) -> list[ImageSet]:
    """Open Parquet or Arrow files with images inside, ``{bytes, path}`` or bytes in one of :data:`PICTURES`;
    or Parquet with paths, as a CSV has them.

    Integer labels become names where the schema (Hugging Face) or a ``labels.json`` beside the file knows
    them. Files or folders named train*, test* or val* give the split where there is no split column.

    Raises:
        DataError: a file is of another kind, or there is no image column or a named column is missing.
    """
    taken: set[str] = set()
    notes: dict[str, None] = {}
    items: list[Found] = []
    reader = RowGroups()
    for file in files:
        shard = Shard(file)
        picture = next(
            (c for c in PICTURES if c in shard.schema.names and _binary(shard.schema.field(c).type)), None
        )
        if picture is None:
            return _paths_of(files, root, name, options)
        items += _shard_items(shard, picture, root, options, taken, notes, reader)
        shard.close()
    if mask_items := [i for _, i in items if i.mask is not None]:
        empty = {i.id for i in mask_items if not i.mask()}  # type: ignore[operator,misc]
        items = [(c, replace(i, mask=None) if i.id in empty else i) for c, i in items]
    if not items:
        raise DataError(f"{root / name}: the files hold no rows", "it needs a row per image")
    return split_sets(name, items, list(notes))


def _binary(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _paths_of(files: Sequence[Path], root: Path, name: str, options: Options) -> list[ImageSet]:
    """Parquet whose rows name the files of the images."""
    sets = []
    for file in files:
        rows = parquet_rows(file)
        fields = rows.fields
        if options.path not in fields and not {f.lower() for f in fields} & set(NAMES["path"]):
            raise DataError(
                f"{file} has no column of images ({', '.join(PICTURES)}) and none of paths: {few(fields)}",
                "give it a column image with the bytes of the files, or say which holds paths: --path-column",
            )
        sets += _open_paths(file, rows, options, file.stem)
    if len(sets) == 1:
        return sets
    merged: list[Found] = [(s.name, i) for s in sets for i in s.items]
    return split_sets(name, [("", i) for _, i in merged], [n for s in sets for n in s.notes])


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def parquet_rows(file: Path) -> Rows:
    """A Parquet as a table of texts, "" where there is nothing.

    Raises:
        DataError: it cannot be read, or two columns have one name.
    """
    with reading(file, "repair or remove it"):
        table = pq.read_table(file)
    require_distinct(file, table.schema.names)
    rows = [{k: _text(v) for k, v in row.items()} for row in table.to_pylist()]
    return Rows([str(n) for n in table.schema.names], rows, list(range(1, len(rows) + 1)))


def _shard_items(
    shard: Shard,
    picture: str,
    root: Path,
    options: Options,
    taken: set[str],
    notes: dict[str, None],
    reader: RowGroups,
) -> Iterator[Found]:
    """Category and item of each row of a file; ids are added to those `taken`."""
    file, fields = shard.file, shard.schema.names
    require_distinct(file, fields)
    columns = Columns.find(file, fields, options, picture)
    notes |= dict.fromkeys(columns.notes)
    mask, known_as = columns.mask, columns.path
    names = label_names(file, shard.schema.metadata, columns.label)
    reader.columns[file] = [picture, mask] if mask else [picture]
    plain = [c for c in fields if c not in (picture, mask)]
    has_path = pa.types.is_struct(shard.schema.field(picture).type)
    has_path = has_path and shard.schema.field(picture).type.get_field_index("path") >= 0
    inside = None if file.parent == root else SPLITS.get(file.parent.name.lower())
    start = 0
    for group in range(shard.groups):
        count = shard.rows(group)
        rows = shard.read(group, plain).to_pylist() if plain else [{}] * count
        paths = _paths(shard.read(group, [f"{picture}.path"]), picture) if has_path else [None] * count
        for r, row in enumerate(rows):
            number = start + r
            known = row.get(known_as) or paths[r]
            unique = str(known) if known else f"{file.relative_to(root).as_posix()}#{number}"
            unique = f"{unique}#{file.stem}-{number}" if unique in taken else unique
            taken.add(unique)
            label = row.get(columns.label) if columns.label else None
            if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
                label = names[label]
            item = Item(
                unique,
                Cell(reader, file, group, r, picture),
                None if label is None else options.labelled(str(label)),
                Cell(reader, file, group, r, mask) if mask else None,
                _text(row.get(columns.split)) or split_of(file.stem) or inside,
                {g: _text(row.get(g)) for g in columns.groups if g in row},
            )
            yield _text(row.get(columns.category)), item
        start += count


def _paths(table: pa.Table, picture: str) -> list[str | None]:
    column = table[picture].combine_chunks()
    return pc.struct_field(column, "path").to_pylist()


def label_names(file: Path, metadata: Mapping[bytes, bytes] | None, label: str | None) -> list[str]:
    """What the numbers of a label mean, as ``labels.json`` beside a file, or Hugging Face, says.

    Raises:
        DataError: it cannot be read.
    """
    beside = file.parent / "labels.json"
    described = file.parent / "dataset_info.json"
    try:
        if beside.is_file():
            names = json.loads(content(beside))
            return [str(n) for n in names] if isinstance(names, list) else []
        info = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        if not info and described.is_file():
            info = json.loads(described.read_text(encoding="utf-8"))
        return [str(n) for n in (info.get("features") or {}).get(label, {}).get("names", [])]
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        raise DataError(
            f"the names of the labels of {file} cannot be read from {beside.name}",
            "it is a JSON list of names",
        ) from None
