"""Joint pixel × band relevance of distances, streamed over the bands.

R_{i,b} = Σ_j w_j (P_b Δ_j)_i g_ji, Δ_j = x − u_j, P_b the projector on band b of the DCT. P_b is linear and
the weights of one input are one row of a matrix, so the products of the training points are made once for all
inputs, one band at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfungst.anomaly.distance import slope
from pfungst.relevance import PixelBands
from pfungst.relevance.dct import dct2, dct_matrix

_PAIR_BLOCK = 64  # prototypes whose bands are held at once by the pairwise form
_CACHE = 1 << 20  # elements of a block of pairs


class Projector:
    """P_b x for all bands of one image size, from the coefficients of x.

    Only the smallest rectangle that holds a band's coefficients is transformed back.
    """

    def __init__(self, basis: PixelBands, height: int, width: int, like: Tensor) -> None:
        self.masks = basis.masks(height, width, like)
        self.rows, self.cols = dct_matrix(height, like), dct_matrix(width, like)

    def __len__(self) -> int:
        return len(self.masks)

    def project(self, coefficients: Tensor, band: int) -> Tensor:
        """Coefficients (..., H, W) → the band's part of the images (..., H, W)."""
        mask = self.masks[band]
        inside = mask.nonzero()
        if not len(inside):
            return torch.zeros_like(coefficients)
        (u0, v0), (u1, v1) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
        part = coefficients[..., u0:u1, v0:v1] * mask[u0:u1, v0:v1]
        return self.rows[u0:u1].T @ (part @ self.cols[v0:v1])


def pixel_band_covariance(
    x: Tensor, sx: Tensor, u: Tensor, su: Tensor, m: Tensor, sm: Tensor, w: Tensor, basis: PixelBands
) -> Tensor:
    """p = 2: W·[1]·{(P_b e)(Se) − (P_b m)(Sm)} + W·(P_b U ⊙ SU), e = x − m (see `explain`).

    Args:
        x, sx: inputs and Sx (N, C, H, W). u, su: prototypes and Su (M, C, H, W). m, sm: weighted means
            of the prototypes (N, C, H, W). w: weights (N, M).

    Returns:
        (N, B, H, W).
    """
    height, width = x.shape[-2:]
    projector = Projector(basis, height, width, x)
    e, se = x - m, sx - sm
    spectra = [dct2(t) for t in (u, e, m)]
    total = w.sum(1)[:, None, None]
    out = x.new_empty(len(x), len(projector), height, width)
    for band in range(len(projector)):
        pu, pe, pm = (projector.project(c, band) for c in spectra)
        training = (pu.mul_(su)).sum(1).flatten(1)
        own = pe.mul_(se).sub_(pm.mul_(sm)).sum(1)
        out[:, band] = (w @ training).view_as(own).addcmul_(total, own)
    return out


def pixel_band_pairs(x: Tensor, u: Tensor, weights: Tensor, p: int, basis: PixelBands) -> Tensor:
    """Any p without features: per pixel one matrix product over the prototypes.

    With A_i = w ⊙ g_i (inputs × prototypes) at pixel i and V_i = (P_b U)_i (prototypes × bands),
    R_i = (P_b x)_i Σ_j A_ij − A_i V_i.

    Args:
        x: (N, C, H, W). u: (M, C, H, W). weights: (N, M).

    Returns:
        (N, B, H, W).
    """
    height, width = x.shape[-2:]
    projector = Projector(basis, height, width, x)
    w = weights.to(x)
    bands = len(projector)
    xf = x.flatten(1)
    slopes = torch.zeros_like(xf)
    minus = x.new_zeros(bands, len(x), xf.shape[1])
    for block, wb in zip(u.split(_PAIR_BLOCK), w.split(_PAIR_BLOCK, dim=1), strict=True):
        spectrum = dct2(block)
        parts = torch.stack([projector.project(spectrum, b).flatten(1) for b in range(bands)])
        uf = block.flatten(1)
        step = max(1, _CACHE // (len(x) * len(block)))
        for lo in range(0, xf.shape[1], step):
            hi = lo + step
            a = slope(xf[:, lo:hi].T[:, :, None] - uf[:, lo:hi].T[:, None, :], p).mul_(wb)
            slopes[:, lo:hi] += a.sum(2).T
            minus[:, :, lo:hi] += (a @ parts[:, :, lo:hi].permute(2, 1, 0)).permute(2, 1, 0)
        del parts
    spectrum = dct2(x)
    out = x.new_empty(len(x), bands, height, width)
    s = slopes.view_as(x)
    for b in range(bands):
        out[:, b] = (projector.project(spectrum, b) * s - minus[b].view_as(x)).sum(1)
    return out
