"""Leading right singular vectors of a tall or wide matrix, with checked accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 16
_ANGLE = 5e-4  # half the promised 1e-3, where the relative gap exceeds 1 %
_VARIANCE = 5e-5  # half the promised 1e-4


@dataclass
class Spectrum:
    """Leading eigenpairs of AᵀA.

    Attributes:
        values: (m,) eigenvalues, descending, float64.
        vectors: (m, D) unit eigenvectors as rows, in A's type.
        dims: dimension of the Krylov space that sufficed; 0 for the full decomposition.
    """

    values: Tensor
    vectors: Tensor
    dims: int = 0


def leading(a: Tensor, m: int, seed: int = 0, dims: int = 0) -> Spectrum:
    """Leading m eigenpairs of AᵀA without forming it.

    Block Golub-Kahan Lanczos with full reorthogonalisation and a Rayleigh-Ritz step in float64 (Golub and Van
    Loan, Matrix Computations, section 10.4); the full decomposition of the smaller side where the problem is
    small or Krylov would not pay. Accuracy: angles ≤ 1e-3 where the relative gap exceeds 1 %, eigenvalues
    within 1e-4.

    Args:
        a: (n, D), centred if a covariance is meant.
        m: number of pairs, at most min(n, D).
        seed: of the random start block.
        dims: dimension at which convergence is first checked; 0 for a guess.
    """
    short = min(a.shape)
    limit = int(0.55 * short)
    first = max(dims, -(-int(2.4 * m) // BLOCK) * BLOCK)
    if short <= 256 or first > limit:
        return _full(a, m)
    return _krylov(a, m, seed, first, limit) or _full(a, m)


def _full(a: Tensor, m: int) -> Spectrum:
    n, d = a.shape
    wide = a.double()
    gram = wide @ wide.T if n < d else wide.T @ wide
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:m].clamp_min(0), vectors.flip(1)[:, :m]
    if n < d:
        vectors, triangle = torch.linalg.qr(wide.T @ vectors)
        vectors = vectors * triangle.diagonal().sign()
    return Spectrum(values, vectors.T.to(a.dtype).contiguous())


def _outside(block: Tensor, basis: Tensor) -> Tensor:
    """The part of the rows of `block` outside the span of the orthonormal rows of `basis`."""
    return torch.addmm(block, block @ basis.T, basis, alpha=-1)


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal rows that span `block` beside the rows of `basis` (block Gram-Schmidt).

    But for rounding, AᵀA times a Lanczos block lies in the last two blocks and outside: the first pass takes
    those out. Another one against all of the basis takes the rounding out, again while it still finds much
    (Kahan's criterion, Parlett, The Symmetric Eigenvalue Problem, section 6.9).
    """
    block = torch.linalg.qr(_outside(block, basis[-2 * BLOCK :]).T)[0].T
    for _ in range(3):
        vectors, triangle = torch.linalg.qr(_outside(block, basis).T)
        block = vectors.T
        if float(triangle.diagonal().abs().min()) > 0.7:
            break
    return block


def _krylov(a: Tensor, m: int, seed: int, first: int, limit: int) -> Spectrum | None:
    n, d = a.shape
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(BLOCK, n, generator=generator, dtype=a.dtype)
    basis, image = a.new_empty(limit + BLOCK, d), a.new_empty(limit + BLOCK, n)
    block = start.to(a.device) @ a
    done, check = 0, first
    while done + BLOCK <= limit:
        rows = slice(done, done + BLOCK)
        basis[rows] = block = _orthonormal(block, basis[:done])
        image[rows] = projected = block @ a.T
        done += BLOCK
        block = projected @ a
        if done < check:
            continue
        small = image[:done].double()
        values, ritz = torch.linalg.eigh(small @ small.T)
        values, ritz = values.flip(0), ritz.flip(1)
        # AᵀA Q z − θ Q z = (part of AᵀA Q_last outside the basis) z_last
        outside = _outside(block, basis[:done])
        core = (outside @ outside.T).double()
        last = ritz[-BLOCK:]
        residual = (last * (core @ last)).sum(0).clamp_min(0).sqrt()
        if _converged(values, residual, m):
            return Spectrum(values[:m], ritz[:, :m].T.to(a.dtype) @ basis[:done], done)
        check = done + 2 * BLOCK
    return None


def _converged(values: Tensor, residual: Tensor, m: int) -> bool:
    """Whether the first m Ritz pairs keep the promise.

    The residual lies outside the basis, so its share of a vector is residual over the distance to the
    spectrum outside (bounded by the first Ritz value that has not converged at all), and other Ritz vectors
    mix in only to second order: residual_l · residual_j over both distances.
    """
    top, own = values[:m].clamp_min(1e-300), residual[:m]
    rough = torch.nonzero(residual > 0.2 * values.clamp_min(1e-300))
    edge = values[rough[0, 0]] if len(rough) else values[-1]
    distance = (top - edge).clamp_min(1e-12 * top)
    if bool((own**2 > _VARIANCE * top * distance).any()):
        return False
    spacing = (values[: m + 1, None] - values[None, : m + 1]).abs()
    spacing.fill_diagonal_(float("inf"))
    gap = spacing.min(1).values[:m]
    inside = (own[:, None] * residual[None, : m + 1] / (distance[:, None] * spacing[:m])).norm(dim=1)
    angle = own / distance + inside
    return not bool((angle[gap > 0.01 * top] > _ANGLE).any())
