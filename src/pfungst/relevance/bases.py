"""Input bases: the language in which an explanation is written.

A basis splits every input x into components that sum to x: pixels, patches, frequency bands, or pixels
within bands. Relevance of the form *gradient × input*, ⟨x, g⟩, is read in a basis by
:meth:`Basis.contract`; forward-mode explanations push :meth:`Basis.components` through the network.
Both conserve: the values of a basis always sum to ⟨x, g⟩.

The transforms are orthonormal, so reading relevance in frequency never changes the function explained
("virtual inspection layers", Vielhaben et al. 2024; Kauffmann et al. 2025, methods).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.dct import band_masks, dct2, idct2, power_law_edges

Shape = tuple[int, ...]


class Basis(ABC):
    """One way to read relevance.

    Inputs are tensors (*lead, *sample); ``ndim`` says how many trailing axes make one sample: 3 for images
    (C, H, W), 1 for tabular rows (D,), 2 for embedded sequences (L, D).
    """

    name: ClassVar[str]
    _registry: ClassVar[dict[str, type[Basis]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            Basis._registry[cls.name] = cls

    @abstractmethod
    def shape(self, sample: Shape) -> Shape:
        """Shape of the values for one input of shape `sample`."""

    @abstractmethod
    def contract(self, x: Tensor, g: Tensor, ndim: int = 3) -> Tensor:
        """Relevance of ⟨x, g⟩ in this basis.

        Args:
            x: input, (*lead, *sample); broadcasts against `g` in the leading axes.
            g: modified gradient, (*lead, *sample).
            ndim: number of trailing axes of one sample.

        Returns:
            (*lead, *self.shape(sample)), summing to ⟨x, g⟩ over the trailing axes.
        """

    @abstractmethod
    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Components `start` … `stop` of each input, in the order of the flattened values.

        Args:
            x: inputs (N, *sample).

        Returns:
            (stop - start, N, *sample). All components together sum to x.
        """

    def size(self, sample: Shape) -> int:
        """Number of components of one input."""
        return math.prod(self.shape(sample))

    def params(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.params()}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Basis:
        """The basis that :meth:`to_dict` described."""
        params = dict(data)
        name = params.pop("name")
        if name not in Basis._registry:
            known = ", ".join(sorted(Basis._registry))
            raise InputError(f"unknown basis {name!r}", f"known bases: {known}")
        return Basis._registry[name](**params)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.params().items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.params() == other.params()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))


def _image(sample: Shape, basis: Basis) -> tuple[int, int, int]:
    if len(sample) != 3:
        raise InputError(
            f"{basis!r} reads images of shape (C, H, W), not inputs of shape {tuple(sample)}",
            "use Pixels() for tabular rows and Tokens() for sequences",
        )
    return sample[0], sample[1], sample[2]


class Pixels(Basis):
    """One value per pixel, channels summed; one per feature for tabular rows.

    Args:
        channels: keep the channels apart, values (C, H, W).
    """

    name = "pixels"

    def __init__(self, channels: bool = False) -> None:
        self.channels = channels

    def params(self) -> dict[str, Any]:
        return {"channels": self.channels}

    def shape(self, sample: Shape) -> Shape:
        return tuple(sample) if self.channels or len(sample) != 3 else tuple(sample[1:])

    def contract(self, x: Tensor, g: Tensor, ndim: int = 3) -> Tensor:
        r = x * g
        return r if self.channels or ndim != 3 else r.sum(-3)

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        sample = tuple(x.shape[1:])
        stop = self.size(sample) if stop is None else stop
        index = torch.arange(start, stop, device=x.device)
        if self.channels or len(sample) != 3:
            hot = torch.nn.functional.one_hot(index, self.size(sample)).to(x.dtype)
            return hot.reshape(-1, 1, *sample) * x
        hot = torch.nn.functional.one_hot(index, sample[1] * sample[2]).to(x.dtype)
        return hot.reshape(-1, 1, 1, *sample[1:]) * x


class Patches(Basis):
    """Sums over square blocks of `size` pixels; blocks at the right and lower edge may be smaller."""

    name = "patches"

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InputError(f"patch size {size} is not positive", "use a patch size of 1 or more pixels")
        self.patch = int(size)

    def params(self) -> dict[str, Any]:
        return {"size": self.patch}

    def shape(self, sample: Shape) -> Shape:
        _, h, w = _image(sample, self)
        return (-(-h // self.patch), -(-w // self.patch))

    def contract(self, x: Tensor, g: Tensor, ndim: int = 3) -> Tensor:
        s = self.patch
        r = (x * g).sum(-3)
        h, w = r.shape[-2:]
        r = torch.nn.functional.pad(r, (0, -w % s, 0, -h % s))
        return r.unflatten(-1, (-1, s)).sum(-1).unflatten(-2, (-1, s)).sum(-2)

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        sample = tuple(x.shape[1:])
        rows, cols = self.shape(sample)
        stop = rows * cols if stop is None else stop
        out = x.new_zeros(stop - start, *x.shape)
        s = self.patch
        for i, p in enumerate(range(start, stop)):
            top, left = (p // cols) * s, (p % cols) * s
            out[i, ..., top : top + s, left : left + s] = x[..., top : top + s, left : left + s]
        return out


class Tokens(Basis):
    """One value per token of an embedded sequence (L, D)."""

    name = "tokens"

    def shape(self, sample: Shape) -> Shape:
        if len(sample) != 2:
            raise InputError(
                f"Tokens() reads embedded sequences of shape (L, D), not inputs of shape {tuple(sample)}",
                "use Pixels() or Patches(size) for images",
            )
        return (sample[0],)

    def contract(self, x: Tensor, g: Tensor, ndim: int = 2) -> Tensor:
        return (x * g).sum(-1)

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        length = x.shape[1]
        stop = length if stop is None else stop
        hot = torch.eye(length, dtype=x.dtype, device=x.device)[start:stop]
        return hot[:, None, :, None] * x


class _Bands(Basis):
    """Shared by the two frequency bases: where the bands begin and end.

    Args:
        edges: zigzag indices 0 = e_0 < e_1 < … < e_B = H·W; an open end may be written None.
        count: instead of edges, this many bands whose edges follow the paper's power law.
    """

    def __init__(
        self, edges: tuple[int | None, ...] | list[int | None] | None = None, count: int | None = None
    ):
        if (edges is None) == (count is None):
            raise InputError("give either edges or count", "for example DCTBands(count=20)")
        if count is not None and count < 1:
            raise InputError(f"{count} bands asked for", "ask for at least one band")
        self.edges = None if edges is None else tuple(edges)
        self.count = count
        if self.edges is not None:
            inner = self.edges[:-1]
            if (
                len(self.edges) < 2
                or any(e is None for e in inner)
                or any(
                    b is not None and a is not None and a > b
                    for a, b in zip(inner, self.edges[1:], strict=True)
                )
            ):
                raise InputError(f"band edges {self.edges} do not rise", "write them as 0, 3, 190, None")

    @classmethod
    def paper(cls):
        """20 bands by the power law of Kauffmann et al. 2025, whose list prints 19: the edge near 14,553 is
        missing in it, so that two bands stand as one."""
        return cls(count=20)

    @classmethod
    def coarse(cls):
        """Low [0, 3), middle [3, 190) and high [190, H·W) frequencies, as in the paper's pictures."""
        return cls(edges=(0, 3, 190, None))

    def params(self) -> dict[str, Any]:
        return {"edges": list(self.edges)} if self.edges is not None else {"count": self.count}

    def resolve(self, height: int, width: int) -> tuple[int, ...]:
        """The edges for images of this size; together the bands cover every coefficient exactly once."""
        total = height * width
        if self.edges is None:
            assert self.count is not None
            return power_law_edges(self.count, height, width)
        edges = tuple(total if e is None else min(e, total) for e in self.edges)
        if edges[0] != 0 or edges[-1] != total:
            raise InputError(
                f"bands {self.edges} do not cover the {total} frequencies of {height} × {width} images",
                "start at 0 and end with None",
            )
        return edges

    def masks(self, height: int, width: int, like: Tensor) -> Tensor:
        """Indicators (B, H, W) of the coefficients of each band."""
        return band_masks(self.resolve(height, width), height, width, like)

    def bands(self, sample: Shape) -> int:
        _, h, w = _image(sample, self)
        return len(self.resolve(h, w)) - 1


class DCTBands(_Bands):
    """One value per frequency band of the orthonormal 2-D DCT, channels summed."""

    name = "dct-bands"

    def shape(self, sample: Shape) -> Shape:
        return (self.bands(sample),)

    def contract(self, x: Tensor, g: Tensor, ndim: int = 3) -> Tensor:
        spectrum = (dct2(x) * dct2(g)).sum(-3)
        h, w = spectrum.shape[-2:]
        return spectrum.flatten(-2) @ self.masks(h, w, spectrum).flatten(1).T

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        h, w = x.shape[-2:]
        masks = self.masks(h, w, x)[start:stop]
        return idct2(masks[:, None, None] * dct2(x))


class PixelBands(_Bands):
    """One value per band and pixel, (B, H, W): Σ over bands gives the pixels, Σ over pixels the bands."""

    name = "pixel-bands"

    def shape(self, sample: Shape) -> Shape:
        _, h, w = _image(sample, self)
        return (self.bands(sample), h, w)

    def contract(self, x: Tensor, g: Tensor, ndim: int = 3) -> Tensor:
        h, w = x.shape[-2:]
        filtered = idct2(self.masks(h, w, x)[:, None] * dct2(x).unsqueeze(-4))
        return (filtered * g.unsqueeze(-4)).sum(-3)

    def components(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        sample = tuple(x.shape[1:])
        bands, h, w = self.shape(sample)
        stop = bands * h * w if stop is None else stop
        first, last = start // (h * w), -(-stop // (h * w))
        filtered = DCTBands(**self.params()).components(x, first, last)
        index = torch.arange(start, stop, device=x.device)
        hot = torch.nn.functional.one_hot(index % (h * w), h * w).to(x.dtype).reshape(-1, 1, 1, h, w)
        return filtered[index // (h * w) - first] * hot
