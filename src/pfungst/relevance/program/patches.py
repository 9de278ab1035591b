"""Forward mode for patches: early layers see each patch in a small window only, so distant patches share a
pass.

The program is cut where one image-shaped value is live. Up to a cut, patches whose windows there do not
overlap travel in one vector; at the cut each patch's window is taken out, and patches are grouped anew for
the next stage. The result is exact: the network between is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pfungst.relevance.bases import Patches
from pfungst.relevance.program.live import SOME, Windows
from pfungst.relevance.program.ops import Box
from pfungst.relevance.program.tape import Tape
from pfungst.relevance.program.units import Reach

_WORTH = 1.6  # vectors on live units that cost as much as one on whole images

Interval = tuple[int, int]


@dataclass
class Stage:
    """Ops up to `stop`, run once for each of `period[0] · period[1]` groups of patches.

    Patch (i, j) belongs to the group (i mod period[0], j mod period[1]).
    """

    stop: int
    period: tuple[int, int]
    rows: list[Interval]
    cols: list[Interval]

    @property
    def groups(self) -> int:
        return self.period[0] * self.period[1]


def _period(windows: list[Interval]) -> int:
    """Smallest n such that windows i and i + n never overlap."""
    n = 1
    while any(a[1] >= b[0] for a, b in zip(windows, windows[n:], strict=False)):
        n += 1
    return n


Boxes = list[dict[int, Box | None]]


def boxes(tape: Tape, grid: tuple[int, int], patch: int, image: tuple[int, int]) -> Boxes:
    """Supports of all values for the patches of the diagonal, as far as the longer side of the grid."""
    found = []
    for i in range(max(grid)):
        top, left = (min(i, side - 1) * patch for side in grid)
        box = (top, min(top + patch, image[0]) - 1, left, min(left + patch, image[1]) - 1)
        found.append(tape.boxes(box))
    return found


def plan(tape: Tape, grid: tuple[int, int], found: Boxes) -> list[Stage]:
    """The stages in which patches may share passes; ends before the first cut where it saves little."""
    rows, cols = grid
    stages: list[Stage] = []
    for stop, value in tape.cuts().items():
        seen = [f.get(value) for f in found]
        if any(b is None for b in seen):
            continue
        down = [(b[0], b[1]) for b in seen[:rows] if b is not None]
        across = [(b[2], b[3]) for b in seen[:cols] if b is not None]
        stage = Stage(stop, (_period(down), _period(across)), down, across)
        if 5 * stage.groups > 4 * rows * cols:
            break
        if stages and stages[-1].groups == stage.groups:
            stages.pop()
        stages.append(stage)
    return stages


def patch_columns(
    tape: Tape,
    streams: Sequence[Tensor],
    basis: Patches,
    chunk: Callable[[int, int, int | None], int],
    room: int = 0,
) -> Tensor:
    """Relevance of every output for every patch.

    Args:
        tape: the linear program.
        streams: values of the inputs, (N, C, H, W) each.
        basis: the patches.
        chunk: (count, start, stop) → how many vectors to run at once.
        room: bytes that tangents on live units may take.

    Returns:
        (N, K, P).
    """
    x = streams[0]
    rows, cols = basis.shape(tuple(x.shape[1:]))
    size, grid = basis.patch, (rows, cols)
    found = boxes(tape, grid, size, (x.shape[-2], x.shape[-1]))
    last = Stage(len(tape.ops), grid, [], [])
    start, before, values = 0, None, x
    for stage in (*plan(tape, grid, found), last):
        if before is not None and _on_units(tape, start, stage, grid, room):
            stage = last
        step = chunk(stage.groups, start, stage.stop)
        chunks = [range(i, min(i + step, stage.groups)) for i in range(0, stage.groups, step)]
        pieces: Iterable[Sequence[Tensor]]
        windows = None
        if before is None:
            pieces = ([_masked(s, members, stage.period, size) for s in streams] for members in chunks)
        else:
            whole, old, new = values, before, stage.period
            pieces = ([_regroup(whole, old, members, new, grid)] for members in chunks)
            windows = partial(_windows, tape, whole, old, new, grid, found)
        values = _joined(list(tape.forward_many(pieces, stage.groups, start, stage.stop, room, windows)))
        start, before = stage.stop, stage
        if stage is last:
            break
    return values.permute(1, 2, 0)


def _on_units(tape: Tape, start: int, stage: Stage, grid: tuple[int, int], room: int) -> bool:
    """Whether the patches may go on one by one on live units, whose rows only those in reach pass."""
    if stage.groups < SOME or stage.stop not in tape.cuts():
        return False
    span = tape.span_of(math.prod(grid), start, len(tape.ops), room)
    height = tape.shapes[tape.cuts()[stage.stop]][-2]
    passing = grid[1] * sum(b - a + 1 for a, b in stage.rows) / height
    return span is not None and span.start == start and passing < _WORTH * stage.groups


def _windows(
    tape: Tape, values: Tensor, before: Stage, period: tuple[int, int], grid: tuple[int, int], found: Boxes
) -> Windows:
    """All vectors of a new stage by the vectors of the stage before that :func:`_regroup` takes them from."""
    groups, _, _, h, w = values.shape
    down = _sources(before.rows, before.period[0], period[0], grid[0], h).T[:, None, :, None]
    across = _sources(before.cols, before.period[1], period[1], grid[1], w).T[None, :, None, :]
    sources = torch.where((down >= 0) & (across >= 0), down * before.period[1] + across, groups)

    def reach(value: int) -> Reach | None:
        seen = [f[value] for f in found[: grid[0]]]
        spans = [(b[0], b[1]) for b in seen if b is not None]
        if period != grid or len(spans) < grid[0]:
            return None
        ends = []
        for y in range(tape.shapes[value][-2]):
            inside = [i for i, (first, last) in enumerate(spans) if first <= y <= last] or [-1]
            ends.append((max(inside[0], 0) * grid[1], (inside[-1] + 1) * grid[1]))
        return ends

    return Windows(values, sources.flatten(2).flatten(0, 1), reach)


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts one after the other; images stay channels last, which `cat` alone would not keep."""
    if parts[0].ndim != 5:
        return torch.cat(parts)
    return torch.cat([p.permute(0, 1, 3, 4, 2) for p in parts]).permute(0, 1, 4, 2, 3)


def _masked(x: Tensor, members: range, period: tuple[int, int], size: int) -> Tensor:
    """The input restricted to the patches of each group, (M, N, C, H, W)."""
    h, w = x.shape[-2:]
    row = torch.arange(h, device=x.device) // size % period[0]
    col = torch.arange(w, device=x.device) // size % period[1]
    group = row[:, None] * period[1] + col
    index = torch.arange(members.start, members.stop, device=x.device)
    return (group == index[:, None, None])[:, None, None] * x


def _regroup(
    values: Tensor, before: Stage, members: range, period: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Windows of the patches of each new group, taken out of the vectors of the stage before."""
    _, n, c, h, w = values.shape
    down = _sources(before.rows, before.period[0], period[0], grid[0], h).to(values.device)
    across = _sources(before.cols, before.period[1], period[1], grid[1], w).to(values.device)
    at = torch.arange(members.start, members.stop, device=values.device)
    row, col = down[at // period[1], :, None], across[at % period[1], None, :]  # (M, H, 1), (M, 1, W)
    seen = (row >= 0) & (col >= 0)
    source = torch.where(seen, row * before.period[1] + col, 0)[:, None]  # (M, 1, H, W)
    place = torch.arange(n * h * w, device=values.device).view(1, n, h, w)
    pixels = values.permute(0, 1, 3, 4, 2).reshape(-1, c)  # a view of images that are channels last
    out = pixels.index_select(0, (source * (n * h * w) + place).flatten())
    out = out.view(len(members), n, h, w, c).masked_fill_(~seen[:, None, ..., None], 0)
    return out.permute(0, 1, 4, 2, 3)


def _sources(windows: list[Interval], old: int, new: int, count: int, length: int) -> Tensor:
    """(new, length): which old group holds what a new group needs at each place, −1 for nothing."""
    out = torch.full((new, length), -1)
    for i in range(count):
        out[i % new, windows[i][0] : windows[i][1] + 1] = i % old
    return out
