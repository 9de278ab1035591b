"""Transforms that are linear in one argument and have parameters in the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.engine.calls import bind
from pfungst.relevance.engine.mode import RelevanceMode
from pfungst.relevance.engine.sums import linear


def _linear_in_first(
    mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any, *parameters: Any
) -> Any:
    if any(mode.tracked(p) for p in parameters):
        mode.uncovered(name)
    return linear(mode, func, name, args, kwargs)


def short_time_fourier(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Linear in the signal; the window is a parameter."""
    b = bind("input n_fft hop_length win_length window", args, kwargs)
    return _linear_in_first(mode, func, name, args, kwargs, b.get("window"))


def trapezoid(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Linear in the heights; where they stand is a parameter."""
    b = bind("y x", args, kwargs)
    return _linear_in_first(mode, func, name, args, kwargs, b.get("x"))


def polar(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """Linear in the magnitude; a phase that depends on the input has no rule."""
    b = bind("abs angle", args, kwargs)
    if mode.tracked(b["angle"]):
        mode.uncovered(name)
    magnitude = mode.settle(b["abs"])
    with torch.enable_grad():
        out = torch.polar(magnitude, b["angle"])
    return mode.mark(out)


def direction(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
    """The sign of real numbers, a constant; the direction of complex ones has no rule."""
    if args[0].is_complex():
        mode.uncovered(name)
    with mode.quiet():
        return mode.stop(func(*mode.stop_all(args), **mode.stop_all(kwargs)))
