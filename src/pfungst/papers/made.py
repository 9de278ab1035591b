"""What a reproduction is: our numbers beside the paper's, and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from pfungst.audit.compare_models import ModelsResult
from pfungst.audit.images import to_uint8
from pfungst.audit.result import FILE, Interval, Model, Result, load
from pfungst.errors import ConfigError, DataError
from pfungst.papers.catalogue import Piece
from pfungst.report.images import data_uri

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        piece: the table or figure.
        out: folder for pages; audits lie in it and are shared by what needs the same ones.
        data: the paper's data, or data to stand in for them.
        stand_in: whether the data are not the paper's.
        tiny: as small as it runs, to see that it does.
        models: encoders or classifiers, as for the audits.
        more: other data that a piece asks for by name: val, spurious, components, diffusion, logo, people,
            letters, alexnet, lpips.
        seeds: repetitions, where the audit has them.
        size: side of the images in pixels, where it is not the models' or the paper's.
        classes: few of them, by name.
        device: where to compute.
    """

    piece: Piece
    out: Path
    data: Path | None = None
    stand_in: bool = False
    tiny: bool = False
    models: str | None = None
    more: Mapping[str, Path] = field(default_factory=dict)
    seeds: int | None = None
    size: int | None = None
    classes: Sequence[str] = ()
    device: str = "auto"

    def given(self) -> Path:
        """The paper's data.

        Raises:
            ConfigError: they are not given; says what is needed.
        """
        if self.data is None:
            raise ConfigError(
                f"{self.piece.id} needs {self.piece.needs}",
                f"give --data FOLDER, or --stand-in: {self.piece.stand_in}",
            )
        if not self.data.exists():
            raise DataError(f"{self.data} does not exist", f"needed: {self.piece.needs}")
        return self.data

    def audited(self, kind: Any, run: Callable[[Any], R], name: str, **options: Any) -> tuple[R, Path]:
        """The result of an audit and its folder; one that lies there already is taken over.

        Args:
            kind: its configuration. run: what runs it. name: of its folder.
            options: of the configuration.
        """
        from pfungst.report import write

        folder = self.out / "audits" / name
        page, result = folder / "report.html", folder / FILE
        before = result.stat().st_mtime_ns if page.exists() and result.exists() else None
        config = kind.build(**{"out": folder, "resume": True, "device": self.device, **options})
        try:
            found = run(config)
        except ConfigError:  # there lies another one
            config = config.model_copy(update={"resume": False, "overwrite": True})
            found = run(config)
        if before is None or before != result.stat().st_mtime_ns:
            write(folder, found)
        return found, folder


def singles(result: Result, folder: Path, kind: type[R], field: str) -> list[tuple[str, R, Path]]:
    """The audit of each model of one or several: name, result and folder.

    Args:
        result: of one model, or a :class:`ModelsResult`. folder: where it lies.
        kind: of the results. field: theirs that names the model.
    """
    if isinstance(result, kind):
        return [(getattr(result, field), result, folder)]
    assert isinstance(result, ModelsResult)
    found = []
    for row in result.rows:
        own = load(folder / row.folder)
        assert isinstance(own, kind)
        found.append((row.name, own, folder / row.folder))
    return found


def picture(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1] for a page."""
    return data_uri(to_uint8(image), side=160)


class Number(Model):
    """One number of ours beside the paper's."""

    row: str
    column: str
    ours: Interval | None
    paper: float | None

    @property
    def difference(self) -> Interval | None:
        """Ours less the paper's, with the interval of ours."""
        if self.ours is None or self.paper is None:
            return None
        ends = [None if v is None else v - self.paper for v in (self.ours.low, self.ours.high)]
        return Interval(value=self.ours.value - self.paper, low=ends[0], high=ends[1])


class Numbers(Model):
    """A table of numbers."""

    title: str
    unit: Literal["ratio", "percent"] = "ratio"
    rows: list[str]
    columns: list[str]
    cells: list[Number]
    caption: str = ""
    counts: list[str] = Field([])

    @classmethod
    def of(
        cls,
        title: str,
        ours: Mapping[str, Mapping[str, Interval | float | None]],
        paper: Mapping[str, Mapping[str, float]],
        unit: Literal["ratio", "percent"] = "ratio",
        caption: str = "",
        counts: Sequence[str] = (),
    ) -> Numbers:
        """From rows of columns; rows and columns of ours first, then those that only the paper has. `counts`
        are columns of whole numbers."""
        rows = list(dict.fromkeys([*ours, *paper]))
        columns = list(dict.fromkeys(c for table in (ours, paper) for row in table.values() for c in row))
        cells = []
        for row in rows:
            for column in columns:
                mine, theirs = ours.get(row, {}).get(column), paper.get(row, {}).get(column)
                if mine is not None and not isinstance(mine, Interval):
                    mine = None if math.isnan(mine) else Interval(value=float(mine))
                if mine is not None or theirs is not None:
                    cells.append(Number(row=row, column=column, ours=mine, paper=theirs))
        return cls(
            title=title,
            unit=unit,
            rows=rows,
            columns=columns,
            cells=cells,
            caption=caption,
            counts=list(counts),
        )

    def at(self, row: str, column: str) -> Number | None:
        """One number, None where neither has it."""
        return next((c for c in self.cells if (c.row, c.column) == (row, column)), None)


@dataclass(frozen=True)
class Made:
    """A reproduction: tables of numbers, blocks of a page, and what must be said of them."""

    numbers: Sequence[Numbers] = ()
    blocks: Sequence[Any] = ()
    notes: Sequence[str] = ()
    audits: Sequence[Path] = ()


class Reproduction(Model):
    """What ``reproduction.json`` holds."""

    format: Literal["pfungst.reproduction/1"] = "pfungst.reproduction/1"
    id: str
    paper: str
    title: str
    stand_in: str = ""
    version: str
    created: str
    numbers: list[Numbers]
    notes: list[str]


def mean_of(values: Sequence[Interval]) -> Interval:
    """The mean of independent values, fixed sets of images each: its ends are as far off as the roots of
    the summed squares of theirs, over their number."""
    n = len(values)
    value = sum(v.value for v in values) / n
    if any(v.low is None or v.high is None for v in values):
        return Interval(value=value)
    low = math.sqrt(sum((v.value - (v.low or 0.0)) ** 2 for v in values)) / n
    high = math.sqrt(sum(((v.high or 0.0) - v.value) ** 2 for v in values)) / n
    return Interval(value=value, low=value - low, high=value + high)
