"""How different the images are that several components (or neurons) point to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from pfungst.errors import InputError


@dataclass(frozen=True)
class Diversity:
    """Diversity of a selection, over pairs of images that belong to different components.

    Attributes:
        pixel: mean l2 distance of images, None without images.
        embedding: mean l2 distance of embeddings, None without embeddings.
        identical: pairs that are the same image.
        pairs: all pairs.
    """

    pixel: float | None
    embedding: float | None
    identical: int
    pairs: int


def diversity(
    ids: Sequence[Sequence[str]],
    images: Tensor | None = None,
    embeddings: Tensor | None = None,
) -> Diversity:
    """Pairwise distances between the top images of different components (paper 003, appendix E).

    Args:
        ids: for each of C components, the identifiers of its n top images.
        images: (C, n, ...) these images.
        embeddings: (C, n, E) their embeddings.
    """
    c, sizes = len(ids), {len(row) for row in ids}
    if c < 2 or len(sizes) != 1:
        raise InputError(
            f"{c} components with {sorted(sizes)} images", "pass at least two, with equally many images"
        )
    n = sizes.pop()
    for name, block in (("images", images), ("embeddings", embeddings)):
        if block is not None and tuple(block.shape[:2]) != (c, n):
            raise InputError(f"{name} have shape {tuple(block.shape)}", f"pass ({c}, {n}, …)")
    identical = sum(len(set(a) & set(b)) for a, b in combinations(ids, 2))
    return Diversity(_mean_distance(images), _mean_distance(embeddings), identical, n * n * c * (c - 1) // 2)


def _mean_distance(block: Tensor | None) -> float | None:
    if block is None:
        return None
    c, n = block.shape[:2]
    flat = block.reshape(c * n, -1).double()
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    group = torch.arange(c).repeat_interleave(n)
    return float(distance[(group[:, None] < group)].mean())
