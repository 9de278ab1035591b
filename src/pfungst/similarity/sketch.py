"""Fewer directions than neurons: an unbiased estimate of BiLRP with its error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.device import double
from pfungst.errors import ConfigError


class Sketch:
    """Directions of representation space that stand for all K neurons.

    ⟨a, b⟩ over K neurons is replaced by ⟨Va, Vb⟩ + (K′/m) ⟨Qa, Qb⟩: V are fixed orthonormal directions (none,
    or the principal ones of a data set), Q are m uniformly random orthonormal directions of what V leaves, of
    dimension K′ = K − rank V. Because E[QᵀQ] = (m/K′)·I there, the estimate is unbiased.

    Args:
        random: m, the number of random directions.
        fixed: V (r, K), orthonormal rows, or None.
        seed: of Q.
    """

    def __init__(self, random: int, fixed: Tensor | None = None, seed: int = 0) -> None:
        if random < 2:
            raise ConfigError(
                f"a sketch of {random} random directions has no error estimate", "use 2 or more, better 64"
            )
        self.random, self.fixed, self.seed = random, fixed, seed

    @classmethod
    def principal(cls, representations: Tensor, count: int, random: int = 16, seed: int = 0) -> Sketch:
        """The `count` directions along which the representations (N, K) have most energy, and `random`
        others."""
        _, _, directions = torch.linalg.svd(double(representations), full_matrices=False)
        return cls(random, directions[:count].to(representations), seed)

    @property
    def size(self) -> int:
        """Number of directions."""
        return self.random + (0 if self.fixed is None else len(self.fixed))

    def directions(self, width: int) -> Tensor:
        """(size, K): first the fixed ones, then the random ones times √(K′/m), in float64."""
        fixed = torch.zeros(0, width, dtype=torch.double) if self.fixed is None else double(self.fixed).cpu()
        left = width - len(fixed)
        if fixed.shape[1] != width or self.random > left:
            raise ConfigError(
                f"a sketch of {self.size} directions does not fit a representation of {width} values",
                "use fewer directions",
            )
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(width, self.random, generator=generator, dtype=torch.double)
        drawn = drawn - fixed.T @ (fixed @ drawn)
        q, r = torch.linalg.qr(drawn)
        q = q * torch.sign(r.diagonal())  # so that Q is uniformly distributed
        return torch.cat([fixed, q.T * (left / self.random) ** 0.5])

    def error(self, a: Tensor, b: Tensor, width: int, level: float = 0.95) -> Tensor:
        """Half-width of the interval of each estimated value.

        The variance of aᵀQᵀQb for a uniformly random projector of rank m in K′ dimensions is
        (c₁ + c₂)⟨a,b⟩² + c₂|a|²|b|² − (m/K′)²⟨a,b⟩² with c₂ = m(K′−m)/(K′(K′−1)(K′+2)) and
        c₁ = m((K′+1)m − 2)/(K′(K′−1)(K′+2)); the unknown norms are estimated from the sketch. For their
        uncertainty the interval uses Student's t with m − 1 degrees of freedom, widened by 1 + 1/√m: with
        that it covers in simulations.

        Args:
            a: sketched factor (size, P).
            b: sketched factor (size, Q).
            width: K.
            level: of the interval.

        Returns:
            (P, Q).
        """
        r = self.size - self.random
        k, m = width - r, self.random
        if m == k:
            return a.new_zeros(a.shape[1], b.shape[1])
        a, b = a[r:], b[r:]
        inner = (a.T @ b).square()
        norms = a.square().sum(0)[:, None] * b.square().sum(0)
        scale = k * (k - 1) * (k + 2)
        c1, c2 = m * ((k + 1) * m - 2) / scale, m * (k - m) / scale
        variance = (k / m) ** 2 * ((c1 + c2) * inner + c2 * norms) - inner
        from scipy.stats import t as student

        quantile = float(student.ppf(0.5 + level / 2, m - 1)) * (1 + m**-0.5)
        return quantile * variance.clamp(min=0).sqrt()

    def to_dict(self) -> dict[str, Any]:
        fixed = None if self.fixed is None else [round(float(v), 6) for v in self.fixed.flatten()[:8]]
        return {"random": self.random, "seed": self.seed, "directions": self.size, "fixed": fixed}
