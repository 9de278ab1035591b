"""The progress bar of long work: drawn on a terminal, gone when the work is done, silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Step = TypeVar("Step")
_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)


class Bar:
    """A text, a bar, a count and the time since the start; a line of `progress`, or nothing."""

    def __init__(self, progress: Progress | None, text: str, total: int | None, done: int = 0) -> None:
        self._progress = progress
        self._begin(text, total, done)

    def advance(self, count: int = 1) -> None:
        """That much more is done."""
        self._update(advance=count)

    def reach(self, done: int, total: int | None = None) -> None:
        """So much is done, of `total` where that is only known now."""
        self._update(completed=done, total=total)

    def say(self, text: str) -> None:
        """Another text; the count stays."""
        self._update(description=text)

    def turn(self, text: str, total: int | None = None) -> None:
        """Another piece of work begins."""
        self.close()
        self._begin(text, total, 0)

    def close(self) -> None:
        """Take the line away."""
        if self._progress is not None:
            self._progress.remove_task(self._task)

    def _begin(self, text: str, total: int | None, done: int) -> None:
        if self._progress is not None:
            self._task = self._progress.add_task(text, total=total, completed=done)

    def _update(self, **fields: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, **fields)


@contextmanager
def progress_bar(text: str, total: int | None = None, *, show: bool = True, done: int = 0) -> Iterator[Bar]:
    """A bar for the time of the block; inside the block of another one, a further line below it.

    Args:
        text: what is being done.
        total: how much there is to do, None where it is unknown.
        show: False draws nothing.
        done: how much was done before.
    """
    outer = _shown.get()
    show = show and (outer is not None or _terminal())
    if outer is not None or not show:
        bar = Bar(outer if show else None, text, total, done)
        try:
            yield bar
        finally:
            bar.close()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    named = TextColumn("{task.description}", markup=False)
    columns = (named, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        _shown.set(progress)
        try:
            yield Bar(progress, text, total, done)
        finally:
            _shown.set(None)


def _terminal() -> bool:
    from rich import get_console

    return get_console().is_terminal or get_console().is_jupyter


def track(steps: Sequence[Step], text: str, show: bool = True) -> Iterator[Step]:
    """The steps, with a bar that follows them."""
    with progress_bar(text, len(steps), show=show) as bar:
        for step in steps:
            yield step
            bar.advance()
