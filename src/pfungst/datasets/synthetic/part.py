"""What all rendered parts share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from .camera import Camera, grid

Array = np.ndarray


class Part(ABC):
    """One kind of industrial part: its fixed shape is drawn once, each specimen varies it.

    Args:
        size: edge of the rendered image in pixels; the shapes are laid out for 900 and scale with it.
    """

    name: ClassVar[str]
    defects: ClassVar[tuple[str, ...]]
    camera: ClassVar[Camera]

    def __init__(self, size: int) -> None:
        self.size = size
        self.unit = size / 900
        self.x, self.y = grid(size)
        self.prepare(np.random.default_rng(1907))

    @abstractmethod
    def prepare(self, rng: np.random.Generator) -> None:
        """Draw what all specimens share."""

    @abstractmethod
    def specimen(self, rng: np.random.Generator) -> Array:
        """A flawless specimen: linear reflectance (size, size, 3), float32, owned by the caller."""

    @abstractmethod
    def damage(self, scene: Array, kind: str, severity: float, rng: np.random.Generator) -> Array:
        """Damage a specimen in place.

        Args:
            scene: what ``specimen`` gave.
            kind: one of ``defects``.
            severity: 0 (slight) to 1 (gross).
            rng: draws place and shape.

        Returns:
            Coverage of the damage (size, size); the mask is where it is at least one half.
        """

    def render(self, kind: str | None, rng: np.random.Generator) -> tuple[Array, Array]:
        """Photograph one specimen.

        Args:
            kind: a kind of defect, or None for a good part.
            rng: the only source of chance.

        Returns:
            8-bit RGB (size, size, 3) and the mask (size, size).
        """
        making, breaking, taking = rng.spawn(3)
        scene = self.specimen(making)
        mask = np.zeros((self.size, self.size), bool)
        if kind is not None:
            mask = self.damage(scene, kind, float(breaking.uniform()), breaking) >= 0.5
        return self.camera.photograph(scene, mask, taking)
