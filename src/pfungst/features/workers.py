"""A pass over shards, in this process, in several of this machine, or on a cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

from pfungst.errors import DataError, InputError, PfungstWarning
from pfungst.threads import cores

Workers = int | Literal["auto"]
Make = Callable[[str], Callable[[Any], object]]
_WORTH = 1000  # images; for fewer, starting processes takes longer than they save


def loaders(workers: Workers, images: int) -> int:
    """How many processes load images: "auto" takes one per core but one, at most 8, and none for few
    images."""
    return workers if workers != "auto" else min(8, cores() - 1) if images >= _WORTH else 0


def computers(workers: Workers, device: str, threads: int, shards: int) -> int:
    """How many processes compute: "auto" takes one per GPU, or one per `threads` cores; 0 where that is only
    one."""
    if workers != "auto":
        return workers
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    count = min(gpus or cores() // threads, shards)
    return count if count > 1 else 0


def require_ray() -> None:
    """Raise InputError where Ray is not installed."""
    if find_spec("ray") is None:
        raise InputError("Ray is not installed", "pip install 'pfungst[ray]'")


def on_processes(
    make: Make, shards: Sequence[Any], workers: int, device: str, threads: int
) -> Iterator[object]:
    """Results of the shards as they are finished, from processes that end with this one, even if it is
    killed.

    Args:
        make: called once in each process, with its device, for what is then called with shards.
        shards: their numbers, or anything that can be pickled.
        workers: how many processes.
        device: "auto", "cpu", "cuda", …; with several GPUs worker i takes GPU i modulo their number.
        threads: that compute in each process on the CPU.

    Where `make` cannot be pickled, this process computes all, with a warning.

    Raises:
        DataError: a process died.
    """
    try:
        packed = pickle.dumps(make)  # not shared memory, of which containers have little
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        what = f"one process computes all of it; others cannot be sent it: {error}"
        warnings.warn(what, PfungstWarning, stacklevel=2)
        yield from map(make(device), shards)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    needed = [(m.__name__, m.__file__, m.__loader__) for m in own_modules() if m.__name__.encode() in packed]
    sources = [(name, file, loader.get_source(name)) for name, file, loader in needed]  # type: ignore[union-attr]
    arguments: Any = (context.Value("i", 0), packed, sources, device, threads)
    left = len(shards)
    with ProcessPoolExecutor(min(workers, left), context, _start, arguments) as executor:
        jobs = {executor.submit(_work, shard) for shard in shards}
        try:
            for job in as_completed(jobs):
                jobs.discard(job)  # with its result
                result = job.result()
                left -= 1
                yield result
        except BrokenProcessPool:
            raise DataError(
                f"a worker process died (killed, or out of memory) with {left} shards to go",
                "run the same command again, with fewer workers or a smaller batch if memory was the reason; "
                "finished parts are kept",
            ) from None
        except BaseException:  # Ctrl-C, a full disk, the caller had enough: do not wait for shards under way
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # jobs stay: before Python 3.12 the executor fails on cancelled ones
            raise


def own_modules() -> Iterator[ModuleType]:
    """Modules that other processes cannot import by their name, such as those of FILE.py:FUNCTION."""
    for name, module in list(sys.modules.items()):
        own = "." not in name and not name.startswith("__") and getattr(module, "__file__", None)
        if own and PathFinder.find_spec(name) is None:
            yield module


_made: Callable[[Any], object] | None = None


def _start(
    number: Any, packed: bytes, sources: list[tuple[str, str | None, Any]], device: str, threads: int
) -> None:
    global _made
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    import torch

    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if not gpus:
        torch.set_num_threads(threads)
    for name, file, source in sources:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = file
        exec(compile(source, file or name, "exec"), vars(module))
    _made = pickle.loads(packed)(f"cuda:{mine % gpus}" if gpus else device)


def end_with_parent(*_: object) -> None:
    """In a process of ours: end at once when the process that started it has ended, however that was, also
    while this one was being started."""
    starter, parent = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == starter and parent is not None and parent.is_alive():
            parent.join(0.5)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _work(shard: Any) -> object:
    assert _made is not None
    return _made(shard)
