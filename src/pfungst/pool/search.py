"""Find in a scored pool the images that show a component most: a look at predictions, then one product."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.errors import DataError, InputError
from pfungst.files import read
from pfungst.pool.index import Pool, open_pool
from pfungst.pool.parts import features_path, finished, model_record, refuse_damaged

BLOCK = 256  # rows: their float32 copies stay in the second-level cache
_DAMAGED = "score the pool again, which computes damaged parts anew"


@dataclass(frozen=True)
class Direction:
    """A component as an affine function of the penultimate features: α(φ) = ⟨d, φ⟩ − c.

    α_l = ⟨1, v_l⟩ ⟨v_l, w_k ⊙ φ − ψ̄_k⟩ gives d = ⟨1, v_l⟩ w_k ⊙ v_l and c = ⟨1, v_l⟩ ⟨v_l, ψ̄_k⟩.

    Args:
        class_index: class k; component: index l.
        d: (D,) float32; c: offset.
        head_sha256, model_key: head and whole of the model whose features these are, None to trust the
            caller.
    """

    class_index: int
    component: int
    d: np.ndarray
    c: float
    head_sha256: str | None = None
    model_key: str | None = None

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Whether a model, by its record beside the scores, is the one that the component was found on."""
        from pfungst.spurious.heads import same_model

        mine = {"head_sha256": self.head_sha256, "model_key": self.model_key}
        return self.head_sha256 is None or same_model(
            {k: v for k, v in mine.items() if v is not None}, record["head"]
        )


def direction(npca: Any, class_index: int, component: int) -> Direction:
    """A component of a fitted ``NeuralPCA``."""
    import torch

    alpha = npca.alpha_of(class_index, component)
    dims = npca.head_.n_features
    offset = float(alpha(torch.zeros(1, dims))[0])
    d = (alpha(torch.eye(dims)) - offset).numpy().astype(np.float32)
    model = npca.model_fingerprint_
    return Direction(class_index, component, d, -offset, model["head_sha256"], model.get("model_key"))


@dataclass(frozen=True)
class Hit:
    """One image found.

    Args:
        id: of the image; shard, row: where it is in the index.
        alpha: α of the component.
        predictions: class index that each model predicts.
    """

    id: str
    shard: int
    row: int
    alpha: float
    predictions: Mapping[str, int]


def search(
    folder: str | os.PathLike[str],
    component: Direction,
    model: str,
    agree: int = 0,
    models: Sequence[str] | None = None,
    top: int = 625,
) -> list[Hit]:
    """The images of highest α among those that enough models classify as the component's class.

    Args:
        folder: a scored pool.
        component: what to look for.
        model: the model whose features α is computed from.
        agree: how many models must predict class k; 0 looks at every image.
        models: those that are asked, by default all that scored the pool.
        top: how many to return.

    Returns:
        By falling α, equal ones by id.

    Raises:
        DataError: scores are missing or incomplete, or belong to another model than the component.
        InputError: ``agree`` or ``top`` cannot be.
    """
    import duckdb

    pool = open_pool(folder)
    record = model_record(pool, model)
    if not component.fits(record):
        raise DataError(
            f"component {component.component} of class {component.class_index} was found on another model "
            f"than {model!r}",
            "name the model that it was found on, or score the pool with that one",
        )
    if record["head"]["features"] != len(component.d):
        raise InputError(
            f"the direction has {len(component.d)} dims, {model} {record['head']['features']}", ""
        )
    names = (
        sorted(p.parent.name for p in pool.folder.glob("scores/*/model.json"))
        if models is None
        else list(models)
    )
    if not 0 <= agree <= len(names) or top < 1:
        raise InputError(
            f"agree={agree}, top={top}, models {names}",
            "agree is at most the number of models, top at least 1",
        )
    asked = list(dict.fromkeys([model, *names]))
    with duckdb.connect() as db:
        for number, name in enumerate(asked):
            model_record(pool, name)
            db.read_parquet(finished(pool, name)).create_view(f"m{number}")
            rows = db.execute(f"SELECT count(*) FROM m{number}").fetchall()[0][0]
            if rows != pool.rows:
                raise DataError(f"scores of {name} have {rows} of {pool.rows} rows", "finish scoring first")
        joins = "".join(f" JOIN m{i} USING (shard, row)" for i in range(1, len(asked)))
        votes = " + ".join(
            f"coalesce((m{i}.predicted = {int(component.class_index)})::INT, 0)"
            for i, name in enumerate(asked)
            if name in names
        )
        where = f"m0.error IS NULL AND ({votes or '0'}) >= {int(agree)}"
        # Rows with an error have no features; the others are few when models must agree.
        order = " ORDER BY shard, row" if joins else ""  # DuckDB keeps the order of files and rows
        found = db.execute(f"SELECT shard, row FROM m0{joins} WHERE {where}{order}").fetchnumpy()
        alphas = _alphas(pool, model, component, np.asarray(found["shard"]), np.asarray(found["row"]))
        best = _best(alphas, top)
        columns = ", ".join(f"m{i}.predicted" for i in range(len(asked)))
        chosen = {(int(found["shard"][i]), int(found["row"][i])): float(alphas[i]) for i in best}
        if not chosen:
            return []
        pairs = ", ".join(f"({shard}, {row})" for shard, row in chosen)
        query = f"SELECT m0.id, shard, row, {columns} FROM m0{joins} WHERE (shard, row) IN ({pairs})"
        hits = [
            Hit(
                id_,
                shard,
                row,
                chosen[shard, row],
                {n: p for n, p in zip(asked, rest, strict=True) if p is not None},
            )
            for id_, shard, row, *rest in db.execute(query).fetchall()
        ]
    return sorted(hits, key=lambda h: (-h.alpha, h.id))[:top]


def _alphas(pool: Pool, model: str, component: Direction, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """α of chosen rows, shard by shard; a shard of which every row is wanted is read from end to end."""
    result = np.empty(len(rows), np.float32)
    refuse_damaged(pool, model, np.unique(shards).tolist(), _DAMAGED)
    bounds = [*np.flatnonzero(np.diff(shards, prepend=-1)), len(shards)]
    for start, stop in pairwise(bounds):
        path = features_path(pool, model, int(shards[start]))
        features = read(path, _DAMAGED)
        wanted = rows[start:stop]
        if len(wanted) < len(features):
            found = product(
                [np.array(features[wanted[i : i + BLOCK]]) for i in range(0, len(wanted), BLOCK)], component.d
            )
        else:
            found = product(_blocks(path, features), component.d)
        result[start:stop] = found - component.c
    return result


def _blocks(path: Path, features: np.memmap) -> Iterator[np.ndarray]:
    """The rows of a stored array in blocks, through one small buffer: page faults of a map would take most of
    the time."""
    buffer = np.empty((min(BLOCK, len(features)), features.shape[1]), features.dtype)
    with path.open("rb", buffering=0) as stream:
        stream.seek(features.offset)
        for start in range(0, len(features), BLOCK):
            block = buffer[: len(features) - start]
            if stream.readinto(block.data.cast("B")) != block.nbytes:
                raise DataError(f"{path} is shorter than its header says", _DAMAGED)
            yield block


def product(blocks: Iterable[np.ndarray], d: np.ndarray) -> np.ndarray:
    """Features (N, D) float16, in blocks that stay in the cache, times d (D,) float32; computed in
    float32."""
    import torch

    weight = torch.from_numpy(np.ascontiguousarray(d, np.float32))
    buffer = torch.empty(BLOCK, len(d))
    found = [(buffer[: len(b)].copy_(torch.from_numpy(b)) @ weight).numpy() for b in blocks]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _best(alphas: np.ndarray, top: int) -> np.ndarray:
    """Indices of the ``top`` largest and of all that tie with the last of them."""
    if len(alphas) <= top:
        return np.arange(len(alphas))
    limit = np.partition(alphas, len(alphas) - top)[len(alphas) - top]
    return np.flatnonzero(alphas >= limit)
