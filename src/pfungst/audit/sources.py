"""Which columns say where an image comes from: those of the table, and prefixes of file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from pfungst.data import Item
from pfungst.data.traits import PREFIX as FILE
from pfungst.data.traits import BurntInText, binned, common, file_columns, same_partition
from pfungst.errors import ConfigError
from pfungst.suggest import suggest

AUTOMATIC = ("files", "text", "people")
"""Words for columns that nobody wrote down, which the files are read for."""
PREFIX = "file-name prefix"
_MANY = 20  # values of a column that are taken as they are
_PREFIX = re.compile(r"^([A-Za-z]+\d*|\d+[A-Za-z]+)[_\-.]")


def group_columns(
    items: Sequence[Item], wanted: Sequence[str], text: BurntInText | None = None
) -> dict[str, np.ndarray]:
    """Group columns and their values (N,) as text.

    Args:
        items: the images.
        wanted: column names; ``COLUMN>NUMBER`` for two groups, ``faces>0`` and ``faces≤0``; ``auto`` for
            every column whose values form groups (numbers of many values cut at their quartiles, rare values
            put together) and for prefixes of the file names (exp1_…, scannerA-…) where they do; ``files`` for
            what the files themselves tell (:func:`pfungst.data.traits.file_columns`), ``text`` for whether
            text is burnt in, ``people`` for whether a detector that is installed sees somebody; ``none``.
        text: finds it; made here by default.

    Raises:
        ConfigError: a named column does not exist, or has other values than numbers where they are compared.
    """
    known = list(dict.fromkeys(name for item in items for name in item.groups))
    columns: dict[str, np.ndarray] = {}
    for name in wanted:
        if name == "none" or name in AUTOMATIC:
            continue
        if name == "auto":
            columns |= _automatic(items, known)
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
    if "text" in wanted:
        text = text or BurntInText()
        columns |= file_columns(items, () if "files" in wanted else ["text"], text)
        text.keep()
    elif "files" in wanted:
        columns |= file_columns(items)
    if "people" in wanted:
        from pfungst.data.people import people_column  # with torch

        columns[f"{FILE}people"] = people_column(items)
    return columns


def _automatic(items: Sequence[Item], known: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of the table whose values form groups, and prefixes of the file names."""
    columns = {name: _grouped(_values(items, name)) for name in known}
    columns = {name: values for name, values in columns.items() if _groups_well(values)}
    found = file_prefixes([item.id for item in items])
    if found is not None and not any(same_partition(found, values) for values in columns.values()):
        columns[PREFIX] = found
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


def _grouped(values: np.ndarray) -> np.ndarray:
    """A column of many values in few: numbers between their quartiles, else the commonest and "other"."""
    if len(set(values.tolist())) <= _MANY:
        return values
    try:
        return np.where(values == "", "", binned(np.array([float(v or "nan") for v in values.tolist()])))
    except ValueError:
        few = {name for name, _ in Counter(values.tolist()).most_common(_MANY - 1)}
        return common(np.array([v if v in few else "other" for v in values.tolist()]))


def _groups_well(values: np.ndarray) -> bool:
    counts = sorted(Counter(values.tolist()).values(), reverse=True)
    return 2 <= len(counts) <= _MANY and counts[1] >= 5
