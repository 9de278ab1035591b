"""Which axes of a layer's output are positions, found by where in the input they look.

Shapes alone cannot tell: channels may equal height, strides may differ between rows and columns, tokens may come in
windows or with class tokens. So one input is disturbed in up to four stripes along each of its axes, and each entry
of the layer's output gets the centre of the stripes that it responds to. An axis of the output along which these
centres move holds positions; the grid is the one that explains them. What does not fit is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import InputError

_STRIPES = 4  # along each axis of the input
_GROUPS = 8  # of channels, whose centres tell the noise
_SPECIAL = 8  # class tokens and registers at most, unless prefix= says otherwise
_CLEAR = 10.0  # log-likelihood ratio between the best and any other grid
#: Axes of the input that may be positions, for inputs (N, T), (N, C, T) or (N, L, D) or (N, T, F), (N, C, H, W) or
#: (N, H, W, C), (N, C, T, H, W) or (N, T, C, H, W); the first that fits.
_SPATIAL = {
    2: [(1,)],
    3: [(2,), (1,), (1, 2)],
    4: [(2, 3), (1, 2)],
    5: [(2, 3, 4), (1, 3, 4)],
}


@dataclass(frozen=True)
class Part:
    """An axis of the output that holds positions: after `prefix` tokens the sides of a grid, slowest first."""

    axis: int
    sides: tuple[int, ...]
    prefix: int = 0


@dataclass(frozen=True)
class Layout:
    """Where the positions are in a layer's output.

    Attributes:
        batch: axis of the output that counts the inputs.
        inputs: axes of the input along which the grid lies.
        grid: number of positions along each of them; 1 where the layer has none.
        parts: axes of the output without `batch`; what they do not name are channels.
    """

    batch: int
    inputs: tuple[int, ...]
    grid: tuple[int, ...]
    parts: tuple[Part, ...]

    def __call__(self, t: Tensor) -> Tensor:
        """A layer's output as (N, C, *grid)."""
        t = t.movedim(self.batch, 0)
        axes = [p.axis + 1 for p in self.parts]
        t = t.permute(0, *(a for a in range(1, t.ndim) if a not in axes), *axes)
        t = t.flatten(1, -len(axes) - 1) if t.ndim > len(axes) + 1 else t.unsqueeze(1)
        order: list[int] = []
        for part in self.parts:
            sizes = [self.grid[s] for s in part.sides]
            where = 2 + len(order)
            t = t.narrow(where, part.prefix, math.prod(sizes)).unflatten(where, sizes)
            order += part.sides
        for side in range(len(self.grid)):
            if side not in order:
                t = t.unsqueeze(-1)
                order.append(side)
        return t.permute(0, 1, *(2 + order.index(side) for side in range(len(self.grid))))


@dataclass(frozen=True)
class Wish:
    """What the caller says about a layout; None is unknown."""

    channels_last: bool | None = None
    grid: tuple[int, ...] | None = None
    prefix: int | None = None


def stated(shape: Sequence[int], x: Tensor, wish: Wish, resize: bool) -> Layout | None:
    """The layout of an output of `shape` where the caller has said everything, else None."""
    sample, last = tuple(shape[1:]), wish.channels_last
    inputs = _SPATIAL[x.ndim][0]
    if shape[0] != len(x) or len(sample) < 2 or (x.ndim == 3 and resize):
        return None
    if last is not None and len(sample) == len(inputs) + 1 and x.ndim > 3:
        sides = sample[:-1] if last else sample[1:]
        if wish.grid not in (None, sides) or wish.prefix:
            raise InputError(
                f"an output {tuple(shape)} with channels {'last' if last else 'first'} has the grid {sides}",
                f"leave out grid= and prefix=, or pass channels_last={not last}",
            )
        parts = tuple(Part(side + (not last), (side,)) for side in range(len(inputs)))
        return Layout(0, inputs, sides, parts)
    if len(sample) == 2 and wish.grid is not None and wish.prefix is not None and len(wish.grid) == len(inputs):
        need = wish.prefix + math.prod(wish.grid)
        if last is None and (sample[0] >= need) == (sample[1] >= need) and sample[0] != need:
            return None
        axis = 1 if last is False or (last is None and sample[0] < need) else 0
        if sample[axis] < need:
            raise InputError(
                f"{wish.prefix} tokens and a grid {wish.grid} do not fit into the {sample[axis]} tokens of {tuple(shape)}",
                "correct prefix= or grid=",
            )
        return Layout(0, inputs, wish.grid, (Part(axis, tuple(range(len(inputs))), wish.prefix),))
    return None


def find(
    respond: Callable[[Tensor], Tensor],
    x: Tensor,
    shape: Sequence[int],
    layer: str,
    wish: Wish,
    special: int | None,
) -> Layout:
    """The layout of a layer's output.

    Args:
        respond: inputs (M, *sample) → the layer's output.
        x: (N, *sample).
        shape: of the layer's output for `x`.
        layer: its name, for messages.
        wish: what the caller says.
        special: the number of class tokens and registers that the model declares.

    Raises:
        InputError: no positions, or none that can be told.
    """
    batch, diffs = _disturb(respond, x, shape, layer)
    sample = next(iter(diffs.values())).shape[1:]
    what = f"layer {layer} with output {tuple(shape)}"
    moves = _assign(diffs, sample, what, wish)
    if not moves:
        raise InputError(
            f"{what} has no positions: it responds alike to all parts of the input", "choose an earlier layer"
        )
    if x.ndim == 3 and len(moves) == 2 and len(set(moves.values())) == len(sample) == 2:
        moves = _equivariant(respond, x, batch, moves, what, wish)
    fitting = [axes for axes in _SPATIAL[x.ndim] if set(moves) <= set(axes)]
    inputs = fitting[0] if fitting else _SPATIAL[x.ndim][0]
    moves = {s: a for s, a in moves.items() if s in inputs}
    sides = {s: 1 for s in inputs}
    parts = []
    for axis in sorted(set(moves.values())):
        along = tuple(s for s in inputs if moves.get(s) == axis)
        part, sizes = _fit(diffs, axis, along, inputs, x, what, wish, special, len(moves))
        parts.append(part)
        sides.update(zip(along, sizes, strict=True))
    grid = tuple(sides.values())
    if wish.grid is not None and wish.grid != grid:
        raise InputError(
            f"{what} has the grid {grid} by the parts of the input that its positions respond to, not {wish.grid}",
            "leave out grid=, or pass prefix= and channels_last= too to insist",
        )
    return Layout(batch, inputs, grid, tuple(parts))


def _disturb(
    respond: Callable[[Tensor], Tensor], x: Tensor, shape: Sequence[int], layer: str
) -> tuple[int, dict[int, Tensor]]:
    """The batch axis, and for each axis of the input the responses (stripes, *output) to its stripes."""
    first = x[:1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(first.shape, generator=generator) + torch.randn(
        (*first.shape[:2], *[1] * (x.ndim - 2)), generator=generator
    )
    spread = float(first.float().std(correction=0))
    noise = (noise * (spread if spread > 0 else 1.0)).to(first)
    axes = sorted({a for axes in _SPATIAL[x.ndim] for a in axes})
    if x.ndim == 4 and x.shape[3] > 4:
        axes = [2, 3]  # no room for channels at the end
    variants, count = [first], {}
    for axis in axes:
        size = x.shape[axis]
        stripes = min(_STRIPES, size)
        count[axis] = stripes if stripes > 1 else 0
        for j in range(count[axis]):
            start, stop = round(j * size / stripes), round((j + 1) * size / stripes)
            v = first.clone()
            v.narrow(axis, start, stop - start).add_(noise.narrow(axis, start, stop - start))
            variants.append(v)
    many = min(len(x) + 1, max(len(variants), 2))
    many += many == len(x)  # another size than that of the inputs tells the batch axis
    outs: list[Tensor] = []
    batch = 0
    for start in range(0, len(variants), many):
        chunk = variants[start : start + many]
        out = respond(torch.cat(chunk + [first] * (many - len(chunk))))
        batch = _batch_axis(shape, len(x), out.shape, many, layer)
        outs.append(out.movedim(batch, 0)[: len(chunk)].float())
    out = torch.cat(outs)
    diff = (out[1:] - out[:1]).abs()
    noise_floor = 16 * torch.finfo(x.dtype).eps * float(out.abs().max())
    diff = torch.where(diff > noise_floor, diff, 0.0)
    if not bool(torch.isfinite(diff).all()):
        raise InputError(f"layer {layer} returns NaN or infinity", "choose another layer or repair the model")
    parts = diff.split([c for c in count.values() if c])
    return batch, dict(zip([a for a in axes if count[a]], parts, strict=True))


def _batch_axis(shape: Sequence[int], n: int, other: Sequence[int], m: int, layer: str) -> int:
    changed = [a for a in range(len(shape)) if shape[a] != other[a]] if len(shape) == len(other) else []
    if len(changed) == 1:
        axis = changed[0]
        if shape[axis] == n and other[axis] == m:
            return axis
        if shape[axis] * m == other[axis] * n:
            raise InputError(
                f"axis {axis} of the output {tuple(shape)} of layer {layer} holds {shape[axis] // n} windows (or the "
                f"like) of each of {n} inputs",
                "choose the layer around it, whose output has one entry per input",
            )
    raise InputError(
        f"no axis of the output {tuple(shape)} of layer {layer} counts the inputs: {m} of them give {tuple(other)}",
        "choose another layer",
    )


def _centres(diff: Tensor, axis: int) -> np.ndarray:
    """Centre (n, G) of the stripes to which the entries along an axis of the output respond, by groups of the others."""
    stripes, n = len(diff), diff.shape[1 + axis]
    r = diff.movedim(1 + axis, 1).flatten(2) if diff.ndim > 2 else diff[..., None]
    groups = min(_GROUPS, r.shape[2])
    # interleaved, so that each group has its share of everything
    power = torch.stack([r[..., g::groups].square().mean(-1) for g in range(groups)], -1).double().sqrt()
    total = power.mean((1, 2), keepdim=True)
    power = power / torch.where(total > 0, total, 1.0)
    at = (torch.arange(stripes, device=diff.device) + 0.5) / stripes
    mass = power.sum(0)
    centre = torch.einsum("j,jng->ng", at.double(), power) / torch.where(mass > 0, mass, 1.0)
    out: np.ndarray = torch.where(mass > 0, centre, 0.5).cpu().numpy()
    return out.reshape(n, groups)


def _movement(diff: Tensor, axis: int) -> float:
    """Variance of the centres along an axis of the output, without that of the noise."""
    m = _centres(diff, axis)
    noise = m.var(1, ddof=1).mean() / m.shape[1] if m.shape[1] > 1 else 0.0
    return max(float(m.mean(1).var()) - float(noise), 0.0)


def _assign(diffs: dict[int, Tensor], sample: Sequence[int], what: str, wish: Wish) -> dict[int, int]:
    """For each axis of the input with positions the axis of the output that moves along it."""
    allowed = [a for a in range(len(sample)) if sample[a] > 1]
    if wish.channels_last is not None:
        allowed = [a for a in allowed if a != (len(sample) - 1 if wish.channels_last else 0)]
    moves = {s: sorted(((_movement(d, a), a) for a in allowed), reverse=True) for s, d in diffs.items()}
    top = max((m[0][0] for m in moves.values() if m), default=0.0)
    chosen = {}
    for s, ranking in moves.items():
        if not ranking or ranking[0][0] < max(2e-4, 0.01 * top):
            continue
        if len(ranking) > 1 and ranking[0][0] < 4 * ranking[1][0]:
            raise InputError(
                f"{what}: axes {ranking[0][1] + 1} and {ranking[1][1] + 1} both follow axis {s} of the input, so it is "
                "unclear which are positions",
                "pass channels_last=True or False, or choose another layer",
            )
        chosen[s] = ranking[0][1]
    return chosen


def _equivariant(
    respond: Callable[[Tensor], Tensor], x: Tensor, batch: int, moves: dict[int, int], what: str, wish: Wish
) -> dict[int, int]:
    """Which of two axes that both follow the input is positions: shifting the input along it shifts the output."""
    first = x[:1]
    shifted = [first.roll(x.shape[s] // 2, s) for s in moves]
    many = 3 + (len(x) == 3)
    out = respond(torch.cat([first, *shifted, *[first] * (many - 3)])).movedim(batch, 0).float()
    error = {}
    for k, (s, a) in enumerate(moves.items(), 1):
        moved = out[0].roll(out.shape[1 + a] // 2, a)
        error[s] = float((out[k] - moved).norm() / (out[k] - out[0]).norm().clamp(min=1e-30))
    best, other = sorted(error, key=lambda s: error[s])
    if error[best] > 0.6 * error[other]:
        raise InputError(
            f"{what}: its axes follow both axes of the input, so it is unclear which are positions",
            "pass channels_last=True for outputs (N, L, C), False for (N, C, L)",
        )
    return {best: moves[best]}


def _fit(
    diffs: dict[int, Tensor],
    axis: int,
    along: tuple[int, ...],
    inputs: tuple[int, ...],
    x: Tensor,
    what: str,
    wish: Wish,
    special: int | None,
    moving: int,
) -> tuple[Part, tuple[int, ...]]:
    """The prefix and the sides of the grid along an axis of the output that best explain its centres."""
    centres = [_centres(diffs[s], axis) for s in along]
    n, groups = centres[0].shape
    sizes = [x.shape[s] for s in along]
    wished = None
    if wish.grid is not None and len(wish.grid) == len(inputs):
        wished = tuple(wish.grid[inputs.index(s)] for s in along)
    most = max(_SPECIAL, special or 0) if len(along) == moving else 0
    fits = []
    for prefix, sides, order in _grids(n, sizes, most, wished, wish.prefix):
        index = np.unravel_index(np.arange(math.prod(sides)), [sides[o] for o in order])
        loss, good = 0.0, 1.0
        for k, (m, stripes) in enumerate((m, len(diffs[s])) for m, s in zip(centres, along, strict=True)):
            u = np.full(n, 0.5)
            u[prefix : prefix + len(index[0])] = (index[order.index(k)] + 0.5) / sides[k]
            share = _explained(m.mean(1), u, stripes)
            spread = float(m.mean(1).var())
            rest = float(m.var(1).mean()) + (1 - max(share, 0.0)) * spread
            loss += n * groups * math.log(max(rest, 1e-4 * spread, 1e-12))
            good = min(good, share)
        fits.append((loss, good, prefix, sides, order))
    fits.sort(key=lambda f: f[0])
    one = "token" if len(along) > 1 else "position"
    if not fits or fits[0][1] < 0.5:
        raise InputError(
            f"{what}: the {n} {one}s along its axis {axis + 1} are in no order that rows and columns of the input "
            "explain (windows, or mixed by the model)",
            "choose another layer, or pass channels_last=, grid= and prefix= if you know the order",
        )
    near = [f for f in fits if f[0] < fits[0][0] + _CLEAR]
    if len(near) > 1 and special is not None:
        near = [f for f in near if f[2] == special] or near
    if len(near) > 1:
        listed = "; ".join(f"grid={f[3]} after prefix={f[2]}" for f in near[:4])
        raise InputError(
            f"{what}: its {n} {one}s may be {listed}", "say which with prefix= and grid=, or choose an earlier layer"
        )
    _, _, prefix, sides, order = near[0]
    return Part(axis, tuple(inputs.index(along[o]) for o in order), prefix), sides


def _explained(m: np.ndarray, u: np.ndarray, stripes: int) -> float:
    """Share of the variance of centres m that positions u explain; negative where m falls with u.

    Centres of sharp responses are steps between the centres of the stripes, those of blurred ones a line.
    """
    step = (np.floor(u * stripes).clip(0, stripes - 1) + 0.5) / stripes
    y, a, b = (v - v.mean() for v in (m, u, np.where(u == 0.5, 0.5, step)))
    if not a.any() or not y.any():
        return 0.0
    if y @ a <= 0:
        return -1.0
    b = b - a * (a @ b) / (a @ a)
    share = (y @ a) ** 2 / (a @ a) + ((y @ b) ** 2 / (b @ b) if b @ b > 1e-9 else 0.0)
    return float(share / (y @ y))


def _grids(
    n: int, sizes: Sequence[int], most: int, wished: tuple[int, ...] | None, prefix: int | None
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Prefix, sides and order of the sides of all grids of n tokens with up to `most` tokens beside the grid."""
    if prefix is None:
        ends = [(p, 0) for p in range(most + 1)] + [(0, q) for q in range(1, most + 1)]
    else:
        ends = [(prefix, q) for q in range(most + 1)]
    if wished is not None:
        beside = n - math.prod(wished)
        ends = [(p, beside - p) for p in range(beside + 1) if prefix is None or p == prefix]
    orders = list(itertools.permutations(range(len(sizes)))) if len(sizes) < 3 else [(0, 1, 2)]
    for p, q in ends:
        for sides in [wished] if wished is not None else _factors(n - p - q, sizes):
            for order in orders:
                yield p, sides, order


def _factors(n: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sides above one with product n, each at most the input's."""
    if len(sizes) == 1:
        if n > 1:
            yield (n,)
        return
    for side in range(2, min(n, sizes[0]) + 1):
        if n % side == 0:
            for rest in _factors(n // side, sizes[1:]):
                if rest[0] <= sizes[1]:
                    yield (side, *rest)
