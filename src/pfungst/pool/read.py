"""Bytes of the images of a pool, in order, without holding more than one source file's piece in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from pfungst.pool.index import Place, Pool


def read(pool: Pool, places: Sequence[Place]) -> Iterator[bytes | str]:
    """The encoded images at some places.

    Args:
        pool: the pool that they belong to.
        places: in the order of the index (others are slower in Parquet files).

    Returns:
        For each place the bytes, or the reason why they cannot be had.
    """
    how = _parquet if pool.kind == "parquet" else _bytes
    for file, group in groupby(places, key=lambda p: p.file):
        yield from how(pool, file, list(group))


def _bytes(pool: Pool, file: str, places: list[Place]) -> Iterator[bytes | str]:
    try:
        stream = (pool.source / file).open("rb")
    except OSError as error:
        for _ in places:
            yield f"{file}: {error.strerror}"
        return
    with stream:
        for place in places:
            try:
                stream.seek(place.offset)
                content = stream.read(place.size)
            except OSError as error:
                yield f"{file}: {error.strerror}"
                continue
            yield content if len(content) == place.size else f"{file}: shorter than when it was indexed"


def _parquet(pool: Pool, file: str, places: list[Place]) -> Iterator[bytes | str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = 0
    try:
        with pq.ParquetFile(pool.source / file) as content:
            starts = [0]
            for group in range(content.num_row_groups):
                starts.append(starts[-1] + content.metadata.row_group(group).num_rows)
            for group in range(content.num_row_groups):
                wanted = [p for p in places if starts[group] <= p.offset < starts[group + 1]]
                if not wanted:
                    continue
                # Small batches: a row group may be larger than memory should hold.
                row, waiting = starts[group], iter(wanted)
                place = next(waiting, None)
                for batch in content.iter_batches(64, row_groups=[group], columns=[pool.column]):
                    column = batch.column(0)
                    while place is not None and place.offset < row + len(column):
                        value: Any = column[place.offset - row].as_py()
                        value = value.get("bytes") if isinstance(value, dict) else value
                        given += 1
                        yield (
                            value
                            if isinstance(value, bytes)
                            else f"{file}: row {place.offset} holds no bytes"
                        )
                        place = next(waiting, None)
                    row += len(column)
                    if place is None:
                        break
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        for _ in places[given:]:
            yield f"{file}: {reason}"
        return
    for _ in places[given:]:
        yield f"{file}: has fewer rows than when it was indexed"
