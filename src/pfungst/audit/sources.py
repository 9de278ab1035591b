"""Which columns say where an image comes from: those of the table, and prefixes of file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from pfungst.data import Item
from pfungst.data.traits import file_columns
from pfungst.errors import ConfigError
from pfungst.suggest import suggest

PREFIX = "file-name prefix"
_PREFIX = re.compile(r"^([A-Za-z]+\d*|\d+[A-Za-z]+)[_\-.]")


def group_columns(items: Sequence[Item], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Group columns and their values (N,) as text.

    Args:
        items: the images.
        wanted: column names; ``COLUMN>NUMBER`` for two groups, ``faces>0`` and ``faces≤0``; ``auto`` for every
            column with a reasonable number of values and for prefixes of the file names (exp1_…, scannerA-…) where
            they form groups; ``files`` for what the files themselves tell
            (:func:`pfungst.data.traits.file_columns`); ``none``.

    Raises:
        ConfigError: a named column does not exist, or has other values than numbers where they are compared.
    """
    known = list(dict.fromkeys(name for item in items for name in item.groups))
    columns: dict[str, np.ndarray] = {}
    for name in wanted:
        if name == "none":
            continue
        if name == "auto":
            for column in known:
                values = _values(items, column)
                if _groups_well(values):
                    columns[column] = values
            found = file_prefixes([item.id for item in items])
            if found is not None and not any(_same_partition(found, values) for values in columns.values()):
                columns[PREFIX] = found
        elif name == "files":
            columns |= file_columns(items)
        elif name == PREFIX:
            found = file_prefixes([item.id for item in items])
            if found is None:
                raise ConfigError(
                    "the file names have no common kind of prefix", "name a column of the table"
                )
            columns[name] = found
        elif name in known:
            columns[name] = _values(items, name)
        elif (column := name.partition(">")[0].strip()) in known:
            columns[name] = _parted(_values(items, column), *name.split(">", 1))
        else:
            raise ConfigError(
                f"the data have no column {column!r} to group by", suggest(column, known, "columns")
            )
    return columns


def _parted(values: np.ndarray, column: str, limit: str) -> np.ndarray:
    """The groups "column>limit" and "column≤limit"; images without a value stay without a group."""
    try:
        above = [text and float(text) > float(limit) for text in values.tolist()]
    except ValueError as error:
        raise ConfigError(
            f"{column}>{limit} compares no numbers: {error}", "name a column of numbers, and a number"
        ) from None
    column, limit = column.strip(), limit.strip()
    return np.array([a if a == "" else f"{column}{'>' if a else '≤'}{limit}" for a in above])


def file_prefixes(ids: Sequence[str]) -> np.ndarray | None:
    """The part of each file name before the first separator, where it forms groups; else None."""
    matches = [_PREFIX.match(PurePosixPath(text).name) for text in ids]
    if sum(match is None for match in matches) > 0.05 * len(ids):
        return None
    values = np.array([match.group(1) if match else "" for match in matches])
    return values if _groups_well(values) else None


def _values(items: Sequence[Item], name: str) -> np.ndarray:
    return np.array([item.groups.get(name, "") for item in items])


def _groups_well(values: np.ndarray) -> bool:
    counts = sorted(Counter(values.tolist()).values(), reverse=True)
    return 2 <= len(counts) <= 20 and counts[1] >= 5


def _same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))
