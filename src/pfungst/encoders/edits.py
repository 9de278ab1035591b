"""Edits of an encoder that are saved with it: filters set to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.encoders.encoder import Encoder
from pfungst.errors import InputError
from pfungst.suggest import suggest

Span = tuple[int | None, int | None]


class FilterMask(nn.Module):
    """A module whose output has some filters set to zero, everywhere or in a region.

    It stands where the module was: attributes of the module remain reachable, and the zeroing is one
    `masked_fill`, so that relevance propagation and `torch.func` see an ordinary linear operation.

    Args:
        module: gives (N, C, H, W), or (N, L, C) for transformers.
        filters: indices of the channels.
        rows: first and last (exclusive) row of the region, None for the border; tokens for transformers.
        cols: the same for columns.
        size: height and width of the map for which rows and cols are stated; they scale with another one.
    """

    def __init__(
        self,
        module: nn.Module,
        filters: Sequence[int],
        rows: Span | None = None,
        cols: Span | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.filters, self.rows, self.cols, self.size = tuple(filters), rows, cols, size

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.module(*args, **kwargs)
        return out.masked_fill(self.mask(out), 0.0)

    def mask(self, out: Tensor) -> Tensor:
        """True where the output is set to zero; broadcasts against it."""
        image = out.ndim == 4
        channels = out.shape[1] if image else out.shape[-1]
        dropped = [False] * channels
        for i in self.filters:
            dropped[i] = True
        mask = torch.tensor(dropped, device=out.device)
        if not image:
            if self.rows is not None and out.ndim == 3:
                inside = self._inside(self.rows, out.shape[1], 0)
                return torch.tensor(inside, device=out.device)[:, None] & mask
            return mask
        height = torch.tensor(self._inside(self.rows, out.shape[2], 0), device=out.device)
        width = torch.tensor(self._inside(self.cols, out.shape[3], 1), device=out.device)
        return mask[:, None, None] & height[:, None] & width

    def _inside(self, span: Span | None, length: int, axis: int) -> list[bool]:
        first, last = span or (None, None)
        scale = length / self.size[axis] if self.size is not None else 1.0
        low = 0 if first is None else round(first * scale)
        high = length if last is None else round(last * scale)
        return [low <= i < high for i in range(length)]

    def extra_repr(self) -> str:
        return f"filters={list(self.filters)}, rows={self.rows}, cols={self.cols}"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None:
                raise
            return getattr(module, name)


def resolve_layer(encoder: Encoder, layer: str) -> str:
    """The full name of a layer below `encoder.features`.

    OpenAI's names relu1 … relu3 of the CLIP stem are understood for open_clip's act1 … act3.

    Raises:
        InputError: there is no such layer; similar names are suggested.
    """
    names = [n for n, _ in encoder.features.named_modules() if n]
    candidates = (layer, layer.removeprefix("features."), layer.removeprefix("encoder."))
    for name in (*candidates, *(c.replace("relu", "act") for c in candidates)):
        if name in names:
            return name
    raise InputError(f"{encoder.name} has no layer {layer!r}", suggest(layer, names, "layers"))


def folded_state(encoder: Encoder) -> dict[str, Tensor] | None:
    """The state dict of the unpruned network, under its own names, that computes what a pruned one does.

    A filter that is off everywhere has weights of zero: those of a linear layer or a batch normalisation, or
    of the one before an activation that keeps zero, where both stand in one sequence.

    Returns:
        None where an edit is not of that kind: it switches a region off, or another module.
    """
    masks = {n: m for n, m in encoder.features.named_modules() if isinstance(m, FilterMask)}

    def plain(name: str) -> str:
        for mask in sorted(masks, key=len, reverse=True):
            if name.startswith(f"{mask}.module"):
                name = mask + name.removeprefix(f"{mask}.module")
        return name

    state = {plain(k): v.detach().clone() for k, v in encoder.features.state_dict().items()}
    modules = {plain(n): m for n, m in encoder.features.named_modules() if not isinstance(m, FilterMask)}
    for name, mask in masks.items():
        place = plain(name)
        module = modules[place]
        parent, _, last = place.rpartition(".")
        if isinstance(module, _KEEP_ZERO) and isinstance(modules[parent], nn.Sequential):
            names = list(modules[parent]._modules)
            before = names.index(last) - 1
            place = f"{parent}.{names[before]}".lstrip(".") if before >= 0 else place
            module = modules[place]
        whole = mask.rows in (None, (None, None)) and mask.cols in (None, (None, None))
        if not whole or not isinstance(module, _WEIGHTED):
            return None
        for key in (f"{place}.weight", f"{place}.bias"):
            if key in state:
                state[key][list(mask.filters)] = 0
    return state


_KEEP_ZERO = (nn.ReLU, nn.GELU, nn.SiLU, nn.Identity)
_WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def apply_edit(encoder: Encoder, edit: dict[str, Any]) -> None:
    """Put a :class:`FilterMask` into an encoder, in place, and note it in `encoder.edits`."""
    layer = edit["layer"]
    span = lambda v: None if v is None else (v[0], v[1])
    mask = FilterMask(
        encoder.features.get_submodule(layer),
        edit["filters"],
        span(edit["rows"]),
        span(edit["cols"]),
        None if edit["size"] is None else (edit["size"][0], edit["size"][1]),
    )
    *path, last = layer.split(".")
    parent = encoder.features.get_submodule(".".join(path))
    setattr(parent, last, mask.train(encoder.training))
    encoder.edits = [*encoder.edits, edit]
