"""The same scoring on many machines: Ray Data runs the per-shard function on every worker of a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfungst.errors import DataError, InputError
from pfungst.pool.index import Pool, open_pool
from pfungst.pool.score import PoolModel, Scorer, ScoreSummary, prepare_scores, summarise


class _Actor:
    """One worker: models loaded once, then shard after shard."""

    def __init__(
        self, pool: Pool, models: list[PoolModel], batch_size: int, device: str, threads: int
    ) -> None:
        self.scorer = Scorer(pool, models, batch_size, device, threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shards = [int(shard) for shard in batch["shard"]]
        return {"shard": shards, "errors": [self.scorer(shard) for shard in shards]}


def score_on_ray(
    folder: str | os.PathLike[str],
    models: Sequence[PoolModel],
    address: str | None = "auto",
    workers: int | None = None,
    gpus_per_worker: float = 0,
    cpus_per_worker: float = 1,
    batch_size: int = 64,
    threads: int = 2,
) -> ScoreSummary:
    """Score a pool on a Ray cluster; finished parts are skipped, shards of a node that dies run elsewhere.

    Args:
        folder: the pool's folder, on storage that all nodes share under the same path.
        models: as for :func:`~pfungst.pool.score.score`.
        address: "auto" for the running cluster, ``host:port``, or None for a Ray of its own on this machine. "auto"
            falls back to a Ray of its own where no cluster runs.
        workers: actors; None for as many as the cluster has room for.
        gpus_per_worker, cpus_per_worker: what each reserves; 0 GPUs computes on the CPU.
        batch_size, threads: as for ``score``.

    Raises:
        DataError: rows are missing at the end, or a model differs from the one whose scores exist.
        InputError: Ray is not installed or its cluster cannot be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("Ray is not installed", "install pfungst[ray]") from None
    pool = open_pool(folder)
    todo = prepare_scores(pool, models)
    if not todo:
        return summarise(pool, models, 0)
    if not ray.is_initialized():
        options: dict[str, Any] = {"log_to_driver": False}
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            if address != "auto":
                raise InputError(
                    f"no Ray cluster at {address}: {error}", "start one with `ray start --head`"
                ) from None
            ray.init(address="local", **options)
    if workers is None:
        resources = ray.cluster_resources()
        key, each = ("GPU", gpus_per_worker) if gpus_per_worker else ("CPU", cpus_per_worker)
        workers = max(1, int(resources.get(key, 1) / each))
    device = "cuda" if gpus_per_worker else "cpu"
    shards = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo))
    done = shards.map_batches(
        _Actor,
        fn_constructor_args=(pool, list(models), batch_size, device, threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(todo))),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker or None,
    )
    finished = {row["shard"] for row in done.iter_rows()}
    if missing := sorted(set(todo) - finished):
        raise DataError(
            f"{len(missing)} shards were not scored, the first is {missing[0]}", "run the same command again"
        )
    return summarise(pool, models, len(todo))
