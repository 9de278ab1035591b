"""Reading and preparing ahead of the model, by threads or by processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import torch

T = TypeVar("T")
Workers = int | Literal["auto"]
_WORTH = 1000  # rows; for fewer, starting processes takes longer than they save


def ahead(tasks: Iterable[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """Results of tasks in their order, up to `depth` of them done before they are asked for."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def worker_count(workers: Workers, rows: int) -> int:
    """How many processes load images: "auto" takes one per core but one, and none for few images."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1) if rows >= _WORTH else 0


def load_all(load: Callable[[int], T], rows: Sequence[int], workers: Workers = 0) -> Iterator[T]:
    """What `load` returns for each row, in order; from processes, which end with this one, where there are workers."""
    count = worker_count(workers, len(rows))
    if not count:
        return map(load, rows)
    # torch's loader watches its parent and hands tensors over in shared memory
    loader: Any = torch.utils.data.DataLoader
    return iter(loader(_Rows(load, rows), batch_size=None, num_workers=count, prefetch_factor=16))


class _Rows(torch.utils.data.Dataset):
    def __init__(self, load: Callable[[int], Any], rows: Sequence[int]) -> None:
        self.load, self.rows = load, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.load(self.rows[i])
