"""Layers that mend a model by removing what it should not use; they go in front of it, before fitting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.relevance.dct import dct2, idct2, zigzag_rank
from pfungst.suggest import suggest


class Layer(nn.Module, ABC):
    """A linear map of images onto images that is saved by its name and parameters."""

    name: ClassVar[str]
    per_channel: ClassVar[bool] = False  # whether it is the same map of each channel
    _registry: ClassVar[dict[str, type[Layer]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Layer._registry[cls.name] = cls

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Constructor arguments."""

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain data."""
        return {"name": self.name, **self.params()}

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Kᵀy of the map K, in the shape (N, C, H, W) of images: ⟨Kx, y⟩ = ⟨x, Kᵀy⟩."""

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.params().items())


def layer_from_dict(data: dict[str, Any]) -> Layer:
    """The layer that :meth:`Layer.to_dict` described."""
    params = dict(data)
    name = params.pop("name", None)
    if name not in Layer._registry:
        raise InputError(f"unknown mitigation layer {name!r}", suggest(name, sorted(Layer._registry)))
    return Layer._registry[name](**params)


class GaussianBlur(Layer):
    """Gaussian blur of each channel, edges reflected; the paper's mitigation (Kauffmann et al. 2025).

    Args:
        size: odd width of the kernel in pixels.
        sigma: standard deviation in pixels.
    """

    name = "gaussian-blur"
    per_channel = True

    def __init__(self, size: int = 11, sigma: float = 2.0) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise InputError(f"blur size {size} is not odd", "use an odd number of pixels, for example 11")
        if not sigma > 0:
            raise InputError(f"blur sigma {sigma} is not positive", "use for example 2.0")
        self.size, self.sigma = int(size), float(sigma)
        offset = torch.arange(size, dtype=torch.float64) - size // 2
        kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
        self.register_buffer("kernel", (kernel / kernel.sum()).float(), persistent=False)

    def params(self) -> dict[str, Any]:
        return {"size": self.size, "sigma": self.sigma}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        c, half = x.shape[1], self.size // 2
        if min(x.shape[-2:]) <= half:
            raise InputError(
                f"images of {x.shape[-2]} × {x.shape[-1]} pixels are too small for a blur of {self.size}",
                f"use images of more than {half} pixels or a smaller blur",
            )
        kernel = self.get_buffer("kernel").to(x)
        x = nn.functional.pad(x, (half, half, half, half), mode="reflect")
        x = nn.functional.conv2d(x, kernel.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
        return nn.functional.conv2d(x, kernel.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._transposed(y.shape[-2], y) @ y @ self._transposed(y.shape[-1], y).T

    def _transposed(self, n: int, like: Tensor) -> Tensor:
        """The transpose of the blur of lines of n pixels, (n, n): row i is the blurred i-th pixel."""
        half, kernel = self.size // 2, self.get_buffer("kernel").to(like)
        pixels = torch.eye(n, dtype=like.dtype, device=like.device)[:, None]
        lines = nn.functional.pad(pixels, (half, half), "reflect")
        return nn.functional.conv1d(lines, kernel.view(1, 1, -1))[:, 0]


class LowPass(Layer):
    """Keeps the DCT coefficients of zigzag index below `cutoff`, of each channel.

    Args:
        cutoff: number of coefficients kept, counted along the JPEG zigzag from the mean brightness on.
    """

    name = "low-pass"
    per_channel = True

    def __init__(self, cutoff: int) -> None:
        super().__init__()
        if cutoff < 1:
            raise InputError(f"cut-off {cutoff} keeps no frequency", "keep at least one coefficient")
        self.cutoff = int(cutoff)

    def params(self) -> dict[str, Any]:
        return {"cutoff": self.cutoff}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        keep = zigzag_rank(*x.shape[-2:]) < self.cutoff
        return idct2(dct2(x) * torch.as_tensor(keep, device=x.device).to(x.dtype))

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)  # an orthogonal projection
