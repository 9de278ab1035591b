"""Score a pool: features, predictions and errors of one or several models, in one process, several, or on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pfungst.device import check_device, choose_device
from pfungst.errors import DataError, InputError
from pfungst.files import Lock, remove_leftovers
from pfungst.pool.index import Pool, open_pool
from pfungst.pool.model import PoolModel
from pfungst.pool.parts import count_errors, unfinished
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
    workers: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    threads: int = 2,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Score a pool; finished parts are skipped.

    Args:
        folder: the pool's folder. On a cluster all machines must see it, and the images, under the same path.
        models: one or several, each with its own preprocessing. All are loaded here first, so that what cannot work
            fails before any worker starts.
        workers: worker processes, 0 for this one; with ``ray``, at most so many at a time, 0 for all there is room for.
        batch_size: images per forward pass.
        device: "auto", "cpu" or "cuda"; with several GPUs worker i takes GPU i modulo their number.
        threads: decoding threads per process; workers on the CPU also compute with as many.
        ray: "auto" for the running Ray cluster, or one of its own where none runs; ``host:port`` for a certain one.
        progress: called with the number of finished shards and of all to do.

    Raises:
        ConfigError, CheckpointError: a model cannot be loaded, or the device does not exist.
        DataError: the disk is full, a worker died, another process is scoring with a model of that name, or scores of
            another model of that name exist.
        InputError: Ray is not installed or cannot be reached.
    """
    pool = open_pool(Path(folder).resolve())
    names = [m.name for m in models]
    if not names or len(set(names)) < len(names):
        raise InputError(f"models are named {names}", "give at least one model, each under a name of its own")
    if ray is not None and find_spec("ray") is None:
        raise InputError("Ray is not installed", "pip install 'pfungst[ray]'")
    if ray is None:
        choose_device(device)
    else:
        check_device(device)  # the machines of the cluster may have other devices than this one
    with contextlib.ExitStack() as locks:
        for name in names:
            scores = pool.folder / "scores" / name
            locks.enter_context(Lock(scores / ".lock", f"the scores of {name!r} in {pool.folder}"))
            remove_leftovers(scores)
        todo = unfinished(pool, names)
        elsewhere = ray is not None or workers > 0
        scorer = Scorer(pool, models, batch_size, "cpu" if elsewhere else device, threads)
        finished: Iterator[object]
        if not elsewhere:
            finished = map(scorer, todo)
        else:
            del scorer
            options = (batch_size, device, threads)
            if ray is None:
                finished = _on_processes(pool, models, todo, workers, *options)
            else:
                from pfungst.pool.on_ray import score_shards

                finished = score_shards(ray, pool, models, todo, workers, *options)
        for done, _ in enumerate(finished if todo else (), 1):
            if progress:
                progress(done, len(todo))
        errors = {name: count_errors(pool, name) for name in names}
        return ScoreSummary(pool.rows, len(todo), pool.shards - len(todo), errors)


def _on_processes(
    pool: Pool,
    models: Sequence[PoolModel],
    todo: list[int],
    workers: int,
    batch_size: int,
    device: str,
    threads: int,
) -> Iterator[int]:
    """Score shards on worker processes of this machine; yields their errors as they are finished."""
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    arguments = (context.Value("i", 0), pool, list(models), batch_size, device, threads)
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, arguments) as executor:
        jobs = [executor.submit(_work, shard) for shard in todo]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool:
            left = len(unfinished(pool, [m.name for m in models]))
            raise DataError(
                f"a worker process died (killed, or out of memory) with {left} shards to go",
                "run the same command again, with fewer workers or a smaller batch if memory was the reason; "
                "finished parts are kept",
            ) from None
        except (
            BaseException
        ):  # Ctrl-C, a full disk, or the caller had enough: do not wait for shards under way
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
        finally:
            for job in jobs:
                job.cancel()


_scorer: Scorer | None = None


def _start_worker(
    number: Any, pool: Pool, models: list[PoolModel], batch_size: int, device: str, threads: int
) -> None:
    global _scorer
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends workers at once; unfinished parts are no harm
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if not gpus:
        torch.set_num_threads(threads)
    _scorer = Scorer(pool, models, batch_size, f"cuda:{mine % gpus}" if gpus else device, threads)


def _work(shard: int) -> int:
    assert _scorer is not None
    return _scorer(shard)
