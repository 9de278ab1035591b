"""Which axes of a layer's output are positions, found by where in the input they look.

Shapes alone cannot tell: channels may equal height, strides may differ between rows and columns, tokens may
come in windows or with class tokens. So one input is disturbed in some stripes along each of its axes, and
each entry of the layer's output gets the centre of the stripes that it responds to. An axis of the output
along which these centres move holds positions; the grid is the one that explains them. What does not fit is
refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.layout import Layout, Part, Wish
from pfungst.relevance.responses import GROUPS, SPATIAL, Respond, Responses, explained

_ROUNDS = 6  # disturbances per stripe where one leaves the answer open
_SPECIAL = 8  # class tokens and registers at most, unless prefix= says otherwise
_CLEAR = 10.0  # log-likelihood ratio between the best and any other grid


class Unclear(InputError):
    """The responses leave no or several layouts."""


def find(
    respond: Respond, x: Tensor, shape: Sequence[int], layer: str, wish: Wish, special: int | None
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
    seen = Responses(respond, x, tuple(shape), layer)
    search = _Search(seen, f"layer {layer} with output {tuple(shape)}", wish, special)
    seen.disturb(1)
    try:
        layout = search.layout()
    except Unclear:  # one round may be too few where channels prefer parts of the input by chance
        seen.disturb(_ROUNDS)
        layout = search.layout()
    # windows of s × s tokens that follow each other look like a grid that is denser along one side; stripes
    # as fine as the tokens tell
    if wish.grid is None and any(len(p.sides) > 1 for p in layout.parts):
        dense = [side / x.shape[s] for s, side in zip(layout.inputs[-2:], layout.grid[-2:], strict=True)]
        if max(dense) > 1.25 * min(dense):
            seen.disturb(2, fine=True)
            search.strict = True
            if search.layout() != layout:
                raise Unclear(f"{search.what} may have the grid {layout.grid}", "pass grid= if that is right")
    return layout


@dataclass
class _Fit:
    """How the positions along an axis of the output lie on a grid."""

    part: Part
    sides: dict[int, int]
    slope: float  # the smallest of its sides, 1 for sharp responses
    share: float  # of the variance that the grid explains along the side where it explains least
    plausible: bool  # noise may explain the rest, and no whole row or column at an edge responds to nothing


#: Which axis of the output follows which of the input, the axes of the input that are positions, and the
#: grids.
_Found = tuple[dict[int, int], tuple[int, ...], list[_Fit]]


class _Search:
    """The layout that responses leave, with what the caller says and the tokens beside the grid that a model
    declares."""

    def __init__(self, seen: Responses, what: str, wish: Wish, special: int | None) -> None:
        self.seen, self.x, self.what, self.wish, self.special = seen, seen.x, what, wish, special
        self.strict = False  # for stripes as fine as tokens

    def layout(self) -> Layout:
        """The only layout that the responses leave."""
        sample = self.seen.sample
        if len(sample) > 2 and sum(n > 1 for n in sample) < 2:
            raise InputError(f"{self.what} has no positions", "choose an earlier layer")
        groups = self._followers(sample)
        found: list[_Found] = []
        problem = Unclear(
            f"{self.what} has no positions: it responds alike to all parts of the input",
            "choose an earlier layer",
        )
        for choice in itertools.product(*([*group, None] for group in groups.values())):
            moves = {s: a for s, a in zip(groups, choice, strict=True) if a is not None}
            inputs = next((axes for axes in SPATIAL[self.x.ndim] if set(moves) <= set(axes)), None)
            used = set(moves.values())
            # what follows another axis of the input too is not explained by this one alone
            if (
                not moves
                or inputs is None
                or not all(self._still(s, moves) for s in inputs if s not in moves)
            ):
                continue
            try:
                fits = [
                    self._fit(axis, [s for s in inputs if moves.get(s) == axis], inputs, len(moves))
                    for axis in sorted(used)
                ]
                crossed = any(a in group for s, a in moves.items() for o, group in groups.items() if o != s)
                if crossed and len(used) > 1 and list(moves.values()) != sorted(moves.values()):
                    raise Unclear(
                        f"{self.what}: two of its axes follow rows and columns of the input alike",
                        "pass channels_last=, or choose an earlier layer",
                    )
                self._check_channels(sample, used, len(inputs) - len(moves), fits)
            except Unclear as error:
                problem = error if not found else problem
                continue
            found.append((moves, inputs, fits))
        if not found:
            raise problem
        moves, inputs, fits = self._choose(found, groups, sample)
        sides = {s: side for fit in fits for s, side in fit.sides.items()}
        grid = tuple(sides.get(s, 1) for s in inputs)
        if self.wish.grid not in (None, grid):
            raise InputError(
                f"{self.what} has the grid {grid} by the parts of the input that it responds to, not "
                f"{self.wish.grid}",
                "leave out grid=, or pass prefix= and channels_last= too to insist",
            )
        return Layout(self.seen.batch, inputs, grid, tuple(fit.part for fit in fits))

    def _followers(self, sample: Sequence[int]) -> dict[int, list[int]]:
        """For each axis of the input the axes of the output that may follow it."""
        allowed = [a for a in range(len(sample)) if sample[a] > 1]
        if self.wish.channels_last is not None:
            allowed = [a for a in allowed if a != (len(sample) - 1 if self.wish.channels_last else 0)]
        out = {}
        for s in self.seen.changes:
            moved = sorted(((self.seen.centres(s, a).movement, a) for a in allowed), reverse=True)
            out[s] = [a for v, a in moved if v > 0 and v > moved[0][0] / 4]
        return out

    def _still(self, s: int, moves: dict[int, int]) -> bool:
        """Whether the axes of the output that are to follow other axes of the input do not follow `s`."""
        if s not in self.seen.changes:
            return True
        return all(
            self.seen.centres(s, a).spread < 0.1 * self.seen.centres(o, a).spread for o, a in moves.items()
        )

    def _check_channels(
        self, sample: Sequence[int], used: set[int], collapsed: int, fits: list[_Fit]
    ) -> None:
        """Refuse to take positions for channels and channels for positions.

        Args:
            sample: shape of one input's output.
            used: its axes that hold positions.
            collapsed: how many axes of the input no axis of the output follows.
            fits: of the axes that are followed.
        """
        rest = [n for a, n in enumerate(sample) if a not in used]
        channels = [n for n in rest if n > 1]
        blurred = min(fit.slope for fit in fits) < 0.5
        axes, order = [fit.part.axis for fit in fits], [side for fit in fits for side in fit.part.sides]
        together = all(b - a == 1 for a, b in itertools.pairwise(axes))
        usual = order == sorted(order)
        dense = [side / self.x.shape[s] for fit in fits for s, side in fit.sides.items()]
        few = min(side for fit in fits for side in fit.sides.values()) <= 4 and max(channels, default=0) < 16
        # few channels may follow the input in order by chance, but hardly steeply
        chance = few and self.wish.channels_last is None and min(fit.slope for fit in fits) < 0.2
        squeezed = channels or max(dense) <= min(1.0, 1.6 * min(dense))
        if (collapsed and self.wish.grid is None and rest.count(1) < collapsed) or (
            len(channels) > 1 and (collapsed or blurred)
        ):
            raise Unclear(
                f"{self.what}: its positions respond alike along rows or along columns of the input, so "
                "their grid cannot be told",
                "pass channels_last= for outputs (N, C, h, w) or (N, h, w, C), grid= and prefix= for "
                "tokens, or choose an earlier layer",
            )
        if chance or not together or not squeezed or (blurred and not (channels and usual)):
            raise Unclear(
                f"{self.what}: it is unclear which of its axes are positions and which channels",
                "pass channels_last=, or choose an earlier layer",
            )

    def _choose(self, found: list[_Found], groups: dict[int, list[int]], sample: Sequence[int]) -> _Found:
        most = max(len(moves) for moves, _, _ in found)
        full = [f for f in found if len(f[0]) == most]
        full = [f for f in full if f[1] == min((f[1] for f in full), key=SPATIAL[self.x.ndim].index)]
        if len(full) > 1:
            raise Unclear(
                f"{self.what}: several of its axes follow the same axis of the input, so it is unclear "
                "which are positions",
                "pass channels_last=, or choose another layer",
            )
        moves = full[0][0]
        tops = {s: moves.get(s, group[0]) for s, group in groups.items() if group}
        if (
            self.x.ndim != 3
            or len(tops) < 2
            or len(moves) == 2 != len(sample)
            or len(set(moves.values())) < len(moves)
        ):
            return full[0]
        # (N, C, T) or (N, L, D): the output may follow channels as well
        axis = self._sequence(tops) if len(set(tops.values())) == 2 else None
        single = [f for f in found if axis is not None and f[0] == {axis: tops[axis]}]
        if not single:
            raise Unclear(
                f"{self.what}: it follows both axes of the input, so it is unclear which are positions",
                "pass channels_last=True for outputs (N, L, C), False for (N, C, L)",
            )
        return single[0]

    def _sequence(self, tops: dict[int, int]) -> int | None:
        """Which axis of an input (N, C, T) or (N, L, D) is the sequence, where the output follows both.

        Shifting the input along a sequence shifts the output. Where that is not clear, as after strides, the
        axis that is followed by far the most, if the other is not followed in order.
        """
        centres = {s: self.seen.centres(s, a) for s, a in tops.items()}
        first = self.x[:1]
        out = self.seen.run([first, *(first.roll(self.x.shape[s] // 2, s) for s in tops)])
        error = {}
        for k, (s, a) in enumerate(tops.items(), 1):
            moved = out[0].roll(out.shape[1 + a] // 2, a)
            error[s] = float((out[k] - moved).norm() / (out[k] - out[0]).norm().clamp(min=1e-30))
        best, other = sorted(error, key=lambda s: error[s])
        if error[best] <= 0.6 * error[other]:
            # a few channels may shift so by chance
            least = centres[other].movement / (8 if len(centres[best].at) > 4 else 1)
            return best if centres[best].movement > least else None
        most, least = sorted(centres, key=lambda s: -centres[s].movement)
        line = centres[least].at
        share, _ = explained(line, (np.arange(len(line)) + 0.5) / len(line), len(self.seen.changes[least]))
        return most if centres[most].movement > 8 * centres[least].movement and abs(share) < 0.5 else None

    def _fit(self, axis: int, along: list[int], inputs: tuple[int, ...], moving: int) -> _Fit:
        """The prefix and the sides of the grid along an axis of the output that best explain its centres."""
        centres = [self.seen.centres(s, axis) for s in along]
        n = self.seen.changes[along[0]].shape[1 + axis]
        # along a line the ends decide, where misfit of the line counts more than noise
        count = n if len(along) == 1 else n * min(GROUPS, self.seen.changes[along[0]][0].numel() // n)
        beside = max(_SPECIAL, self.special or 0) if len(along) == moving else 0
        fits = []
        for prefix, sides, order in self._grids(n, along, inputs, beside):
            index = np.unravel_index(np.arange(math.prod(sides)), [sides[o] for o in order])
            loss, share, slope = 0.0, 1.0, 1.0
            live = ~np.isnan(centres[0].at[prefix : prefix + len(index[0])])
            plausible = all(
                e in i[live] for i, o in zip(index, order, strict=True) for e in (0, sides[o] - 1)
            )
            for k, m in enumerate(centres):
                u = np.full(n, 0.5)
                u[prefix : prefix + len(index[0])] = (index[order.index(k)] + 0.5) / sides[k]
                r2, along_u = explained(m.at, u, len(self.seen.changes[along[k]]))
                rest = float(m.scatter.mean()) + (1 - max(r2, 0.0)) * m.spread
                loss += count * math.log(max(rest, 1e-4 * m.spread, 1e-12))
                share, slope = min(share, r2), min(slope, along_u)
                noise = 0.0 if m.noise is None else float(m.noise.mean())
                # of stripes finer than tokens all centres must lie within half a token of their place
                most = 0.1 * (along_u / sides[k]) ** 2 if self.strict else max(0.1 * m.spread, 3 * noise)
                plausible = plausible and (1 - r2) * m.spread <= most
            part = Part(axis, tuple(inputs.index(along[o]) for o in order), prefix)
            fits.append((loss, _Fit(part, dict(zip(along, sides, strict=True)), slope, share, plausible)))
        fits.sort(key=lambda f: f[0])
        # the order of tokens is chosen among many, so it must fit better
        chosen = beside or len(along) > 1
        enough = 0.75 if len(along) > 1 and fits and fits[0][1].slope < 0.5 else 0.5
        if not fits or fits[0][1].share < enough or (chosen and not fits[0][1].plausible):
            raise Unclear(
                f"{self.what}: the {n} entries along its axis {axis + 1} are in no order that the rows and "
                "columns of the input explain (windows, or mixed by the model)",
                "choose another layer, or pass channels_last=, grid= and prefix= if you know the order, for "
                "sequences with resize=False",
            )
        near = [fit for loss, fit in fits if loss < fits[0][0] + _CLEAR]
        if len(near) > 1 and self.special is not None:
            near = [f for f in near if f.part.prefix == self.special] or near
        if len(near) > 1:
            options = "; ".join(
                f"grid={tuple(f.sides.values())} after prefix={f.part.prefix}" for f in near[:4]
            )
            raise Unclear(
                f"{self.what}: its {n} entries along axis {axis + 1} may be {options}",
                "say which with prefix= and grid=, or choose an earlier layer",
            )
        best = near[0]
        dense = best.sides[along[0]] / self.x.shape[along[0]]
        if self.wish.grid is None and self.x.ndim < 4 and dense > 1.5:
            raise Unclear(
                f"{self.what}: its {n} positions are more than the {self.x.shape[along[0]]} of the input",
                "pass grid= if that is right, or choose another layer",
            )
        return best

    def _grids(
        self, n: int, along: list[int], inputs: tuple[int, ...], most: int
    ) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """Prefix, sides and order of the sides of all grids of n tokens with up to `most` tokens beside the
        grid."""
        prefix, grid = self.wish.prefix, self.wish.grid
        wished = None
        if grid is not None and len(grid) == len(inputs):
            wished = tuple(grid[inputs.index(s)] for s in along)
        if wished is not None:
            beside = n - math.prod(wished)
            ends = [(p, beside - p) for p in range(beside + 1) if prefix is None or p == prefix]
        elif prefix is not None and most:
            ends = [(prefix, q) for q in range(most + 1)]
        else:
            ends = [(p, 0) for p in range(most + 1)] + [(0, q) for q in range(1, most + 1)]
        natural = tuple(range(len(along)))
        orders = [natural] if len(along) > 2 else list(itertools.permutations(natural))
        for p, q in ends:
            for sides in (
                _factors(n - p - q, [self.x.shape[s] for s in along]) if wished is None else [wished]
            ):
                for order in orders:
                    yield p, sides, order


def _factors(n: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sides above one with product n, each at most the input's where there are several."""
    if len(sizes) == 1:
        if n > 1:
            yield (n,)
        return
    for side in range(2, min(n, sizes[0]) + 1):
        if n % side == 0:
            for rest in _factors(n // side, sizes[1:]):
                if rest[0] <= sizes[1]:
                    yield (side, *rest)
