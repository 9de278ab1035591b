"""Large images: a detector on overlapping tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sklearn.base import clone
from torch import Tensor
from torch.nn import functional as F

from pfungst.anomaly.base import Detector, register
from pfungst.conditions import Size
from pfungst.errors import InputError
from pfungst.relevance import Basis, Patches, Pixels, Relevance


@register("tiled")
@dataclass(eq=False, repr=False)
class Tiled(Detector):
    """Score of an image: the highest of its tiles, which takes all relevance.

    The tiles of all training images make one training set, so small defects keep their size in pixels. Only
    `batch_size` tiles are held at a time when scoring and explaining.

    Args:
        detector: any detector; it is cloned.
        tile: side of the tiles, in pixels; smaller images are padded by repeating the edge.
        overlap: of neighbouring tiles, in pixels.
        validation: share of the training images that is held out to set `threshold_`.
        quantile: of the held-out scores, at which the threshold is set.
        batch_size: tiles at a time.
        seed: of the split.

    Attributes:
        detector_: the fitted detector of tiles.
    """

    nested: ClassVar[str | None] = "detector"

    detector: Detector | None = None
    tile: int = 256
    overlap: int = 64
    validation: float = 0.2
    quantile: float = 0.95
    batch_size: int = 16
    seed: int = 0

    def _inner(self) -> Detector:
        if self.detector is None:
            raise InputError("no detector to tile", "for example Tiled(PatchCore())")
        return self.detector

    def check_basis(self, basis: Basis) -> None:
        if not isinstance(basis, Pixels | Patches):
            raise InputError(
                f"{basis!r} of a whole image is not defined for tiles",
                "explain a tile: detector_.explain(tile, basis)",
            )

    def check_size(self, size: Size) -> None:
        self._inner().check_size(self.tile)

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """Top left corners of the tiles; the last of a row or column ends at the edge."""
        step = self.tile - self.overlap

        def along(size: int) -> list[int]:
            last = max(0, size - self.tile)
            return [*range(0, last, step), last]

        return [(top, left) for top in along(height) for left in along(width)]

    def _padded(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        return F.pad(image[None], (0, max(0, self.tile - w), 0, max(0, self.tile - h)), mode="replicate")[0]

    def _cut(self, image: Tensor) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """Batches of corners and tiles of one image (C, H, W)."""
        corners = self.corners(*image.shape[-2:])
        image = self._padded(image)
        for start in range(0, len(corners), self.batch_size):
            part = corners[start : start + self.batch_size]
            yield part, torch.stack([image[:, t : t + self.tile, x : x + self.tile] for t, x in part])

    def _fit(self, x: Tensor) -> Tensor:
        inner = self._inner()
        if not 0 <= self.overlap < self.tile:
            raise InputError(
                f"overlap {self.overlap} with tiles of {self.tile} px", "use an overlap below the tile"
            )
        if x.ndim != 4:
            raise InputError(f"data of shape {tuple(x.shape)} are no images", "pass images (N, C, H, W)")
        training, held_out = (sorted(rows.tolist()) for rows in self._split(len(x)))
        tiles = torch.cat([t for i in training for _, t in self._cut(x[i])])
        self.detector_ = clone(inner).fit(tiles)
        del tiles
        return self._score(x[held_out]) if held_out else x.new_zeros(0)

    def _tile_scores(self, image: Tensor) -> Tensor:
        return torch.cat([self.detector_.anomaly_score(tiles).double() for _, tiles in self._cut(image)])

    def _best(self, image: Tensor) -> tuple[float, tuple[int, int]]:
        scores = self._tile_scores(image)
        i = int(scores.argmax())
        return float(scores[i]), self.corners(*image.shape[-2:])[i]

    def _score(self, x: Tensor) -> Tensor:
        return torch.tensor([self._best(image)[0] for image in x], dtype=x.dtype, device=x.device)

    def tile_scores(self, X: Any) -> Tensor:
        """Score of every tile, (N, tiles), in the order of :meth:`corners`."""
        return torch.stack([self._tile_scores(image) for image in self._ready(X)])

    def anomaly_map(self, X: Any) -> Tensor:
        """Mean of the tiles' anomaly maps where they overlap, (N, H, W); of their scores for detectors
        without maps."""
        maps = []
        for image in self._ready(X):
            h, w = image.shape[-2:]
            side = (max(h, self.tile), max(w, self.tile))
            total, count = torch.zeros(side), torch.zeros(side)
            for corners, tiles in self._cut(image):
                if hasattr(self.detector_, "anomaly_map"):
                    parts = self.detector_.anomaly_map(tiles).float().cpu()
                else:
                    scores = self.detector_.anomaly_score(tiles).float().cpu()
                    parts = scores[:, None, None].expand(-1, self.tile, self.tile)
                for (top, left), part in zip(corners, parts, strict=True):
                    total[top : top + self.tile, left : left + self.tile] += part
                    count[top : top + self.tile, left : left + self.tile] += 1
            maps.append((total / count)[:h, :w])
        return torch.stack(maps)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"detector": self.detector_}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.detector = self.detector_ = facts["detector"]

    def _explain(self, x: Tensor, basis: Basis) -> Relevance:
        pixels = Pixels(channels=True)
        values, scores, biases = [], [], []
        for image in x:
            _, (top, left) = self._best(image)
            h, w = image.shape[-2:]
            padded = self._padded(image)[None]
            area = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            own = self.detector_.explain(padded[area], pixels)
            whole = own.values.new_zeros(padded.shape)
            whole[area] = own.values
            whole = whole[..., :h, :w]
            values.append(basis.contract(whole, torch.ones_like(whole), ndim=3))
            scores.append(own.score)
            biases.append(own.score - values[-1].flatten(1).sum(1))
        return Relevance(torch.cat(values), torch.cat(scores), basis, torch.cat(biases))
