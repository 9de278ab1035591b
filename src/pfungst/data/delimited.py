"""The one reader of delimited tables (CSV, TSV), by Python's csv module."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfungst.errors import DataError
from pfungst.files import content
from pfungst.suggest import suggest


@dataclass(frozen=True)
class Rows:
    """A table of texts.

    Args:
        fields: names of the columns.
        rows: the cells of each row by column.
        lines: the line of the file that each row begins in, from 1.
    """

    fields: list[str]
    rows: list[dict[str, str]]
    lines: list[int]


def read_rows(file: Path) -> Rows:
    """Read a CSV or TSV in UTF-8 (or UTF-16 with its mark) with a header line.

    The separator is the one of comma, semicolon, tab and bar that parts the header into most columns. Fields
    may be quoted and then hold separators, doubled quotes and line breaks; spaces and tabs around a field are
    dropped, nothing else. Blank lines, and columns without a name, are left out.

    Raises:
        DataError: the file is absent, empty, or no text in UTF-8; a quote is never closed; two columns have
            one name; a row has another number of fields than the header.
    """
    text = _text(file)
    if csv.field_size_limit() < len(text):  # of the process; a field may be as long as its file
        csv.field_size_limit(len(text))
    records = []
    reader = _reader(text, _separator(file, text))
    start = 1
    try:
        for record in reader:
            if record:
                records.append((start, [cell.strip(" \t") for cell in record]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}, line {start}: the line cannot be read: {error}",
            'close every quote, and write a quote inside a quoted field twice: "a ""b"" c"',
        ) from None
    if not records:
        raise DataError(f"{file} is empty", "it needs a header line, and a line for each row")
    (_, names), *rest = records
    require_distinct(file, [n for n in names if n])
    ragged = [(line, len(cells)) for line, cells in rest if len(cells) != len(names)]
    if ragged:
        line, count = ragged[0]
        others = f"; so have {len(ragged) - 1} more lines" if len(ragged) > 1 else ""
        raise DataError(
            f"{file}, line {line}: the line has another number of fields than the header: {count}, not "
            f"{len(names)}{others}",
            "quote fields that contain the separator, and give every column a field",
        )
    rows = [{n: c for n, c in zip(names, cells, strict=True) if n} for _, cells in rest]
    return Rows([n for n in names if n], rows, [line for line, _ in rest])


def require_distinct(file: Path, names: Sequence[str]) -> None:
    """Complain about columns of one name, of which only one could be read."""
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise DataError(
            f"{file} has several columns named {', '.join(map(repr, double))}",
            "give each column its own name",
        )


def require(file: Path, available: Sequence[str], wanted: Iterable[str | None], remedy: str = "") -> None:
    """Complain about columns that a table lacks, naming those it has."""
    missing = [c for c in wanted if c is not None and c not in available]
    if missing:
        there = suggest(missing[0], available, "it has")
        raise DataError(
            f"{file} has no column {', '.join(map(repr, missing))}", f"{there}; {remedy}" if remedy else there
        )


def _text(file: Path) -> str:
    try:
        data = content(file)
    except FileNotFoundError:
        raise DataError(f"{file} does not exist", "check the path") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}", "check the path") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not UTF-8 text: line {line} holds the byte 0x{data[error.start]:02x}",
            "save it as UTF-8 (in a spreadsheet: CSV UTF-8); a Latin-1 file is converted by "
            f"iconv -f latin1 -t utf-8 {file.name} > utf8.csv",
        ) from None
    if "\0" in text:
        raise DataError(f"{file} is not UTF-8 text: it holds zero bytes", "save it as UTF-8")
    return text


def _reader(text: str, separator: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)


def _separator(file: Path, text: str) -> str:
    def columns(separator: str) -> int:
        try:
            return len(next((r for r in _reader(text, separator) if r), []))
        except csv.Error:  # quotes do not fit this separator
            return 0

    if file.suffix.lower() == ".tsv" and columns("\t") > 1:
        return "\t"
    return max(",;\t|", key=columns)
