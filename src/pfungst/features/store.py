"""Rows of a pass on disk: parts of a Parquet table, what is known of each row, and an array of values beside
it.

The values are a file of their own because they are mapped into memory, and read where they are wanted.
"""

from __future__ import annotations

import contextlib
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.errors import DataError, PfungstWarning
from pfungst.files import read, reading, seal, whole
from pfungst.memory import give_back

_BLOCK = 8192  # rows in memory at a time
_SEAL = b"pfungst.values"  # in the table's metadata: size and digest of the array beside it


def write_part(table: Path, columns: Any, values: np.ndarray) -> None:
    """Write one part, whole or not at all.

    Args:
        table: file of the table, ``.parquet``; it comes last, so the part is there once it is there.
        columns: an Arrow table, or its columns by name.
        values: (N, D) float16 or float32; mapped into memory from ``.npy`` when it is read.
    """
    with whole(values_file(table)) as part:
        with open(part, "wb") as stream:
            np.save(stream, values)
        sealed = seal(part)
    _write_table(table, columns, sealed)


def _write_table(file: Path, columns: Any, sealed: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns if isinstance(columns, pa.Table) else pa.table(columns)
    with whole(file) as part:
        pq.write_table(columns.replace_schema_metadata({_SEAL: sealed}), part)


def check_part(table: Path, remedy: str) -> None:
    """Raise DataError, with a remedy, if the values of a part are not those that were written with its
    table."""
    import pyarrow.parquet as pq

    values = values_file(table)
    with reading(table, remedy):
        known = (pq.read_schema(table).metadata or {}).get(_SEAL, b"").decode()  # none before version 0.3
    with reading(values, remedy):
        found = seal(values)
    if known and known != found:
        raise DataError(f"{values} is not what was written with {table.name}", remedy)


def read_part(table: Path, remedy: str) -> tuple[Any, np.ndarray]:
    """The Arrow table of a part and its values (N, D), mapped into memory.

    Raises:
        DataError: one of them is missing or damaged, or they do not belong together.
    """
    check_part(table, remedy)
    columns, values = read(table, remedy), read(values_file(table), remedy)
    if len(columns) != len(values):
        raise DataError(f"{table} and {values_file(table).name} do not fit each other", remedy)
    return columns.replace_schema_metadata(None), values


def values_file(table: Path) -> Path:
    """Where the array of a part lies."""
    return table.with_name("features.npy") if table.stem == "index" else table.with_suffix(".npy")


class Store:
    """A folder of rows that are found by their keys; each call of :meth:`add` makes one part.

    What a key does not cover must be the same for the whole folder. A process that is killed leaves its
    finished parts. Parts that are damaged are removed, with a warning: whoever asks for their rows computes
    them again.

    Args:
        folder: made with the first part; None keeps the rows in memory only.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._tables: list[Any] = []
        self._arrays: list[np.ndarray | Path] = []  # in memory only without a folder: open maps are limited
        self._kinds: list[tuple[int, np.dtype]] = []  # width and type of each
        self._starts: list[int] = []  # number of each one's first row, over all
        for file in [] if self.folder is None else sorted(self.folder.glob("*.parquet")):
            try:
                table, values = read_part(file, "")
                if "key" not in table.column_names:
                    raise DataError(f"{file} has no column 'key'")
            except DataError as error:
                for damaged in (file, values_file(file)):
                    damaged.unlink(missing_ok=True)
                warnings.warn(f"{error.message}; it is computed again", PfungstWarning, stacklevel=2)
            else:
                self._append(table, values, file)

    def __len__(self) -> int:
        return len(self.keys().unique())

    def keys(self) -> Any:
        """The keys of all rows, an Arrow array of bytes."""
        import pyarrow as pa

        parts = [chunk for table in self._tables for chunk in table["key"].chunks]
        return pa.concat_arrays(parts) if parts else pa.array([], pa.binary())

    def find(self, keys: Any) -> np.ndarray:
        """Row numbers (N,) of keys, an Arrow array or a sequence of bytes; −1 where there is none.

        Arrow holds some 16 bytes a key; as Python objects in a dictionary each would take 200.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.index_in(pa.array(keys, pa.binary()), value_set=self.keys())
        return found.fill_null(-1).to_numpy().astype(np.int64)

    def _places(self, keys: Any) -> np.ndarray:
        places = self.find(keys)
        if (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} keys are not in the store")
        return places

    @property
    def parts(self) -> list[Path]:
        """The files of the parts that :meth:`add` made."""
        return [] if self.folder is None else sorted(self.folder.glob("part-*"))

    def add(self, keys: Sequence[bytes], values: np.ndarray, **columns: Any) -> None:
        """Keep values (N, D) and what else is known of N rows.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        import pyarrow as pa

        table, file = pa.table({"key": pa.array(keys, pa.binary()), **columns}), None
        if self.folder is not None:
            file = self.folder / f"part-{len(self._tables):06d}-{secrets.token_hex(4)}.parquet"
            write_part(file, table, values)
        self._append(table, values, file)

    @contextlib.contextmanager
    def writing(self, rows: int = 1024) -> Iterator[Callable[..., None]]:
        """A function like :meth:`add` for batches; parts have at least `rows` rows, but for the last one.

        What was given is kept also if the block is left by an error or by Ctrl-C.
        """
        batches: list[tuple[Sequence[bytes], np.ndarray, dict[str, Any]]] = []

        def flush() -> None:
            if batches:
                keys = [key for batch in batches for key in batch[0]]
                columns = {c: np.concatenate([b[2][c] for b in batches]) for c in batches[0][2]}
                values = np.concatenate([b[1] for b in batches])
                batches.clear()
                self.add(keys, values, **columns)
                del values
                give_back()

        def add(keys: Sequence[bytes], values: np.ndarray, **columns: Any) -> None:
            if batches and batches[-1][1].shape[1:] != values.shape[1:]:
                flush()
            batches.append((keys, values, columns))
            if sum(len(b[0]) for b in batches) >= rows:
                flush()

        try:
            yield add
        finally:
            flush()

    def values(self, keys: Any) -> np.ndarray:
        """(N, D) of N keys that are in the store."""
        return self._values(self._places(keys))

    def _values(self, places: np.ndarray) -> np.ndarray:
        parts = np.searchsorted(self._starts, places, "right") - 1
        out = np.empty((len(places), self._kinds[parts[0]][0]), self._kinds[parts[0]][1])
        for part in np.unique(parts):
            where = parts == part
            array = self._arrays[part]
            array = read(array, "") if isinstance(array, Path) else array
            out[where] = array[places[where] - self._starts[part]]
        return out

    def widths(self, keys: Any) -> list[int]:
        """How many values the rows have, each width once."""
        parts = np.searchsorted(self._starts, self._places(keys), "right") - 1
        return sorted({self._kinds[part][0] for part in np.unique(parts)})

    def merge(self, keys: Any) -> None:
        """One part, ``index.parquet`` and ``features.npy``, of these rows in this order, in place of all
        others."""
        import pyarrow as pa

        assert self.folder is not None
        index = self.folder / "index.parquet"  # the first of all files
        keys = pa.array(keys, pa.binary())
        if not (index.is_file() and self._tables[0]["key"].combine_chunks().equals(keys)):
            places = self._places(keys)
            with whole(values_file(index)) as part:
                shape = (len(places), self._kinds[0][0])
                out = np.lib.format.open_memmap(part, "w+", self._kinds[0][1], shape)
                for start in range(0, len(places), _BLOCK):
                    out[start : start + _BLOCK] = self._values(places[start : start + _BLOCK])
                out.flush()
                sealed = seal(part)
                index.unlink(missing_ok=True)  # a table never stands beside the array of another one
            _write_table(index, pa.concat_tables(self._tables).take(places), sealed)
        for file in self.parts:
            file.unlink()

    def _append(self, table: Any, values: np.ndarray, file: Path | None) -> None:
        start = self._starts[-1] + len(self._tables[-1]) if self._tables else 0
        self._tables.append(table)
        self._arrays.append(values if file is None else values_file(file))
        self._kinds.append((values.shape[1], values.dtype))
        self._starts.append(start)
