"""Score a pool: features, predictions and errors of models, in one process, several, or on a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pfungst.device import check_device, choose_device
from pfungst.errors import InputError
from pfungst.features.engine import shards
from pfungst.features.workers import Workers, require_ray
from pfungst.files import Lock, digest, remove_leftovers
from pfungst.pool.index import open_pool
from pfungst.pool.model import PoolModel
from pfungst.pool.parts import count_errors, remove_damaged, unfinished
from pfungst.pool.scorer import Scorer


@dataclass(frozen=True)
class ScoreSummary:
    """What scoring did.

    Args:
        rows: images in the pool.
        shards: parts that this call computed; skipped: parts that were finished before.
        errors: rows with an error, of all parts, by model.
    """

    rows: int
    shards: int
    skipped: int
    errors: dict[str, int]


def score(
    folder: str | os.PathLike[str],
    models: Sequence[PoolModel],
    workers: Workers = 0,
    batch_size: int = 64,
    device: str = "auto",
    threads: int = 2,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Score a pool; finished parts are skipped, damaged ones computed again.

    Args:
        folder: the pool's folder. On a cluster all machines must see it, and the images, under the same path.
        models: one or several, each with its own preprocessing. All are loaded here first, so that what
            cannot work fails before any worker starts.
        workers: worker processes, 0 for this one, "auto" for one per GPU or per `threads` cores; with
            ``ray``, at most so many at a time, 0 for all there is room for.
        batch_size: images per forward pass.
        device: "auto", "cpu" or "cuda"; with several GPUs worker i takes GPU i modulo their number.
        threads: decoding threads per process; workers on the CPU also compute with as many.
        ray: "auto" for the running Ray cluster, or one of its own where none runs; ``host:port`` for a
            certain one.
        progress: called with the number of finished shards and of all to do.

    Raises:
        ConfigError, CheckpointError: a model cannot be loaded, or the device does not exist.
        DataError: the disk is full, a worker died, another process is scoring with a model of that name, or
            scores of another model of that name exist, or images changed since they were indexed.
        InputError: Ray is not installed or cannot be reached.
    """
    pool = open_pool(Path(folder).resolve())
    names = [m.name for m in models]
    if not names or len(set(names)) < len(names):
        raise InputError(f"models are named {names}", "give at least one model, each under a name of its own")
    if ray is None:
        choose_device(device, float64=True)
    else:
        require_ray()
        check_device(device)  # the machines of the cluster may have other devices than this one
    with contextlib.ExitStack() as locks:
        for name in names:
            file = pool.folder / f".scores-{digest(name, length=8)}.lock"
            locks.enter_context(Lock(file, f"the scores of {name!r} in {pool.folder}"))
            remove_leftovers(pool.folder / "scores" / name)
            remove_damaged(pool, name)
        pool.refuse_changed()
        todo = unfinished(pool, names)
        make = partial(Scorer, pool, list(models), batch_size, threads)
        for done, _ in enumerate(shards(make, todo, workers, device, threads, ray), 1):
            if progress:
                progress(done, len(todo))
        pool.refuse_changed()
        errors = {name: count_errors(pool, name) for name in names}
        return ScoreSummary(pool.rows, len(todo), pool.shards - len(todo), errors)
