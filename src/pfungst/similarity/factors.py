"""Factors A(x) of many inputs, in memory or on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import DataError, InputError
from pfungst.files import read, write_json

_FORMAT = "pfungst.factors/1"


class Factors:
    """A(x) of N inputs: relevance of each neuron (or direction of a sketch) in each component.

    Attributes:
        values: (N, K, P) when all inputs have the same components (tensor or memory-mapped array), else a
            list of (K, P_i) tensors.
        representations: (N, K) what the factors explain: their sum over components is this less biases.
        grids: shape of the components of each input, for example (28, 28).
        tokens: the tokens of each text; empty for images.
        checks: columns after the components, of a :class:`Decomposition`.
    """

    def __init__(
        self,
        values: Any,
        representations: Tensor,
        grids: Sequence[tuple[int, ...]],
        tokens: Sequence[Sequence[str]] = (),
        checks: int = 0,
    ) -> None:
        self.values = values
        self.representations = representations
        self.grids = [tuple(g) for g in grids]
        self.tokens = [list(t) for t in tokens]
        self.checks = checks

    def __len__(self) -> int:
        return len(self.representations)

    def __getitem__(self, index: int) -> Tensor:
        """A of one input, (K, P) in float32."""
        value = self._stored(index)
        return value[:, : value.shape[1] - self.checks]

    def seen(self, index: int) -> Tensor:
        """The checks of one input, (K, checks)."""
        value = self._stored(index)
        return value[:, value.shape[1] - self.checks :]

    def _stored(self, index: int) -> Tensor:
        value = self.values[index]
        value = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        return value.float() if value.dtype == torch.float16 else value

    def at(self, rows: Sequence[int]) -> Factors:
        """Those of some inputs, copied."""
        tokens = [self.tokens[i] for i in rows] if self.tokens else []
        grids = [self.grids[i] for i in rows]
        values = [self._stored(i) for i in rows]
        return Factors(values, self.representations[list(rows)], grids, tokens, self.checks)

    def first(self, count: int) -> Factors:
        """Those of the first inputs, without a copy."""
        grids, tokens = self.grids[:count], self.tokens[:count]
        return Factors(self.values[:count], self.representations[:count], grids, tokens, self.checks)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K, P). Raises InputError when the inputs have different components."""
        if isinstance(self.values, list):
            raise InputError(
                "texts of different length have factors of different size", "take them one by one"
            )
        n, k, p = self.values.shape
        return n, k, p - self.checks


class FactorStore:
    """Factors in a folder: a memory-mapped array, filled row by row; an interrupted run goes on where it
    stopped.

    Args:
        folder: created if needed.
        shape: (N, K, P), K directions where a sketch is used; the checks of a decomposition stand after P.
        width: of the representations.
        key: what the factors depend on; a folder made with another key is refused.
        dtype: "float32" or, for half the space, "float16".
    """

    def __init__(
        self,
        folder: str | Path,
        shape: tuple[int, ...],
        width: int,
        key: dict[str, Any],
        dtype: str = "float32",
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        description = {"format": _FORMAT, "shape": list(shape), "width": width, "dtype": dtype, **key}
        record = self.folder / "factors.json"
        found = self.describe(self.folder)
        if found is not None:
            differing = [k for k in description if found.get(k) != description[k]]
            if differing:
                raise DataError(
                    f"{self.folder} holds factors of something else ({', '.join(differing)} differ)",
                    "choose another folder or delete this one",
                )
        else:
            for name, kind, size in (
                ("factors.npy", dtype, shape),
                ("representations.npy", "float32", (shape[0], width)),
                ("done.npy", "bool", shape[:1]),
            ):
                np.lib.format.open_memmap(self.folder / name, "w+", np.dtype(kind), tuple(size)).flush()
            write_json(record, description)
        self.values, self.representations, self.done = (
            np.lib.format.open_memmap(self.folder / f"{name}.npy", "r+")
            for name in ("factors", "representations", "done")
        )

    @staticmethod
    def describe(folder: str | Path) -> dict[str, Any] | None:
        """What the factors in a folder were made of; None where there are none."""
        record = Path(folder) / "factors.json"
        if not record.is_file():
            return None
        return read(record, "delete the folder or choose another", format=_FORMAT)

    def put(self, index: list[int], values: np.ndarray, representations: np.ndarray) -> None:
        """Write the factors of some inputs; they are marked as done after they are on disk."""
        self.values[index] = values
        self.representations[index] = representations
        self.values.flush()
        self.representations.flush()
        self.done[index] = True
        self.done.flush()
