"""The pass of a model over images: load and prepare, batch, compute; here, with loading processes, or on a
Ray cluster.

Batches lie on a fixed grid over the rows, and one has the same images whatever was finished before and
whoever computes it: a pass that goes on after a kill, or runs elsewhere, gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import Any, Generic, NamedTuple, TypeVar

from pfungst.device import choose_device
from pfungst.errors import ConfigError, DataError, InputError, UnreadableImages, few
from pfungst.features.workers import (
    Make,
    Workers,
    computers,
    end_with_parent,
    loaders,
    on_processes,
    require_ray,
)

T = TypeVar("T")
_BLOCK = 50  # batches of a task on Ray, at most


class Batch(NamedTuple):
    """Some rows of a pass.

    Args:
        rows: those that could be loaded, in order.
        known: what `load` told of each beside its image.
        images: (N, C, H, W), or by name where the model takes several of a row; None without rows.
        problems: the other rows, and why.
    """

    rows: list[int]
    known: list[Any]
    images: Any
    problems: list[tuple[int, str]]


@dataclass(frozen=True)
class Done:
    """What a batch gave: `result` is None where nothing was computed."""

    rows: list[int]
    result: Any
    problems: list[tuple[int, str]]

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.problems)


@dataclass(frozen=True)
class Work:
    """What a pass does with a row. On Ray it is sent to other machines as a whole, with the model.

    Args:
        load: row → (what is known of it, its image (C, H, W) or images by name). UnreadableImages, DataError,
            OSError and SyntaxError (Pillow's, of broken PNG files) say that it cannot be read.
        compute: batch → result; without gradients.
        to: moves the model to a device.
        name: row → how errors call it.
    """

    load: Callable[[int], tuple[Any, Any]]
    compute: Callable[[Batch], Any]
    to: Callable[[Any], object]
    name: Callable[[int], str] = str


def run(
    work: Work,
    rows: Iterable[int],
    size: int,
    *,
    device: Any,
    workers: Workers = 0,
    threads: int = 0,
    ray: str | None = None,
    skip_bad: bool = False,
) -> Iterator[Done]:
    """Compute rows in batches.

    Args:
        work: what is done.
        rows: ascending numbers.
        size: images of a batch.
        device: where the model runs; on Ray "cuda" or "auto" reserves a GPU for each task.
        workers: loading processes, see :func:`batches`; on Ray at most so many tasks at a time.
        threads: loading threads where there are no loading processes.
        ray: "auto" or ``host:port``: whole blocks of batches are computed there. All machines must see the
            images.
        skip_bad: do not mind what cannot be read. Otherwise nothing is computed after it, but all of it gets
            named.

    Raises:
        UnreadableImages: at the end, of all rows that cannot be read.
        InputError: images of a batch have different sizes; Ray is not installed, or not there.
    """
    problems: list[tuple[int, str]] = []
    if ray is None:
        work.to(where := choose_device(device))
        loaded = batches(work.load, rows, size, workers, threads)
        if where.type == "cuda" and (workers or threads):
            loaded = _pinned(loaded)
        found = _computed(work, loaded, skip_bad)
    else:
        found = _on_ray(work, list(rows), size, workers, str(device), ray, skip_bad)
    for done in found:
        problems += done.problems
        yield done
    if problems and not skip_bad:
        raise UnreadableImages([(work.name(row), why) for row, why in sorted(problems)])


def batches(
    load: Callable[[int], tuple[Any, Any]],
    rows: Iterable[int],
    size: int,
    workers: Workers = 0,
    threads: int = 0,
) -> Iterator[Batch]:
    """The batches of rows, loaded ahead by processes, which end with this one, or by threads, or at once."""
    one = partial(_load, load)
    count = loaders(workers, len(rows)) if isinstance(rows, Sequence) else 0
    if count:
        import torch
        from torch.utils.data import DataLoader

        grid = [list(group) for _, group in groupby(rows, key=lambda row: row // size)]
        dataset: Any = _Grid(one, grid)
        options: Any = {"num_workers": min(count, len(grid)), "worker_init_fn": end_with_parent}
        loader: Any = DataLoader(dataset, batch_size=None, collate_fn=_same, **options)
        return (batch._replace(images=_each(torch.from_numpy, batch.images)) for batch in loader)
    ones = ahead((partial(one, row) for row in rows), threads, 3 * size) if threads else map(one, rows)
    return (_collated(group) for _, group in groupby(ones, key=lambda one: one[0] // size))


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


class Stream(Generic[T]):
    """Items that can only be read in order, as the rows of a pass: each is held from its number to its
    loading."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._held = items, dict[int, T]()

    def __iter__(self) -> Iterator[int]:
        for row, item in enumerate(self._items):
            self._held[row] = item
            yield row

    def __getitem__(self, row: int) -> T:
        return self._held.pop(row)


_One = tuple[int, Any, Any, str]  # row, known, image, or why there is none


def _load(load: Callable[[int], tuple[Any, Any]], row: int) -> _One:
    try:
        return (row, *load(row), "")
    except UnreadableImages as error:
        why = error.problems[0][1]
    except DataError as error:
        why = error.message
    except (OSError, SyntaxError) as error:
        why = str(error) or type(error).__name__
    return row, None, None, why.splitlines()[0]


def _collated(group: Iterable[_One]) -> Batch:
    ones = list(group)
    good = [one for one in ones if not one[3]]
    images = _stacked([image for _, _, image, _ in good]) if good else None
    problems = [(row, why) for row, _, _, why in ones if why]
    return Batch([one[0] for one in good], [one[1] for one in good], images, problems)


def _stacked(images: list[Any]) -> Any:
    import torch

    if isinstance(images[0], dict):
        return {name: _stacked([image[name] for image in images]) for name in images[0]}
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise InputError(f"images have different sizes: {few(shapes)}", "prepare all of them to one size")
    return torch.stack(images)


class _Grid:
    """A data set in torch's sense, of batches. Arrays go through a pipe: tensors would fill the shared memory
    of containers."""

    def __init__(self, one: Callable[[int], _One], grid: list[list[int]]) -> None:
        self.one, self.grid = one, grid

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, i: int) -> Batch:
        batch = _collated(map(self.one, self.grid[i]))
        return batch._replace(images=_each(lambda images: images.numpy(), batch.images))


def _each(function: Callable[[Any], Any], images: Any) -> Any:
    if isinstance(images, dict):
        return {name: function(x) for name, x in images.items()}
    return None if images is None else function(images)


def _same(item: Any) -> Any:
    return item


def _pinned(loaded: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, each taken by another thread while the one before is computed, in memory that a GPU reads
    by itself."""

    def take() -> Batch | None:
        batch = next(loaded, None)
        return batch and batch._replace(images=_each(lambda images: images.pin_memory(), batch.images))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(take)
        while (batch := coming.result()) is not None:
            coming = pool.submit(take)
            yield batch


def _computed(work: Work, found: Iterable[Batch], skip_bad: bool) -> Iterator[Done]:
    import torch

    broken = False
    for batch in found:
        broken |= bool(batch.problems) and not skip_bad
        with torch.no_grad():
            result = work.compute(batch) if batch.rows and not broken else None
        yield Done(batch.rows, result, batch.problems)


def shards(
    make: Make, todo: Sequence[Any], workers: Workers, device: str, threads: int, ray: str | None
) -> Iterator[object]:
    """Results of shards as they are finished: in this process, in several, or on a Ray cluster.

    What makes the work is called here too before any worker starts, so that what cannot work fails at once.
    """
    if ray is None and not (count := computers(workers, device, threads, len(todo))):
        yield from map(make(device), todo)
        return
    make("cpu")
    if not todo:
        return
    if ray is None:
        yield from on_processes(make, todo, count, device, threads)
        return
    from pfungst.features.on_ray import on_ray

    yield from on_ray(make, todo, 0 if workers == "auto" else workers, device, threads, ray)


# --- on Ray ----------------------------------------------------------------------------------------------


def _on_ray(
    work: Work, rows: list[int], size: int, workers: Workers, device: str, address: str, skip_bad: bool
) -> Iterator[Done]:
    require_ray()
    if not rows:
        return
    import torch

    from pfungst.features.on_ray import on_ray

    grid = [list(group) for _, group in groupby(rows, key=lambda row: row // size)]
    each = min(_BLOCK, -(-len(grid) // 32))
    blocks = [list(chain.from_iterable(grid[i : i + each])) for i in range(0, len(grid), each)]
    make = partial(_worker, work, blocks, size, skip_bad)
    work.to("cpu")
    most = 0 if workers == "auto" else workers
    for part in on_ray(make, range(len(blocks)), most, device, torch.get_num_threads(), address):
        yield from part  # type: ignore[misc]
    with suppress(ConfigError):  # the cluster may have devices that this machine lacks
        work.to(choose_device(device))


def _worker(
    work: Work, blocks: list[list[int]], size: int, skip_bad: bool, device: str
) -> Callable[[int], list[Done]]:
    """In a process of a cluster: what computes a block by its number."""
    work.to(device)
    return lambda block: list(_computed(work, batches(work.load, blocks[block], size), skip_bad))
