"""More columns for images that are already open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pfungst.errors import DataError, few

from .delimited import read_rows, require
from .item import Item
from .roles import canonical_split


def join_columns(items: Sequence[Item], file: Path) -> tuple[list[Item], list[str]]:
    """Items with the columns of a CSV added to their groups, matched by its column path or id, and notes.

    Its column split is taken where the data name no split.

    Raises:
        DataError: it has no such column, names an image twice, or names none of the images.
    """
    table = read_rows(file)
    key = "path" if "path" in table.fields else "id"
    require(file, table.fields, [key], "it says which image a row is about")
    rows = {row[key].replace("\\", "/"): row for row in table.rows}
    if len(rows) < len(table.rows):
        names = [row[key] for row in table.rows]
        twice = sorted({n for n in names if names.count(n) > 1})
        raise DataError(f"{file} has several rows for {few(twice)}", "keep one row for each image")
    found = [rows.get(item.id) for item in items]
    missing = [item.id for item, row in zip(items, found, strict=True) if row is None]
    if len(missing) == len(items):
        raise DataError(
            f"{file} names none of the images: it has {few(rows, 2)}, the data {few(missing, 2)}",
            f"write the paths as the data have them in its column {key!r}",
        )
    taken = [f for f in table.fields if f not in (key, "label", "split")]
    joined = [
        item
        if row is None
        else replace(
            item,
            groups={**item.groups, **{f: row[f] for f in taken}},
            split=item.split or canonical_split(row.get("split")),
        )
        for item, row in zip(items, found, strict=True)
    ]
    without = f"{file.name} does not name {len(missing)} of {len(items)} images: {few(missing, 3)}"
    return joined, [without] if missing else []
