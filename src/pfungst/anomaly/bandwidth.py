"""How wide a detector looks: γ from the perplexity of its neighbourhoods, or from the likelihood."""

from __future__ import annotations

import math
import warnings
from functools import cache

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from pfungst.errors import PfungstWarning

_TOLERANCE = 1e-6  # in log γ


def without_self(distances: Tensor) -> Tensor:
    """The distances of each point to all others: (N, N) → (N, N − 1), the diagonal removed."""
    n = len(distances)
    if n < 2:
        return distances.new_zeros(n, 0)
    return distances.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def perplexity(distances: Tensor, gamma: float) -> float:
    """Mean over points of exp(entropy of P_i·), P_ij ∝ exp(−γ d_ij).

    Args:
        distances: (N, M), self already excluded.
    """
    logits = -gamma * (distances - distances.amin(1, keepdim=True))
    weights = logits.exp()
    total = weights.sum(1)
    entropy = total.log() - logits.mul_(weights).sum(1) / total
    return entropy.exp().mean().item()


def _scale(distances: Tensor) -> float | None:
    """Median distance to the nearest other point that is not a duplicate; None, with a warning, where all
    coincide.

    Args:
        distances: (N, N − 1), self already excluded.
    """
    nearest = torch.where(distances > 0, distances, math.inf).amin(1) if distances.shape[1] else distances
    nearest = nearest[torch.isfinite(nearest)]
    if nearest.numel():
        return nearest.median().item()
    if len(distances) > 1:
        warnings.warn("all training points are identical; gamma is set to 1", PfungstWarning, stacklevel=4)
    return None


def gamma_by_perplexity(distances: Tensor, share: float) -> float:
    """γ at which the mean perplexity of the training points is `share` of their number.

    Kauffmann et al. 2025, methods: 25 %. Solved in log γ by Brent's method to 1e-6.

    Where no γ reaches the target (few points, or many duplicates) γ is one over the median distance to the
    nearest neighbour, with a warning; where all points coincide every γ scores alike and γ is 1.

    Args:
        distances: between training points (N, N), after the features.
        share: of the number of points, in (0, 1).
    """
    others = without_self(distances.double())
    scale = _scale(others)
    if scale is None:
        return 1.0
    target = share * len(distances)

    @cache
    def excess(log_gamma: float) -> float:
        return perplexity(others, math.exp(log_gamma)) - target

    low = high = -math.log(scale)
    limit = 60.0
    while excess(low) < 0 and low > -math.log(scale) - limit:
        low -= 2.0
    while excess(high) > 0 and high < -math.log(scale) + limit:
        high += 2.0
    if not excess(low) >= 0 >= excess(high) or low == high:
        warnings.warn(
            f"no gamma gives {len(distances)} training points a perplexity of {target:.3g} "
            f"({share:.0%} of them); gamma is set to one over the median nearest distance. "
            "Give more training points or another perplexity",
            PfungstWarning,
            stacklevel=3,
        )
        return 1.0 / scale
    return math.exp(brentq(excess, low, high, xtol=_TOLERANCE))


def log_likelihood(distances: Tensor, gamma: float, dim: int) -> float:
    """Mean leave-one-out log density of a Gaussian kernel density estimate.

    Args:
        distances: squared Euclidean, (N, M), self already excluded (excluded pairs are infinite).
        gamma: 1 / (2 h²), h the standard deviation of the kernel.
        dim: number of dimensions D of the points.
    """
    count = torch.isfinite(distances).sum(1).clamp_min(1)
    log_mean = torch.logsumexp(-gamma * distances, dim=1) - count.log()
    return log_mean.mean().item() + 0.5 * dim * math.log(gamma / math.pi)


def gamma_by_likelihood(distances: Tensor, dim: int) -> float:
    """γ = 1/(2h²) that maximises the leave-one-out likelihood of a Gaussian kernel density.

    Exact duplicates of a point count as the point itself: otherwise the likelihood would grow without
    bound as the bandwidth falls. The maximum is found on a grid in log γ and refined to 1e-6.

    Args:
        distances: squared Euclidean between training points (N, N), after the features.
        dim: number of dimensions D of the points.
    """
    others = without_self(distances.double())
    scale = _scale(others)
    if scale is None:
        return 1.0
    others = torch.where(others > 0, others, math.inf)
    others = others[torch.isfinite(others).any(1)]
    centre = math.log(0.5 * dim / scale)

    def loss(log_gamma: float) -> float:
        return -log_likelihood(others, math.exp(log_gamma), dim)

    grid = centre + np.linspace(-12.0, 12.0, 49)
    best = int(np.argmin([loss(g) for g in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": _TOLERANCE})
    return math.exp(found.x)
