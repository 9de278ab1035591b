"""Cotangents that are not carried out until they are needed.

Passes over memory cost as much as convolutions here, so a transposed map may hand back a sum's term that is
not yet carried out (`Pending`): it is added in one pass to the term it meets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Pending(ABC):
    """A cotangent that is not carried out until it is needed."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The cotangent in memory of its own."""

    @abstractmethod
    def onto(self, t: Tensor) -> Tensor:
        """`t` with the cotangent added in place."""


Part = Tensor | Pending


def dense(part: Part) -> Tensor:
    """The tensor that a part stands for."""
    return part.dense() if isinstance(part, Pending) else part


class Product(Pending):
    """g · c."""

    def __init__(self, g: Tensor, c: Tensor) -> None:
        self.g, self.c = g, c

    def dense(self) -> Tensor:
        return self.g * self.c

    def onto(self, t: Tensor) -> Tensor:
        return t.addcmul_(self.g, self.c) if t.dtype == self.g.dtype else t.add_(self.dense())


class Strided(Pending):
    """`small` (B, C, h, w) at every stride-th place of images (M, N, C, H, W), zero elsewhere."""

    def __init__(self, small: Tensor, stride: list[int], shape: tuple[int, ...]) -> None:
        self.small, self.stride, self.shape = small, stride, shape

    def dense(self) -> Tensor:
        *lead, c, h, w = self.shape
        out = self.small.new_zeros(len(self.small), h, w, c).permute(0, 3, 1, 2)
        out[..., :: self.stride[0], :: self.stride[1]] = self.small
        return out.unflatten(0, lead)

    def onto(self, t: Tensor) -> Tensor:
        t[..., :: self.stride[0], :: self.stride[1]] += self.small.unflatten(0, t.shape[:2])
        return t
