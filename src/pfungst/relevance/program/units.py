"""The live units of an image, and what a transposed map does on them.

A cotangent is a matrix of live units × vectors, sorted by position; a convolution is one matrix product for
each position and row of taps, of the weights between live units only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pfungst.relevance.program.windows import Convolution

LINE = 16  # values in a line of the cache: products are fastest for multiples of it
_VALUES = 1 << 16  # of a matrix that are combined with those of another at a time, in the cache

#: First vector that is anything in a row of an image, and last + 1.
Reach = Sequence[tuple[int, int]]

# Costs in multiplications of a matrix product, from timings on two cores.
CALL = 2.4e6  # of one more matrix product
SELECT = 52  # of a selected weight
PASS = 60  # of a value that is scaled or added


class Units:
    """Live units of an image of shape (C, H, W), by position and then channel.

    Attributes:
        index: (L,) position · C + channel.
        channel, column: (L,) of each unit.
        start: first unit of each position, row by row, and L.
    """

    def __init__(self, live: Tensor) -> None:
        """`live` (C, H, W): whether anything passes through."""
        channels, height, width = self.shape = tuple(live.shape)
        self.index = live.permute(1, 2, 0).flatten().nonzero()[:, 0]
        self.channel = self.index % channels
        self.column = self.index // channels % width
        ends = torch.arange(height * width + 1) * channels
        self.start: list[int] = torch.searchsorted(self.index, ends).tolist()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def counts(self) -> Tensor:
        """(H, W) live units of each position."""
        return torch.tensor(self.start).diff().view(self.shape[1:]).double()

    def select(self, c: Tensor) -> Tensor:
        """Values (L, 1) of a constant (C, H, W)."""
        return c.permute(1, 2, 0).flatten()[self.index, None]

    def rows_in(self, other: Units) -> tuple[Tensor, Tensor]:
        """For each unit its row in `other` (0 where it has none), and whether it has one."""
        place = torch.searchsorted(other.index, self.index)
        known = torch.cat([other.index, other.index.new_tensor([-1])])
        found = known[place] == self.index
        return torch.where(found, place, 0), found

    def gather(self, pieces: Iterable[Tensor]) -> Tensor:
        """Images (m, C, H, W) → (L, M'), all in turn, filled up with zeros to a multiple of `LINE`."""
        found = [g.permute(0, 2, 3, 1).flatten(1).index_select(1, self.index) for g in pieces]
        found.append(found[0].new_zeros(-sum(map(len, found)) % LINE, len(self)))
        return torch.cat(found).T.contiguous()

    def collect(self, vectors: Tensor, sources: Tensor) -> Tensor:
        """Images (G, C, H, W) → (L, M'), filled up with zeros as by :meth:`gather`.

        Args:
            sources: (H · W, M) which of the images each vector is at each position, G for zero.
        """
        count, pixels = sources.shape[1], vectors.permute(2, 3, 0, 1).flatten(0, 1)
        out = vectors.new_zeros(len(self), count + -count % LINE)
        for place, (low, high) in enumerate(pairwise(self.start)):
            if low < high:
                here = pixels[place].index_select(1, self.channel[low:high])
                here = torch.cat([here, here.new_zeros(1, high - low)])
                out[low:high, :count] = here.index_select(0, sources[place]).T
        return out

    def scatter(self, g: Tensor, vectors: int) -> Iterator[Tensor]:
        """(L, M') → pieces of M images (M, C, H, W), channels last in memory, zero where nothing is live."""
        channels, height, width = self.shape
        rows = torch.full((channels * height * width,), len(self))
        rows[self.index] = torch.arange(len(self))
        for part in g[:, :vectors].split(LINE, 1):
            part = torch.cat([part, part.new_zeros(1, part.shape[1])])
            images = part.index_select(0, rows).T.contiguous()
            yield images.view(-1, height, width, channels).permute(0, 3, 1, 2)


class Link:
    """A term of a sum, or a product with a constant: the same units on both sides.

    Args:
        source: units whose cotangent is known, at the output.
        target: units of the input.
        c: the constant (C, H, W).
    """

    def __init__(self, source: Units, target: Units, c: Tensor) -> None:
        self.source, self.target, self.c = source, target, c

    def cost(self, vectors: int) -> float:
        """Of one of so many vectors."""
        return PASS * len(self.target)

    @cached_property
    def _back(self) -> tuple[Tensor, Tensor]:
        """For each unit of the target its row in the source, and what that is multiplied by."""
        return self._rows(self.target, self.source)

    @cached_property
    def _ahead(self) -> tuple[Tensor, Tensor]:
        return self._rows(self.source, self.target)

    def _rows(self, wanted: Units, given: Units) -> tuple[Tensor, Tensor]:
        rows, found = wanted.rows_in(given)
        return rows, wanted.select(self.c) * found[:, None]

    def run(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write, if it is the first, or add to `out` (L', M) what the cotangent (L, M) of the source makes of
        it."""
        self._scale(self._back, g, out, first)

    def forward(self, t: Tensor, out: Tensor, first: bool, reach: Reach | None) -> None:
        """Write or add to `out` (L, M) what the tangent (L', M) of the target makes of it."""
        self._scale(self._ahead, t, out, first)

    @staticmethod
    def _scale(how: tuple[Tensor, Tensor], g: Tensor, out: Tensor, first: bool) -> None:
        rows, constants = how
        if not len(g):
            if first:
                out.zero_()
            return
        step = max(1, _VALUES // g.shape[1])
        for into, index, c in zip(*(v.split(step) for v in (out, rows, constants)), strict=True):
            part = g.index_select(0, index)
            if first:
                torch.mul(part, c, out=into)
            else:
                into.addcmul_(part, c)


class Taps:
    """Convolutions of one value, one for each unit of the output, which is multiplied by a constant.

    Args:
        source: units whose cotangent is known, at the output.
        target: units of the input.
        convs: of the same kernel, stride, padding and dilation, in one group.
        c: the constant (O, H', W').
        which: (O, H', W') number of the convolution of each unit.
    """

    def __init__(
        self, source: Units, target: Units, convs: Sequence[Convolution], c: Tensor, which: Tensor
    ) -> None:
        self.source, self.target, self.convs, self.conv = source, target, convs, convs[0]
        self.c = source.select(c)
        self.outs, self.ins, *self.kernel = self.conv.weight.shape
        # Taps of one row of the kernel see neighbours, which lie one after the other.
        self.joined = self.conv.stride[1] == 1 and self.conv.dilation[1] == 1
        self.which = source.select(which)[:, 0]

    def cost(self, vectors: int) -> float:
        """Of one of so many vectors."""
        conv, taps = self.conv, self.kernel[0] * self.kernel[1]
        seen = F.conv2d(
            self.target.counts[None, None],
            torch.ones(1, 1, *self.kernel, dtype=torch.float64),
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
        )[0, 0]
        products = float((seen * self.source.counts).sum())
        selected = products + len(self.source) * taps * self.ins
        places = self.target.shape[1] * self.target.shape[2]
        calls = places * (self.kernel[0] if self.joined else taps / conv.stride[1]) / conv.stride[0]
        return products + (selected * SELECT + calls * CALL) / vectors

    @cached_property
    def _back(self) -> tuple[Tensor, Tensor]:
        """Weights, one row (C,) for each convolution, tap and output channel; and where those of each unit of
        the source begin, for the first tap, or for the tap in its column."""
        first = self.source.channel + self.which * (self.kernel[0] * self.kernel[1] * self.outs)
        row = first - self.source.column * self.outs if self.joined else first
        return _stacked([conv.taps for conv in self.convs]), row

    @cached_property
    def _ahead(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, one row (columns of the kernel · C,) for each convolution, row of the kernel and output
        channel; where those of each unit of the source begin, and the column of each of the target, were the
        kernel as wide as the image."""
        row = self.source.channel + self.which * (self.kernel[0] * self.outs)
        column = self.target.channel + self.target.column * self.ins
        return _stacked([conv.rows for conv in self.convs]), row, column

    def _seeing(self, row: int, column: int) -> Iterator[tuple[int, int, int]]:
        """Source units that see a position of the target: first, last + 1, and offset of their rows of
        weights."""
        (_, height, width), start = self.source.shape, self.source.start
        (sh, sw), (ph, pw), (dh, dw) = self.conv.stride, self.conv.padding, self.conv.dilation
        for a in range(self.kernel[0]):
            y, between = divmod(row + ph - a * dh, sh)
            if between or not 0 <= y < height:
                continue
            if self.joined:
                low, high = max(0, column + pw - self.kernel[1] + 1), min(width - 1, column + pw)
                if low <= high:
                    offset = (a * self.kernel[1] + column + pw) * self.outs
                    yield start[y * width + low], start[y * width + high + 1], offset
                continue
            for b in range(self.kernel[1]):
                x, between = divmod(column + pw - b * dw, sw)
                if not between and 0 <= x < width:
                    place = y * width + x
                    yield start[place], start[place + 1], (a * self.kernel[1] + b) * self.outs

    def _seen(self, row: int, column: int) -> Iterator[tuple[int, int, int, int]]:
        """Target units that a position of the source sees: first, last + 1, row of the kernel, and offset of
        their columns of weights."""
        (_, height, width), start = self.target.shape, self.target.start
        (sh, sw), (ph, pw), (dh, dw) = self.conv.stride, self.conv.padding, self.conv.dilation
        left = column * sw - pw
        for a in range(self.kernel[0]):
            y = row * sh - ph + a * dh
            if not 0 <= y < height:
                continue
            if dw == 1:
                low, high = max(0, left), min(width, left + self.kernel[1])
                if low < high:
                    yield start[y * width + low], start[y * width + high], a, left * self.ins
                continue
            for b in range(self.kernel[1]):
                if 0 <= left + b * dw < width:
                    place = y * width + left + b * dw
                    yield start[place], start[place + 1], a, (left + b * (dw - 1)) * self.ins

    def run(self, g: Tensor, out: Tensor, first: bool) -> None:
        """Write, if it is the first, or add to `out` (L', M) what the cotangent (L, M) of the source makes of
        it."""
        width, (weights, row) = self.target.shape[2], self._back
        for place, (low, high) in enumerate(pairwise(self.target.start)):
            if low == high:
                continue
            into, channels, fresh = out[low:high], self.target.channel[low:high], first
            for a, b, offset in self._seeing(*divmod(place, width)):
                if a == b:
                    continue
                weight = weights.index_select(0, row[a:b] + offset).index_select(1, channels)
                fresh = _product(weight.mul_(self.c[a:b]).T, g[a:b], into, fresh)
            if fresh:
                into.zero_()

    def forward(self, t: Tensor, out: Tensor, first: bool, reach: Reach | None) -> None:
        """Write or add to `out` (L, M) what the tangent (L', M) of the target makes of it; of the vectors in
        `reach` of each row only."""
        width, (weights, row, column) = self.source.shape[2], self._ahead
        for place, (low, high) in enumerate(pairwise(self.source.start)):
            if low == high:
                continue
            vectors = slice(None) if reach is None else slice(*reach[place // width])
            into, channels, c, fresh = out[low:high, vectors], row[low:high], self.c[low:high], first
            for a, b, line, offset in self._seen(*divmod(place, width)):
                if a == b:
                    continue
                weight = weights.index_select(0, channels + line * self.outs)
                weight = weight.index_select(1, column[a:b] - offset)
                fresh = _product(weight.mul_(c), t[a:b, vectors], into, fresh)
            if fresh:
                into.zero_()


def _stacked(weights: list[Tensor]) -> Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _product(a: Tensor, b: Tensor, out: Tensor, first: bool) -> bool:
    """Write, if it is the first, or add a · b; whether the next is the first."""
    if first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)
    return False
