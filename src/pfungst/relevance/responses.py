"""Where in the input the entries of a layer's output look: the responses to disturbances of stripes of one
input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import InputError

_STRIPES = {2: 8, 3: 8, 4: 4, 5: 4}  # along each axis of the input, by its number of axes
_FINE = 32
GROUPS = 8  # of channels, whose centres tell the noise
#: Axes of the input that may be positions, for inputs (N, T), (N, C, T) or (N, L, D) or (N, T, F), (N, C, H,
#: W) or (N, H, W, C), (N, C, T, H, W) or (N, T, C, H, W); the first that fits.
SPATIAL: dict[int, list[tuple[int, ...]]] = {
    2: [(1,)],
    3: [(2,), (1,), (1, 2)],
    4: [(2, 3), (1, 2)],
    5: [(2, 3, 4), (1, 3, 4)],
}

Respond = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Centres:
    """Where along an axis of the input the entries along an axis of the output look, from 0 to 1.

    Attributes:
        at: (n,) the centre of the stripes that an entry responds to; NaN where it responds to none.
        scatter: (n,) variance of the centres of groups of the other axes around it.
        noise: (n,) variance of `at` by that scatter, or None where there are no groups.
    """

    at: np.ndarray
    scatter: np.ndarray
    noise: np.ndarray | None

    @classmethod
    def along(cls, response: Tensor, axis: int) -> Centres:
        """The centres along an axis of the output of one input, from the responses (stripes, *output)."""
        stripes, n = len(response), response.shape[1 + axis]
        response = response.cpu() if response.device.type == "mps" else response  # which has no float64
        r = response.movedim(1 + axis, 1).reshape(stripes, n, -1)
        groups = min(GROUPS, r.shape[2])
        # interleaved, so that each group has its share of everything
        power = torch.stack([r[..., g::groups].double().mean(-1) for g in range(groups)], -1).sqrt()
        total = power.mean((1, 2), keepdim=True)
        power = (power / torch.where(total > 0, total, 1.0)).cpu()
        where = (torch.arange(stripes, dtype=power.dtype) + 0.5) / stripes
        mass = power.sum(0)
        centre = torch.einsum("j,jng->ng", where, power) / torch.where(mass > 0, mass, 1.0)
        share = mass / mass.sum(1, keepdim=True).clamp(min=1e-30)  # what does not respond does not count
        at = torch.where(mass.sum(1) > 0, (share * centre).sum(1), torch.nan)
        off = (centre - at.nan_to_num()[:, None]).square()
        noise = ((share.square() * off).sum(1) * groups / (groups - 1)).numpy() if groups > 1 else None
        return cls(at.numpy(), (share * off).sum(1).numpy(), noise)

    @property
    def spread(self) -> float:
        """Variance of the centres."""
        live = self.at[~np.isnan(self.at)]
        return float(live.var()) if len(live) > 1 else 0.0

    @property
    def movement(self) -> float:
        """Variance of the centres beyond that of the noise; 0 where it is not significant."""
        if self.noise is None:
            return self.spread if self.spread > 5e-3 else 0.0
        noise = float(self.noise.mean())
        return self.spread - noise if self.spread > max(4 * noise, 1e-5) else 0.0


def explained(m: np.ndarray, u: np.ndarray, stripes: int) -> tuple[float, float]:
    """Share of the variance of centres m that positions u explain (adjusted R²), and the slope of m along u.

    Centres of sharp responses are steps between the centres of the stripes, those of blurred ones a line.
    """
    live = ~np.isnan(m)
    m, u, n = m[live], u[live], int(live.sum())
    if not n:
        return 0.0, 0.0
    step = np.where(u == 0.5, 0.5, (np.floor(u * stripes).clip(0, stripes - 1) + 0.5) / stripes)
    y, a, b = (v - v.mean() for v in (m, u, step))
    if not a.any() or not y.any():
        return 0.0, 0.0
    slope = float(y @ a / (a @ a))
    if slope <= 0:
        return -1.0, slope
    b = b - a * (a @ b) / (a @ a)
    share, used = (y @ a) ** 2 / (a @ a), 1
    if n > stripes and b @ b > 1e-9:
        share, used = share + (y @ b) ** 2 / (b @ b), 2
    rest = max(1 - float(share / (y @ y)), 0.0)
    return 1 - rest * (n - 1) / max(n - 1 - used, 1), slope


class Responses:
    """What a layer's output does when one input is disturbed.

    Args:
        respond: inputs (M, *sample) → the layer's output.
        x: (N, *sample).
        shape: of the layer's output for `x`.
        layer: its name, for messages.

    Attributes:
        batch: axis of the output that counts the inputs.
        changes: for each axis of the input the mean square changes (stripes, *output) of one input's output.
    """

    def __init__(self, respond: Respond, x: Tensor, shape: tuple[int, ...], layer: str) -> None:
        self.respond, self.x, self.shape, self.layer = respond, x, shape, layer
        self.batch = 0
        self.changes: dict[int, Tensor] = {}
        self._known: dict[tuple[int, int], Centres] = {}

    @property
    def sample(self) -> tuple[int, ...]:
        """Shape of one input's output."""
        return tuple(next(iter(self.changes.values())).shape[1:])

    def centres(self, s: int, axis: int) -> Centres:
        """Where along the axis `s` of the input the entries along an axis of the output look."""
        if (s, axis) not in self._known:
            self._known[s, axis] = Centres.along(self.changes[s], axis)
        return self._known[s, axis]

    def disturb(self, rounds: int, fine: bool = False) -> None:
        """Measure the mean square responses to random disturbances of each stripe; fine stripes tell windows
        apart."""
        x = self.x
        axes = sorted({a for axes in SPATIAL[x.ndim] for a in axes})
        if x.ndim == 4 and x.shape[3] > 4:
            axes = [2, 3]  # no channels at the end
        most = _FINE if fine else _STRIPES[x.ndim]
        stripes = {a: min(most, x.shape[a]) for a in axes if x.shape[a] > 1}
        generator = torch.Generator().manual_seed(0)
        total: Tensor | None = None
        for r in range(rounds):
            first = x[r % len(x)][None]
            spread = float(first.float().std(correction=0)) or 1.0
            variants = [first]
            noise = torch.randn(first.shape, generator=generator)
            noise += torch.randn((*first.shape[:2], *[1] * (x.ndim - 2)), generator=generator)
            noise = (noise * spread).to(first)
            for axis, count in stripes.items():
                for j in range(count):
                    start, stop = round(j * x.shape[axis] / count), round((j + 1) * x.shape[axis] / count)
                    changed = first.clone()
                    part = noise.narrow(axis, start, stop - start)
                    changed.narrow(axis, start, stop - start).add_(part)
                    variants.append(changed)
            out = self.run(variants)
            change = (out[1:] - out[:1]).abs()
            change[change <= 16 * torch.finfo(x.dtype).eps * out.abs().max()] = 0.0  # arithmetic
            total = change.square() if total is None else total + change.square()
        assert total is not None
        if not bool(torch.isfinite(total).all()):
            raise InputError(
                f"layer {self.layer} returns NaN or infinity", "choose another layer or repair the model"
            )
        self._known.clear()
        self.changes = dict(zip(stripes, total.split(list(stripes.values())), strict=True))

    def run(self, variants: list[Tensor]) -> Tensor:
        """The layer's output for single inputs, (len(variants), *output)."""
        n = len(self.x)
        many = min(n + 1, max(len(variants), 2))
        many += many == n  # another size than that of the inputs tells the batch axis
        outs = []
        for start in range(0, len(variants), many):
            chunk = variants[start : start + many]
            out = self.respond(torch.cat(chunk + variants[:1] * (many - len(chunk))))
            self.batch = self._batch_axis(out.shape, many)
            outs.append(out.movedim(self.batch, 0)[: len(chunk)].float())
        return torch.cat(outs)

    def _batch_axis(self, other: Sequence[int], m: int) -> int:
        shape, n = self.shape, len(self.x)
        changed = [a for a in range(len(shape)) if len(shape) != len(other) or shape[a] != other[a]]
        if len(shape) == len(other) and len(changed) == 1:
            axis = changed[0]
            if shape[axis] == n and other[axis] == m:
                return axis
            if shape[axis] * m == other[axis] * n:
                raise InputError(
                    f"axis {axis} of the output {shape} of layer {self.layer} holds {shape[axis] // n} "
                    f"windows, or the like, of each of {n} inputs",
                    "choose the layer around it, whose output has one entry per input",
                )
        raise InputError(
            f"no axis of the output {shape} of layer {self.layer} counts the inputs: {m} of them give "
            f"{tuple(other)}",
            "choose another layer",
        )
