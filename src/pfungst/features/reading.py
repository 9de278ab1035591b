"""Reading and preparing ahead of the model, by threads or by processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pfungst.features.workers import Workers, loaders

T = TypeVar("T")


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


def load_all(load: Callable[[int], T], rows: Sequence[int], workers: Workers = 0) -> Iterator[T]:
    """What `load` returns for each row, in order; from processes, which end with this one, where there are workers."""
    count = loaders(workers, len(rows))
    if not count:
        return map(load, rows)
    from torch.utils.data import DataLoader  # watches its parent, and hands tensors over in shared memory

    loader: Any = DataLoader
    return iter(loader(_Rows(load, rows), batch_size=None, num_workers=count, prefetch_factor=16))


class _Rows:
    """A data set in torch's sense."""

    def __init__(self, load: Callable[[int], Any], rows: Sequence[int]) -> None:
        self.load, self.rows = load, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.load(self.rows[i])
