"""Locally aware patch features of a network's middle layers (Roth et al. 2022, "Towards total recall in
industrial anomaly detection", section 3.1).

Per layer the 3 × 3 neighbourhoods of all positions are pooled over (channel, row, column) to one length, the
grids are brought to that of the first layer by bilinear interpolation, and the layers are pooled together to
the target length. Pooling and interpolation are linear along different axes, so they are done in the cheaper
order (the published code interpolates before it pools).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.errors import ConfigError, InputError


class _Done(Exception):
    """All layers were seen; the rest of the forward pass is not needed."""


class LayerTap(nn.Module):
    """The outputs of named layers of a network; the forward pass stops after the last of them.

    Args:
        network: any module.
        layers: names as in ``network.named_modules()``, in any order.

    Raises:
        ConfigError: a name that the network lacks.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        known = dict(network.named_modules())
        for name in layers:
            if name not in known or not name:
                top = ", ".join(n for n in known if n and "." not in n)
                raise ConfigError(f"{type(network).__name__} has no layer {name!r}", f"top layers: {top}")
        if not layers or len(set(layers)) != len(layers):
            raise ConfigError(f"layers {list(layers)}", "name at least one layer, none twice")
        self.network = network
        self.layers = tuple(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen: dict[str, Tensor] = {}
        with self._hooks(seen), suppress(_Done):
            self.network(x)
        missing = [name for name in self.layers if name not in seen]
        if missing:
            raise ConfigError(
                f"layers {missing} take no part in the forward pass", "name layers that are used"
            )
        return [seen[name] for name in self.layers]

    @contextmanager
    def _hooks(self, seen: dict[str, Tensor]) -> Iterator[None]:
        modules = dict(self.network.named_modules())
        handles = []

        def keep(name: str):
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                seen[name] = output
                if len(seen) == len(self.layers):
                    raise _Done

            return hook

        try:
            for name in self.layers:
                handles.append(modules[name].register_forward_hook(keep(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def middle_layers(network: nn.Module, side: int = 224) -> tuple[str, str]:
    """The last layers whose maps have an eighth and a sixteenth of the image's side: the paper's levels 2 and
    3.

    Args:
        network: looked at in one pass over an image of zeros; its modules and the parts of its sequences
            count.
        side: of that image, in pixels.

    Raises:
        ConfigError: it has none.
    """
    found: dict[int, str] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            found[round(math.log2(side / output.shape[-1]))] = name

    known = dict(network.named_modules())
    chained = lambda n: "." not in n or isinstance(known[n.rpartition(".")[0]], nn.Sequential)
    names = [(n, m) for n, m in known.items() if n and n.count(".") < 2 and chained(n)]
    handles = [m.register_forward_hook(partial(note, n)) for n, m in names]
    try:
        with torch.no_grad(), suppress(RuntimeError, AssertionError, ValueError):
            network(torch.zeros(1, 3, side, side))
    finally:
        for handle in handles:
            handle.remove()
    if 3 not in found or 4 not in found:
        top = ", ".join(n for n, _ in names if "." not in n)
        raise ConfigError(
            f"{type(network).__name__} has no layers that divide images by 8 and by 16",
            f"name layers; top layers: {top}",
        )
    return found[3], found[4]


class PatchFeatures(nn.Module):
    """Normalised images (N, C, H, W) → patch features (N, D, h, w).

    Args:
        network: any convolutional network (or any whose layers give maps (N, C, h, w)).
        layers: names of layers; the first sets the grid.
        patch: side of the neighbourhood, in cells of a layer's map. Even sides shrink the grid by one.
        stride: between neighbourhoods.
        layer_dim: length each layer is pooled to.
        dim: length D of a patch's feature.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] = ("layer2", "layer3"),
        patch: int = 3,
        stride: int = 1,
        layer_dim: int = 1024,
        dim: int = 1024,
    ) -> None:
        super().__init__()
        if min(patch, stride, layer_dim, dim) < 1:
            raise ConfigError(
                f"patch {patch}, stride {stride}, layer_dim {layer_dim}, dim {dim}", "use positive numbers"
            )
        self.tap = LayerTap(network, layers)
        self.patch, self.stride, self.layer_dim, self.dim = patch, stride, layer_dim, dim

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.tap(x))

    def embed(self, maps: Sequence[Tensor]) -> Tensor:
        """Layer maps (N, C_l, h_l, w_l) → patch features (N, D, h, w)."""
        for name, part in zip(self.tap.layers, maps, strict=True):
            if part.ndim != 4:
                raise ConfigError(
                    f"layer {name} gives outputs of shape {tuple(part.shape)}, not maps (N, C, h, w)",
                    "name a convolutional layer",
                )
        grid = self.grid(maps[0])
        pooled = []
        for part in maps:
            local = self._neighbourhoods(part)
            if local.shape[-2:] != grid:
                local = F.interpolate(local, size=grid, mode="bilinear", align_corners=False)
            pooled.append(local)
        stacked = torch.cat(pooled, dim=1)
        return stacked if stacked.shape[1] == self.dim else _pool_channels(stacked, self.dim)

    def grid(self, part: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of a layer's map."""
        pad = (self.patch - 1) // 2
        rows, cols = ((s + 2 * pad - self.patch) // self.stride + 1 for s in part.shape[-2:])
        if rows < 1 or cols < 1:
            raise InputError(
                f"a map of {part.shape[-2]} × {part.shape[-1]} cells has no {self.patch} × {self.patch} "
                "patch",
                "use larger images or an earlier layer",
            )
        return rows, cols

    def _neighbourhoods(self, part: Tensor) -> Tensor:
        """Neighbourhoods pooled to layer_dim: adaptive averages over (channel, row, column), channel
        slowest."""
        channels, pad = part.shape[1], (self.patch - 1) // 2
        if channels % self.layer_dim == 0:  # a bin covers whole channels: average pooling, then group means
            local = F.avg_pool2d(part, self.patch, self.stride, pad)
            return local if channels == self.layer_dim else _pool_channels(local, self.layer_dim)
        columns = F.unfold(part, self.patch, padding=pad, stride=self.stride)
        pooled = _pool_channels(columns, self.layer_dim)
        return pooled.unflatten(2, self.grid(part))


def _pool_channels(x: Tensor, size: int) -> Tensor:
    """Adaptive average pooling of axis 1 to `size`: bin i is the mean of [⌊iL/D⌋, ⌈(i+1)L/D⌉)."""
    length = x.shape[1]
    if length == size:
        return x
    if length % size == 0:
        return x.unflatten(1, (size, length // size)).mean(2)
    moved = x.movedim(1, -1)
    return F.adaptive_avg_pool1d(moved.flatten(0, -2), size).unflatten(0, moved.shape[:-1]).movedim(-1, 1)
