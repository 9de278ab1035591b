"""Which module a run is in, by hooks for the whole process that serve every thread that explains."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn


class Follower(Protocol):
    """A run: the modules of its model by identity, and those that it is in, innermost last."""

    names: dict[int, str]
    stack: list[nn.Module]


_running: list[tuple[int, Follower]] = []
_hooks: list[Any] = []
_lock = threading.Lock()


def _of_this_thread(module: nn.Module) -> Follower | None:
    me = threading.get_ident()
    mode = next((m for thread, m in reversed(_running) if thread == me), None)
    return mode if mode is not None and id(module) in mode.names else None


def _enter(module: nn.Module, args: Any) -> None:
    mode = _of_this_thread(module)
    if mode is not None:
        mode.stack.append(module)


def _leave(module: nn.Module, args: Any, out: Any) -> None:
    mode = _of_this_thread(module)
    if mode is not None and mode.stack and mode.stack[-1] is module:
        mode.stack.pop()


@contextmanager
def following(mode: Follower) -> Iterator[None]:
    """Keep `mode.stack` at the modules that run; several threads may explain at once."""
    entry = (threading.get_ident(), mode)
    with _lock:
        if not _running:
            _hooks.append(nn.modules.module.register_module_forward_pre_hook(_enter))
            _hooks.append(nn.modules.module.register_module_forward_hook(_leave, always_call=True))
        _running.append(entry)
    try:
        yield
    finally:
        with _lock:
            _running.remove(entry)
            while _hooks and not _running:
                _hooks.pop().remove()
