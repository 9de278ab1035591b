"""The files of the scores: per model a record, and per index shard a table and an array of features."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pfungst.errors import DataError, PfungstWarning
from pfungst.features import check_part
from pfungst.files import read, reading, stamp, write_json
from pfungst.pool.index import Pool, literal
from pfungst.suggest import suggest

FORMAT = "pfungst.pool-scores/1"


def part_path(pool: Pool, name: str, shard: int) -> Path:
    """Ids, predictions and errors of one shard; written last, so a part is finished once it is there."""
    return pool.folder / "scores" / name / f"part-{shard:06d}.parquet"


def features_path(pool: Pool, name: str, shard: int) -> Path:
    """Features of one shard, float16 (rows, D), to be mapped into memory."""
    return pool.folder / "scores" / name / f"part-{shard:06d}.npy"


def model_record(pool: Pool, name: str) -> dict[str, Any]:
    """What is known about a model that scored the pool.

    Raises:
        DataError: it did not.
    """
    path = pool.folder / "scores" / name / "model.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in pool.folder.glob("scores/*/model.json"))
        raise DataError(f"no scores of {name!r} in {pool.folder}", suggest(name, known, "there are"))
    return read(path, "delete its folder and score the pool with it again")


def record_model(pool: Pool, name: str, condition: str, size: int, head: dict[str, Any]) -> None:
    """Record a model beside its scores.

    Raises:
        DataError: the scores there are of another model.
    """
    path = pool.folder / "scores" / name / "model.json"
    record = {"format": FORMAT, "name": name, "condition": condition, "size": size, "head": head}
    if not path.is_file():
        write_json(path, record)
        return
    known = model_record(pool, name)
    for key in ("condition", "size", "head"):
        if known[key] != record[key]:
            raise DataError(
                f"{path.parent} holds scores of another model: {key} was {known[key]}, now {record[key]}",
                "give the new model a name of its own",
            )


def remove_damaged(pool: Pool, name: str) -> None:
    """Remove, with a warning, finished parts whose features are not what was written: made again."""
    for shard in range(pool.shards):
        path = part_path(pool, name, shard)
        if path.is_file():
            try:
                check_part(path, "")
            except DataError as error:
                warnings.warn(f"{error.message}; it is computed again", PfungstWarning, stacklevel=3)
                path.unlink()


def refuse_damaged(pool: Pool, name: str, shards: Iterable[int], remedy: str) -> None:
    """Raise DataError, with a remedy, if features are not what was written.

    All of them are read once: then it is known by the sizes and times of their files, in ``checked.json``,
    that they are the same.
    """
    record = pool.folder / "scores" / name / "checked.json"
    known: dict[str, str] = {}
    with contextlib.suppress(DataError):
        known = read(record, "")
    found = dict(known)
    for shard in shards:
        path = part_path(pool, name, shard)
        with reading(path, remedy):
            now = f"{stamp(path)} {stamp(features_path(pool, name, shard))}"
        if known.get(path.name) != now:
            check_part(path, remedy)
            found[path.name] = now
    if found != known:
        with contextlib.suppress(DataError):  # a pool that may only be read
            write_json(record, found)


def unfinished(pool: Pool, names: list[str]) -> list[int]:
    """Shards of which the part of some model is missing."""
    return [s for s in range(pool.shards) if not all(part_path(pool, n, s).is_file() for n in names)]


def finished(pool: Pool, name: str) -> list[str]:
    """The tables of all parts of a model, as DuckDB takes them.

    Raises:
        DataError: some are missing.
    """
    missing = unfinished(pool, [name])
    if missing:
        raise DataError(
            f"scores of {name} have {pool.shards - len(missing)} of {pool.shards} parts",
            "finish scoring first: run the same `pfungst pool score` again",
        )
    return [literal(part_path(pool, name, shard)) for shard in range(pool.shards)]


def count_errors(pool: Pool, name: str) -> int:
    """Rows with an error in the finished scores of a model.

    Raises:
        DataError: rows are missing.
    """
    import duckdb

    with duckdb.connect() as db:
        query = "SELECT count(*), count(error) FROM read_parquet(?)"
        rows, bad = db.execute(query, [finished(pool, name)]).fetchall()[0]
    if rows != pool.rows:
        raise DataError(f"scores of {name} have {rows} of {pool.rows} rows", "run the same command again")
    return bad
