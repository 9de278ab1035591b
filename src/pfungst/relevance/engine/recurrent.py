"""Recurrent layers: as their cells written by hand.

Each layer is unrolled in time under the mode: the linear maps get the composite's rules, tanh and ReLU pass,
the sigmoid gates are constants of the products they take part in. The values are those of the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.errors import InputError
from pfungst.relevance.engine.calls import bind
from pfungst.relevance.engine.formulas import attached, expanded, original
from pfungst.relevance.engine.mode import RelevanceMode

State = tuple[Tensor, ...]
#: One step: (projected input, state, recurrent weight, its bias, projection of the state) → new state.
Step = Callable[[Tensor, State, Tensor, Tensor | None, Tensor | None], State]

_NOTE = "the cell's linear maps by the composite, gates are constants"


def _lstm(x: Tensor, state: State, weight: Tensor, bias: Tensor | None, project: Tensor | None) -> State:
    h, c = state
    i, f, g, o = (x + F.linear(h, weight, bias)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if project is None else F.linear(h, project)), c


def _gru(x: Tensor, state: State, weight: Tensor, bias: Tensor | None, project: Tensor | None) -> State:
    (h,) = state
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = F.linear(h, weight, bias).chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * h,)


def _rnn_tanh(x: Tensor, state: State, weight: Tensor, bias: Tensor | None, project: Tensor | None) -> State:
    return (torch.tanh(x + F.linear(state[0], weight, bias)),)


def _rnn_relu(x: Tensor, state: State, weight: Tensor, bias: Tensor | None, project: Tensor | None) -> State:
    return (torch.relu(x + F.linear(state[0], weight, bias)),)


_STEPS: dict[str, Step] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}


def cell(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """One step of a recurrent layer: lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    b = bind("input hx w_ih w_hh b_ih b_hh", args, kwargs)
    step = _STEPS[name.removesuffix("_cell")]
    state = (b["hx"],) if isinstance(b["hx"], Tensor) else tuple(b["hx"])

    def run() -> State:
        return step(F.linear(b["input"], b["w_ih"], b.get("b_ih")), state, b["w_hh"], b.get("b_hh"), None)

    zhat = expanded(mode, name, _NOTE, run)
    value = original(mode, func, name, args, kwargs)
    if isinstance(value, Tensor):
        return attached(mode, value, zhat[0])
    return tuple(attached(mode, v, z) for v, z in zip(value, zhat, strict=True))


def layer(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """A recurrent layer over a sequence, padded or packed: lstm, gru, rnn_tanh, rnn_relu."""
    args, kwargs = mode.settled(args), mode.settled(kwargs)
    packed = "batch_sizes" in kwargs or (len(args) > 3 and isinstance(args[3], list | tuple))
    signature = "data batch_sizes hx params" if packed else "input hx params"
    b = bind(f"{signature} has_biases num_layers dropout train bidirectional batch_first", args, kwargs)
    if b["train"] and b["dropout"] > 0 and b["num_layers"] > 1:
        raise InputError(
            f"dropout between the layers of {name!r} is active in module {mode.module_name()!r}",
            "call model.eval() before explaining it",
        )
    hx = (b["hx"],) if isinstance(b["hx"], Tensor) else tuple(b["hx"])

    def run() -> State:
        if packed:
            return _unroll(_STEPS[name], b["data"], b["batch_sizes"].tolist(), hx, b)
        x, second = b["input"], b.get("batch_first", False)
        x = x.transpose(0, 1) if second else x
        steps, width = x.shape[:2]
        out, *state = _unroll(_STEPS[name], x.flatten(0, 1), [width] * steps, hx, b)
        out = out.unflatten(0, (steps, width))
        return (out.transpose(0, 1) if second else out, *state)

    zhat = expanded(mode, name, _NOTE, run)
    value = original(mode, func, name, args, kwargs)
    return tuple(attached(mode, v, z) for v, z in zip(value, zhat, strict=True))


def pack(mode: RelevanceMode, func: Any, name: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """pack_padded_sequence: a selection of rows, whose derivative torch only knows for one vector at a
    time."""
    b = bind("input lengths batch_first", args, kwargs)
    x = mode.settle(b["input"])
    rows = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], 1)
    index, widths = func(rows, b["lengths"], b["batch_first"])
    with torch.enable_grad():
        return mode.mark(x.flatten(0, 1).index_select(0, index[:, 0])), widths


def _unroll(step: Step, x: Tensor, widths: Sequence[int], hx: State, b: dict[str, Any]) -> State:
    """All layers and directions.

    Args:
        x: (Σ widths, features), the steps one after the other.
        widths: how many sequences each step has, not increasing.
        hx: initial states, (layers · directions, batch, units) each.
        b: arguments of the call.

    Returns:
        The outputs (Σ widths, directions · units) and the final states, like `hx`.
    """
    directions = 2 if b["bidirectional"] else 1
    params = list(b["params"])
    each = len(params) // (b["num_layers"] * directions)
    finals: list[State] = []
    for number in range(b["num_layers"]):
        outs = []
        for reverse in range(directions):
            k = number * directions + reverse
            weights = params[k * each : (k + 1) * each]
            biases: Sequence[Tensor | None] = weights[2:4] if b["has_biases"] else (None, None)
            project = weights[-1] if each == (5 if b["has_biases"] else 3) else None
            inner = F.linear(x, weights[0], biases[0])
            out, final = _scan(
                step, inner, widths, tuple(h[k] for h in hx), (weights[1], biases[1], project), bool(reverse)
            )
            outs.append(out)
            finals.append(final)
        x = torch.cat(outs, -1) if directions == 2 else outs[0]
    return (x, *(torch.stack(states) for states in zip(*finals, strict=True)))


def _scan(
    step: Step,
    x: Tensor,
    widths: Sequence[int],
    start: State,
    weights: tuple[Tensor, Tensor | None, Tensor | None],
    reverse: bool,
) -> tuple[Tensor, State]:
    """One direction of one layer: outputs of all steps, and the final state of every sequence."""
    steps = list(zip(widths, x.split(list(widths)), strict=True))
    state: State = ()
    outs: list[Tensor] = []
    ended: list[State] = []
    for width, part in reversed(steps) if reverse else steps:
        have = len(state[0]) if state else 0
        if width < have:  # shorter sequences end here
            ended.append(tuple(s[width:] for s in state))
            state, have = tuple(s[:width] for s in state), width
        new = step(part[have:], tuple(s[have:width] for s in start), *weights) if have < width else ()
        state = step(part[:have], state, *weights) if have else ()
        state = tuple(torch.cat(s) for s in zip(state, new, strict=True)) if state and new else state or new
        outs.append(state[0])
    if ended:
        parts = zip(state, *reversed(ended), strict=True)
        state = tuple(torch.cat(p) for p in parts)
    return torch.cat(outs[::-1] if reverse else outs), state
