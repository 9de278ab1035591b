"""The index of a pool: where each image lies, under a unique id, in Parquet shards. Images are not copied."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pfungst.errors import DataError, InputError, lines
from pfungst.files import (
    DICOM,
    HEIF,
    PICTURES,
    Lock,
    read,
    reading,
    remove_leftovers,
    stamp,
    tar_members,
    whole,
    write_json,
)

FORMAT = "pfungst.pool/2"
_CONVERT = "a pool does not read it: convert it to PNG"
_UNREAD = {
    **dict.fromkeys(DICOM, f"DICOM, whose window a data set names; {_CONVERT}"),
    **dict.fromkeys(HEIF, f"HEIF or AVIF; {_CONVERT}"),
}


@dataclass(frozen=True)
class Place:
    """Where one image lies.

    Args:
        id: unique in the pool.
        file: relative to the pool's source.
        offset: first byte in a tar file, row in a Parquet file, 0 for a file of its own.
        size: bytes, -1 for a row of a Parquet file.
        stamp: size and times of the file when it was indexed.
    """

    id: str
    file: str
    offset: int
    size: int
    stamp: str = ""


@dataclass(frozen=True)
class Pool:
    """An indexed pool.

    Args:
        folder: holds ``index.json``, ``index/`` and, later, ``scores/``.
        source: folder or file with the images.
        kind: "folder", "tar" or "parquet".
        rows, shards: how many images and index shards.
        column: image column of Parquet files.
        unreadable: source files left out, with the reason.
    """

    folder: Path
    source: Path
    kind: str
    rows: int
    shards: int
    column: str
    unreadable: dict[str, str]

    def shard(self, number: int) -> list[Place]:
        """The places of one index shard, in order."""
        table = read(self.shard_path(number), "run `pfungst pool index` again")
        return [Place(**row) for row in table.to_pylist()]

    def shard_path(self, number: int) -> Path:
        """The file of one index shard."""
        return self.folder / "index" / f"part-{number:06d}.parquet"

    def refuse_changed(self, places: Iterable[Place] | None = None) -> None:
        """Raise DataError if source files of these places, or of all, are not those that were indexed.

        Missing ones are no matter here: their images have an error each.
        """
        if places is not None:
            files = {(p.file, p.stamp) for p in places}
        else:
            files = set()
            for number in range(self.shards):
                table = read(self.shard_path(number), "run `pfungst pool index` again")
                files |= {
                    (r["file"], r["stamp"])
                    for r in table.group_by(["file", "stamp"]).aggregate([]).to_pylist()
                }
        changed = []
        for file, before in sorted(files):
            with contextlib.suppress(OSError):
                if stamp(self.source / file) != before:
                    changed.append(file)
        if changed:
            raise DataError(
                f"{len(changed)} source files in {self.source} changed since they were "
                f"indexed:{lines(changed)}",
                "restore them, or index and score into another folder: scores belong to the images they "
                "were made of",
            )


def open_pool(folder: str | os.PathLike[str]) -> Pool:
    """The pool that :func:`index` made.

    Raises:
        DataError: there is none, or its index is incomplete.
    """
    folder = Path(folder)
    meta = read(folder / "index.json", "run `pfungst pool index` first", format=FORMAT)
    with reading(folder / "index.json", "run `pfungst pool index` again"):
        del meta["format"]
        pool = Pool(folder, Path(meta.pop("source")), **meta)
    for number in range(pool.shards):
        if not pool.shard_path(number).is_file():
            raise DataError(
                f"index shard {pool.shard_path(number)} is missing", "run `pfungst pool index` again"
            )
    return pool


def index(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    shard_rows: int = 1000,
    column: str = "image",
    id_column: str | None = None,
    skip_bad: bool = False,
) -> Pool:
    """List the images of a folder tree, of tar shards or of Parquet files.

    Args:
        source: a folder, or one ``.tar`` or ``.parquet`` file. A folder with Parquet files is read as
            Parquet, one with tar files as tar, any other as a tree of image files.
        folder: where the pool's files go.
        shard_rows: images per index shard, the unit of work of scoring.
        column: image column of Parquet files: bytes, or a struct with ``bytes``.
        id_column: column with unique ids; by default the id is the file and the row.
        skip_bad: leave out source files that cannot be read, and name them in the index.

    Returns:
        The pool; indexing again replaces an index, but not one whose scores exist.

    Raises:
        DataError: no images, unreadable source files, or ids that occur twice.
        InputError: ``shard_rows`` below 1.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, folder = Path(source).resolve(), Path(folder)
    if shard_rows < 1:
        raise InputError(f"shard_rows is {shard_rows}", "use at least 1")
    if any((folder / "scores").glob("*/part-*.parquet")):
        raise DataError(
            f"{folder} has scores already, which belong to its index", "index into another folder"
        )
    files, kind = _files(source)
    root = source if source.is_dir() else source.parent
    unreadable: dict[str, str] = {}

    def places() -> Iterator[Place]:
        for file in files:
            name, now = file.relative_to(root).as_posix(), stamp(file)
            if kind == "folder":
                if (suffix := file.suffix.lower()) in _UNREAD:
                    unreadable[name] = _UNREAD[suffix]
                    continue
                yield Place(name, name, 0, int(now.partition(":")[0]), now)
                continue
            try:
                packed = kind == "tar"
                found = _tar(file, name, unreadable) if packed else _parquet(file, name, column, id_column)
                yield from (replace(place, stamp=now) for place in found)
            except (OSError, ValueError, DataError, pa.ArrowException, _Unusable) as error:
                unreadable[name] = str(error).splitlines()[0]

    kinds = {"id": pa.string(), "file": pa.string(), "offset": pa.int64(), "size": pa.int64()}
    schema = pa.schema(kinds | {"stamp": pa.string()})
    with Lock(folder / ".lock", f"the pool {folder}"):
        remove_leftovers(folder)
        rows = shards = 0
        (folder / "index.json").unlink(missing_ok=True)
        for old in (folder / "index").glob("part-*.parquet"):
            old.unlink()
        stream = places()
        while chunk := list(islice(stream, shard_rows)):
            with whole(folder / "index" / f"part-{shards:06d}.parquet") as part:
                pq.write_table(pa.Table.from_pylist([asdict(p) for p in chunk], schema=schema), part)
            rows, shards = rows + len(chunk), shards + 1
        if unreadable and not skip_bad:
            listing = lines(f"{name}: {why}" for name, why in unreadable.items())
            raise DataError(
                f"{len(unreadable)} source files cannot be read:{listing}",
                "repair or remove them, or pass --skip-bad to leave them out",
            )
        if not rows:
            remedy = "give a folder of images, of tar shards or of Parquet files"
            raise DataError(f"no images in {source}", remedy)
        _refuse_duplicates(folder, shards)
        meta: dict[str, Any] = {"format": FORMAT, "source": str(root), "kind": kind, "rows": rows}
        meta |= {"shards": shards, "column": column, "unreadable": unreadable}
        write_json(folder / "index.json", meta)
    return open_pool(folder)


class _Unusable(Exception):
    """A source file of a form that cannot be read at random."""


def _files(source: Path) -> tuple[list[Path], str]:
    if not source.exists():
        raise DataError(f"there is no {source}", "give a folder of images, of tar shards or of Parquet files")
    found = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for kind, suffixes in (("parquet", {".parquet"}), ("tar", {".tar"}), ("folder", PICTURES | set(_UNREAD))):
        files = [p for p in found if p.suffix.lower() in suffixes]
        if files:
            return files, kind
    return [], "folder"


def _tar(file: Path, name: str, unreadable: dict[str, str]) -> Iterator[Place]:
    for member, offset, size in tar_members(file):
        suffix = Path(member).suffix.lower()
        if suffix in PICTURES:
            yield Place(f"{name}/{member}", name, offset, size)
        elif suffix in _UNREAD:
            unreadable[f"{name}/{member}"] = _UNREAD[suffix]


def _parquet(file: Path, name: str, column: str, id_column: str | None) -> Iterator[Place]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as content:
        missing = [c for c in (column, id_column) if c is not None and c not in content.schema_arrow.names]
        if missing:
            raise _Unusable(f"no column {missing[0]!r} among {content.schema_arrow.names}")
        if id_column is None:
            for row in range(content.metadata.num_rows):
                yield Place(f"{name}:{row}", name, row, -1)
            return
        row = 0
        for batch in content.iter_batches(columns=[id_column]):
            for value in batch.column(0).to_pylist():
                yield Place(str(value), name, row, -1)
                row += 1


def literal(path: Path) -> str:
    """A file as DuckDB takes it for itself, which reads patterns even in lists of files."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path))


def _refuse_duplicates(folder: Path, shards: int) -> None:
    import duckdb

    with duckdb.connect() as db:
        query = (
            "SELECT id, count(*) AS n, min(file), max(file) FROM read_parquet(?) "
            "GROUP BY id HAVING n > 1 ORDER BY id"
        )
        files = [literal(folder / "index" / f"part-{i:06d}.parquet") for i in range(shards)]
        twice = db.execute(query, [files]).fetchall()
    if twice:
        listing = lines(
            (f"{i!r}: {n} times, in {a}" + (f" and {b}" if a != b else "") for i, n, a, b in twice), 10
        )
        raise DataError(
            f"{len(twice)} ids occur more than once:{listing}",
            "choose a column with unique ids with --id-column, or leave it out to number the rows",
        )
