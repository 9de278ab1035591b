"""The memory bank of PatchCore: exact nearest neighbours by matrix products, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfungst.errors import InputError

_ELEMENTS = 1 << 23  # products of queries and bank held at once


class Neighbours(NamedTuple):
    """Squared Euclidean distances (Q, k), rising, and rows of the bank (Q, k)."""

    distances: Tensor
    indices: Tensor


class MemoryBank:
    """Rows to be compared with.

    Products of centred rows find the neighbours; the distances to these are then measured from the
    differences, so they do not suffer from cancellation.

    Args:
        rows: (M, D).
    """

    def __init__(self, rows: Tensor) -> None:
        if rows.ndim != 2 or not len(rows):
            raise InputError(f"a memory bank of shape {tuple(rows.shape)}", "pass at least one row, (M, D)")
        self.rows = rows
        self.mean = rows.mean(0)
        self.norms = torch.cat(
            [torch.linalg.vecdot(part, part) for part in (r - self.mean for r in rows.split(1 << 14))]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Tensor, k: int = 1, exclude: tuple[int, int] = (0, 0)) -> Neighbours:
        """The k nearest rows of each query.

        Args:
            queries: (Q, D).
            k: how many; at most the size of the bank.
            exclude: rows of the bank, from and to, that do not count.

        Raises:
            InputError: more neighbours asked for than the bank has rows, another dimension, or distances that
                are NaN or infinite.
        """
        rows = len(self) - (exclude[1] - exclude[0])
        if not 1 <= k <= rows:
            raise InputError(
                f"{k} neighbours asked of a bank of {rows} patches", "lower neighbours or fit on more images"
            )
        if queries.ndim != 2 or queries.shape[1] != self.rows.shape[1]:
            raise InputError(
                f"patches of shape {tuple(queries.shape)} do not fit a bank of dimension "
                f"{self.rows.shape[1]}",
                "embed them with the model that made the bank",
            )
        step = max(1, min(len(queries), 1024))
        width = max(k, _ELEMENTS // step)
        found, index = [], []
        for part in queries.split(step):
            best_i = self._search(part - self.mean, k, width, exclude)
            exact = torch.stack(
                [
                    torch.linalg.vecdot(diff, diff)
                    for diff in (part - self.rows[best_i[:, j]] for j in range(k))
                ],
                1,
            )
            exact, order = exact.sort(1)
            found.append(exact)
            index.append(best_i.gather(1, order))
        if not found:
            return Neighbours(
                queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long, device=queries.device)
            )
        distances = torch.cat(found)
        if not bool(torch.isfinite(distances).all()):
            raise InputError(
                "distances of patch features are NaN or infinite",
                "see that the weights of the network are finite, and its features smaller than 1e18",
            )
        return Neighbours(distances, torch.cat(index))

    def _search(self, centred: Tensor, k: int, width: int, exclude: tuple[int, int]) -> Tensor:
        """Nearest rows (Q, k) of centred queries, one slice of the bank at a time."""
        best_d = best_i = None
        for start in range(0, len(self), width):
            part = slice(start, start + width)
            # ‖u − μ‖² − 2⟨q − μ, u⟩: what is left out is the same for all rows of the bank
            products = torch.addmm(self.norms[part], centred, self.rows[part].T, alpha=-2)
            products[:, max(0, exclude[0] - start) : max(0, exclude[1] - start)] = torch.inf
            if k == 1:
                d, i = products.min(1, keepdim=True)
            else:
                d, i = products.topk(min(k, products.shape[1]), dim=1, largest=False)
            i = i + start
            if best_d is None or best_i is None:
                best_d, best_i = d, i
            else:
                both_d, both_i = torch.cat([best_d, d], 1), torch.cat([best_i, i], 1)
                best_d, order = both_d.topk(min(k, both_d.shape[1]), dim=1, largest=False)
                best_i = both_i.gather(1, order)
        assert best_i is not None
        return best_i
