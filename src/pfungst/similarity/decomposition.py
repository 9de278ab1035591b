"""The leading part of a factor, from few passes, with what it leaves out measured.

Relevance of many neurons is alike: the factor A (K, P) of one input has few directions that count. They are
found by a randomised range finder (Halko, Martinsson & Tropp 2011, algorithm 4.1): A·Ω for random sums Ω of
components, by forward mode, spans them; Q is its orthonormal basis, and QᵀA takes as many reverse passes. The
first sum is of all components, so that what biases absorb stays exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.device import double
from pfungst.errors import ConfigError
from pfungst.relevance import Basis
from pfungst.relevance.linearize import LinearizedModel


class Decomposition:
    """Q QᵀA in place of A, and A·Ω′ for random checks Ω′ that Q has not seen.

    Args:
        rank: columns of Q.
        checks: columns of Ω′; pairs of different ones tell how much of BiLRP is left out.
        seed: of Ω and Ω′.
    """

    def __init__(self, rank: int = 16, checks: int = 4, seed: int = 0) -> None:
        if rank < 1 or checks < 2:
            raise ConfigError(f"a decomposition of rank {rank} with {checks} checks", "use 1 and 2 or more")
        self.rank, self.checks, self.seed = rank, checks, seed

    @property
    def size(self) -> int:
        """Number of passes."""
        return 2 * self.rank + self.checks

    def sums(self, components: int) -> Tensor:
        """(P, rank + checks), all components first, then random signs, in float64."""
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, (components, self.rank + self.checks), generator=generator) * 2.0 - 1
        signs[:, 0] = 1
        return signs.double()

    def factor(self, linear: LinearizedModel, basis: Basis) -> Tensor:
        """(N, K, P + checks): Q QᵀA of each input, and beside it A·Ω′."""
        seen = linear.combined(basis, self.sums(basis.size(linear.sample)))
        q = torch.linalg.qr(double(seen[..., : self.rank]))[0].to(seen)
        rows = linear.rows(q.transpose(1, 2), basis).flatten(2)
        return torch.cat([q @ rows, seen[..., self.rank :]], -1)

    def remainder(self, a: Tensor, b: Tensor, seen_a: Tensor, seen_b: Tensor) -> float:
        """What is left out of AᵀB, relative to its size (Frobenius): estimated from the checks.

        Args:
            a, b: decomposed factors (K, P), (K, Q).
            seen_a, seen_b: (K, checks) of each.
        """
        sums_a, sums_b = (self.sums(x.shape[1])[:, self.rank :].to(x) for x in (a, b))
        missing = seen_a.T @ seen_b - (a @ sums_a).T @ (b @ sums_b)
        apart = ~torch.eye(self.checks, dtype=torch.bool)  # a check against itself would be biased
        size = (a.T @ b).square().sum()
        return float((missing[apart].square().mean() / size).sqrt()) if float(size) > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "checks": self.checks, "seed": self.seed}
