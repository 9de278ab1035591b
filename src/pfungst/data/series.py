"""The one reader of labelled time series: tables with a row per series, arrays of several channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.errors import DataError
from pfungst.files import read

from .delimited import read_rows, require
from .item import Item
from .traits import binned

SHORTEST = 4  # points: of fewer no window is left around another
_REMEDY = (
    "give a CSV or Parquet with a row per series (label, and every number column a point in time), or a "
    ".npz with series (N, C, T) and label (N,), all of one length"
)


@dataclass(frozen=True)
class Series:
    """Series of one length with what is known about them.

    Attributes:
        values: (N, C, T) of N series, C channels, T points in time, finite.
        columns: (N,) texts by name, "" for unknown.
        ids: names of the series: those of a column "id", else their rows, from 1.
    """

    values: np.ndarray
    columns: dict[str, np.ndarray]
    ids: list[str]

    def items(self, label: str = "label") -> list[Item]:
        """Label and groups of each series; there are no pictures in them."""
        names = [n for n in self.columns if n not in (label, "id")]
        rows = zip(*(self.columns[n].tolist() for n in names), strict=True) if names else [()] * len(self.ids)
        told = zip(self.ids, self.columns[label].tolist(), rows, strict=True)
        return [Item(i, b"", k, groups=dict(zip(names, row, strict=True))) for i, k, row in told]


def read_series(file: Path, named: Sequence[str] = ("label",), groups: Sequence[str] = ()) -> Series:
    """Labelled series of one length.

    Args:
        file: a CSV or Parquet with a row per series, in which every other column of numbers is one point in
            time, in order, of one channel; or a .npz with ``series`` (N, C, T) or (N, T). Columns of text
            (of a .npz the other arrays (N,)) are groups.
        named: columns that there must be, with a value in every row.
        groups: columns that are none of the points in time, whatever they hold.

    Raises:
        DataError: the file cannot be read, columns are missing, a point in time has no value or no finite
            one, series are shorter than 4 points, or a channel is the same all over.
    """
    kind = file.suffix.lower()
    if kind == ".npz":
        held = read(file, _REMEDY)
        values, columns = _stacked(file, held), {n: list(a) for n, a in held.items() if n != "series"}
        require(file, [*columns], named, _REMEDY)
    else:
        if kind in (".parquet", ".pq"):
            table = read(file, _REMEDY)
            cells = {str(name): table[name].to_pylist() for name in table.column_names}
        else:
            rows = read_rows(file)
            cells = {name: [row[name] for row in rows.rows] for name in rows.fields}
        require(file, [*cells], [*named, *groups], _REMEDY)
        texts = {n for n in cells if n in (*named, *groups, "id") or not _numbers(file, n, cells[n])}
        columns = {n: cells[n] for n in cells if n in texts}
        times = [[float(v) for v in cells[n]] for n in cells if n not in texts]
        values = np.array(times, dtype=np.float64).reshape(len(times), -1).T[:, None]
    texts_of = {name: np.array([_text(v) for v in column]) for name, column in columns.items()}
    for name in named:
        if len(blank := np.flatnonzero(texts_of[name] == "")):
            raise DataError(f"{file}: {name} is empty in row {blank[0] + 1}", f"give every series its {name}")
    _check(file, values)
    found = texts_of.get("id")
    ids = [f"row {i + 1}" for i in range(len(values))] if found is None else found.tolist()
    if len(set(ids)) < len(ids):
        raise DataError(f"{file}: the column id names series twice", "give each series its own id")
    return Series(values, texts_of, ids)


def series_columns(values: np.ndarray) -> dict[str, np.ndarray]:
    """What series (N, C, T) tell of themselves, (N,) texts of quartiles by name: level (mean), spread
    (standard deviation) and roughness (that of the steps, over the spread) of each channel."""
    found: dict[str, np.ndarray] = {}
    for c in range(values.shape[1]):
        x = values[:, c]
        spread = x.std(1)
        told = {
            "level": x.mean(1),
            "spread": spread,
            "roughness": np.diff(x).std(1) / np.maximum(spread, 1e-12),
        }
        where = f" of channel {c + 1}" if values.shape[1] > 1 else ""
        found |= {f"series: {name}{where}": binned(v.round(9)) for name, v in told.items()}
    return {name: v for name, v in found.items() if len(np.unique(v)) > 1}


def _stacked(file: Path, held: dict[str, np.ndarray]) -> np.ndarray:
    require(file, [*held], ["series"], _REMEDY)
    values = np.asarray(held["series"])
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiu":
        raise DataError(f"{file}: series has shape {values.shape} of type {values.dtype}", _REMEDY)
    wrong = {n: a.shape for n, a in held.items() if n != "series" and a.shape != values.shape[:1]}
    if wrong:
        name, shape = next(iter(wrong.items()))
        raise DataError(
            f"{file}: {name} has shape {shape}, of {len(values)} series", f"give {name} one value a series"
        )
    return (values[:, None] if values.ndim == 2 else values).astype(np.float64)


def _numbers(file: Path, name: str, cells: Sequence[Any]) -> bool:
    """Whether a column is a point in time; text is none, and a number here and there is damage."""
    known = [_number(c) for c in cells]
    if not any(k is not None for k in known) and any(_text(c) for c in cells):
        return False
    bad = next((i for i, k in enumerate(known) if k is None or not math.isfinite(k)), None)
    if bad is not None:
        raise DataError(
            f"{file}, series {bad + 1}: column {name!r} holds {_text(cells[bad]) or 'nothing'!r}, no number",
            "fill the gaps, and cut or pad the series to one length; a column of groups is text, or is named "
            "with --group",
        )
    return True


def _number(cell: Any) -> float | None:
    try:
        return None if isinstance(cell, bool) or cell is None else float(cell)
    except (TypeError, ValueError):
        return None


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float | np.floating) and math.isnan(cell)):
        return ""
    return f"{cell:g}" if isinstance(cell, float | np.floating) else str(cell).strip()


def _check(file: Path, values: np.ndarray) -> None:
    n, _, length = values.shape
    if not n or length < SHORTEST:
        raise DataError(
            f"{file} holds {n} series of {length} points", f"give series of {SHORTEST} points or more"
        )
    if not (finite := np.isfinite(values).all((1, 2))).all():
        first = int(np.argmin(finite)) + 1
        raise DataError(
            f"{file}: {int((~finite).sum())} series hold values that are not finite, the first is {first}",
            "fill the gaps, and cut or pad the series to one length",
        )
    if len(flat := np.flatnonzero(np.ptp(values, axis=(0, 2)) == 0)):
        raise DataError(
            f"{file}: channel {flat[0] + 1} of {values.shape[1]} is always {values[0, flat[0], 0]:g}",
            "leave out what is constant: there is nothing to read in it",
        )
