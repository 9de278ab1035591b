"""A pass over shards on many machines: Ray Data runs the per-shard work as tasks of a cluster.

Tasks rather than actors: a task of a machine that died runs again wherever there is room, whereas an actor of
it would wait for resources that may never come back. Each worker process loads the models once. Running a
shard twice must do no harm: its parts are renamed when they are complete, and are skipped when they exist.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from pfungst.errors import DataError, InputError, PfungstError
from pfungst.features.workers import Make, own_modules

_RETRIES = 3  # of a shard whose worker or machine died


def on_ray(
    make: Make, shards: Sequence[Any], workers: int, device: str, threads: int, address: str
) -> Iterator[object]:
    """Results of the shards as they are finished on a cluster.

    Args:
        make: called once in each process, with its device, for what is then called with shards.
        shards: their numbers, or anything that can be pickled.
        workers: at most so many tasks at a time, 0 for all there is room for.
        device: a task reserves one GPU if it is "cuda", or "auto" and the cluster has any.
        threads: CPUs that a task reserves, or as many as the smallest machine has.
        address: "auto" for the running cluster, or one of its own where none runs; ``host:port`` for a
            certain one.

    Raises:
        DataError: a shard's worker died again and again, or its parts cannot be written.
        InputError: no cluster at that address.
    """
    left = len(shards)
    ours = _connect(address)
    try:
        resources = ray.cluster_resources()
        gpus = 1 if device.startswith("cuda") or (device == "auto" and resources.get("GPU")) else 0
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        threads = min([threads, *(n for n in cpus if n)])
        for module in own_modules():
            ray.cloudpickle.register_pickle_by_value(module)
        shared = ray.put(make)  # once for a machine, however large the models are
        work = partial(_work, secrets.token_hex(8), [shared], "cuda" if gpus else "cpu", threads, os.getcwd())
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
        todo = ray.data.from_items(rows, override_num_blocks=len(shards))
        done = todo.map_batches(
            work,
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(workers or None),
            num_cpus=threads,
            num_gpus=gpus or None,
            ray_remote_args_fn=lambda: {"max_retries": _RETRIES},
            max_calls=0,  # otherwise a worker with a GPU would load the models anew for every shard
        )
        for row in done.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, PfungstError):
                raise result
            left -= 1
            yield result
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"Ray gave up with {left} shards to go: {reason}",
            "run the same command again, with a smaller batch if memory was the reason; finished parts are "
            "kept",
        ) from None
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str) -> bool:
    """Join a cluster, or start one on this machine where "auto" finds none; True if the connection is ours to
    end."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address != "auto":  # Ray itself tries for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **options)
    except (OSError, ValueError) as error:
        if address != "auto":
            raise InputError(
                f"no Ray cluster at {address}: {str(error).splitlines()[0]}",
                "start one with `ray start --head` and give its HOST:PORT, or give --ray auto",
            ) from None
        ray.init(address="local", include_dashboard=False, **options)
    return True


_made: tuple[str, Callable[[int], object]] | None = None


def _work(
    run: str, make: list[Any], device: str, threads: int, folder: str, batch: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Do one shard in a worker process, with the models of this run loaded once; paths relative to the folder
    of the command lead to the same files."""
    global _made
    result: object = None
    try:
        if _made is None or _made[0] != run:
            import torch

            torch.set_num_threads(threads)
            os.chdir(folder)
            _made = (run, ray.get(make[0])(device))
        result = _made[1](pickle.loads(batch["shard"][0]))
    except PfungstError as error:
        result = error
    except OSError as error:
        result = DataError(
            str(error),
            "all machines of the cluster must see the images and the results under the same path",
        )
    return {"result": [pickle.dumps(result)]}
