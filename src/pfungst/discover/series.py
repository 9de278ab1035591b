"""Time series as images of height 1, so that what holds of images holds of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.spurious.heads import logits_of


class OverTime(nn.Module):
    """A classifier of series as one of images (N, C, 1, T) in [0, 1], the range of each channel in the data:
    what is changed stays in the range that was observed. Patches are windows of time, the two-dimensional
    cosine transform of one row is that over time, mean and spread are level and amplitude.

    Args:
        model: maps (N, C, T) to logits (N, K); where there is one channel, (N, T) will do.
        series: (N, C, T) of the data set, in the model's units.

    Raises:
        InputError: the model takes neither, or gives no logits.
    """

    def __init__(self, model: nn.Module, series: Tensor) -> None:
        super().__init__()
        low, high = series.amin((0, 2))[:, None, None], series.amax((0, 2))[:, None, None]
        self.register_buffer("low", low)
        self.register_buffer("span", (high - low).clamp_min(1e-12))
        few = series[:2].to(next(model.parameters(), low).device)
        self.lines = _Lines(model.eval(), _flat(model, few))

    def scaled(self, series: Tensor) -> Tensor:
        """(N, C, T) → (N, C, 1, T) in [0, 1]."""
        return (series[:, :, None] - self.get_buffer("low")) / self.get_buffer("span")

    def units(self, x: Tensor) -> Tensor:
        """The opposite, but for the shape: (N, C, 1, T) in the model's units."""
        return x * self.get_buffer("span") + self.get_buffer("low")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, T) → logits (N, K)."""
        return self.lines(self.units(x))


class _Lines(nn.Module):
    def __init__(self, model: nn.Module, flat: bool) -> None:
        super().__init__()
        self.model, self.flat = model, flat

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model(x[:, 0, 0] if self.flat else x.squeeze(2)))


def _flat(model: nn.Module, few: Tensor) -> bool:
    """Whether a model takes (N, T) and not (N, C, T)."""
    problems = []
    for flat in (False, True)[: 2 if few.shape[1] == 1 else 1]:
        given = few[:, 0] if flat else few
        shape = tuple(given.shape)
        try:
            with torch.no_grad():
                said = logits_of(model(given))
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            problems.append(f"series of shape {shape}: {str(error).splitlines()[0]}")
            continue
        if said.ndim == 2 and len(said) == len(few) and said.shape[1] > 1:
            return flat
        problems.append(f"series of shape {shape}: its output has shape {tuple(said.shape)}")
    raise InputError(
        f"the model does not classify {'; '.join(problems)}",
        "give a function that returns a module which maps (N, C, T) to logits (N, K), K > 1; wrap one that "
        "takes (N, T, C)",
    )


def as_read(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """What is explained, and what of: of series the values that the network reads, whose zero, and not the
    least that was observed, stands for no relevance."""
    return (model.lines, model.units(x)) if isinstance(model, OverTime) else (model, x)
