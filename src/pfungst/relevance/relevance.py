"""The class of all explanations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.bases import Basis, PixelBands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMAT = "pfungst.relevance/1"


class Relevance:
    """Relevance of N inputs, with what is needed to check it.

    Every explanation conserves: ``values.sum() + bias == score`` for each input, up to float precision.

    Attributes:
        values: (N, *basis.shape(sample)), in the units of the score.
        score: (N,) the explained value of each input.
        basis: what the trailing axes of `values` mean.
        bias: (N,) the part of the score that belongs to no input feature: biases and constants.
    """

    def __init__(self, values: Tensor, score: Tensor, basis: Basis, bias: Tensor | None = None) -> None:
        if score.ndim != 1 or values.shape[:1] != score.shape:
            raise InputError(
                f"values of shape {tuple(values.shape)} do not belong to scores of shape {tuple(score.shape)}",
                "the first axis of both is the number of inputs",
            )
        self.values = values
        self.score = score
        self.basis = basis
        self.bias = torch.zeros_like(score) if bias is None else bias

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: slice | Tensor | int) -> Relevance:
        if isinstance(index, int):
            index = slice(index, index + 1) if index >= 0 else slice(len(self) + index, len(self) + index + 1)
        return Relevance(self.values[index], self.score[index], self.basis, self.bias[index])

    def __repr__(self) -> str:
        return f"Relevance({tuple(self.values.shape)}, {self.basis!r}, bias share {self.bias_share:.1%})"

    def sum(self) -> Tensor:
        """Total relevance of each input, (N,)."""
        return self.values.flatten(1).sum(1)

    @property
    def bias_share(self) -> float:
        """Share of the scores' magnitude that biases and constants absorbed, in [0, ∞)."""
        total = self.score.abs().sum()
        return float(self.bias.abs().sum() / total) if total > 0 else 0.0

    def conservation_error(self) -> Tensor:
        """|Σ values + bias − score| relative to |score|, (N,); absolute where the score is zero."""
        gap = (self.sum() + self.bias - self.score).abs()
        return torch.where(self.score == 0, gap, gap / self.score.abs())

    def inside(self, mask: Tensor) -> Relevance:
        """The relevance restricted to a mask: zero outside it, score and bias unchanged.

        Args:
            mask: (N, H, W) or (H, W), boolean or weights in [0, 1]; the trailing axes must match `values`.
        """
        mask = mask.to(self.values)
        while mask.ndim < self.values.ndim and mask.ndim > 0 and mask.shape[0] == len(self):
            mask = mask.unsqueeze(1)
        try:
            torch.broadcast_shapes(mask.shape, self.values.shape)
        except RuntimeError:
            raise InputError(
                f"a mask of shape {tuple(mask.shape)} does not fit relevance of shape {tuple(self.values.shape)}",
                "resize the mask to the images that were explained",
            ) from None
        return Relevance(self.values * mask, self.score, self.basis, self.bias)

    def cpu(self) -> Relevance:
        """The same on the CPU, detached."""
        parts = (t.detach().cpu() for t in (self.values, self.score, self.bias))
        values, score, bias = parts
        return Relevance(values, score, self.basis, bias)

    def plot(self, index: int = 0, ax: Axes | None = None, limit: float | None = None) -> Any:
        """Draw one input's relevance: a heatmap, one heatmap per band, or bars per band.

        Args:
            index: which input.
            ax: axes to draw on (one map or one spectrum only).
            limit: value of full colour; by default 8·mean(|R|³)^⅓.

        Returns:
            The matplotlib figure.
        """
        import matplotlib.pyplot as plt

        values = self.values[index].detach().float().cpu().numpy()
        if values.ndim == 3 and isinstance(self.basis, PixelBands):
            edges = self.basis.resolve(*values.shape[1:])
            figure, axes = plt.subplots(1, len(values), figsize=(2.6 * len(values), 2.9), squeeze=False)
            limit = limit or colour_limit(values)
            for panel, part, lo, hi in zip(axes[0], values, edges[:-1], edges[1:], strict=True):
                panel.imshow(part, cmap="seismic", vmin=-limit, vmax=limit)
                panel.set(title=f"frequencies {lo}–{hi - 1}\nΣ = {part.sum():.3g}", xticks=[], yticks=[])
            return figure
        if ax is None:
            _, ax = plt.subplots()
        if values.ndim == 1:
            ax.bar(np.arange(len(values)), values, color=np.where(values >= 0, "tab:red", "tab:blue"))
            ax.set(xlabel={"dct-bands": "frequency band", "tokens": "token"}.get(self.basis.name, "feature"))
            ax.set(ylabel="relevance")
        else:
            values = values.sum(0) if values.ndim == 3 else values
            limit = limit or colour_limit(values)
            shown = ax.imshow(values, cmap="seismic", vmin=-limit, vmax=limit)
            ax.set(title=f"score {self.score[index].item():.4g}", xticks=[], yticks=[])
            ax.figure.colorbar(shown, ax=ax, label="relevance")
        return ax.figure

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file; the basis goes into its metadata."""
        from safetensors.torch import save_file

        tensors = {"values": self.values, "score": self.score, "bias": self.bias}
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()},
            str(path),
            metadata={"format": _FORMAT, "basis": json.dumps(self.basis.to_dict())},
        )

    @classmethod
    def load(cls, path: str | Path) -> Relevance:
        """Read what :meth:`save` wrote. Raises InputError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise InputError(
                        f"{path} is not saved relevance", "pass a file that Relevance.save wrote"
                    )
                parts = {k: file.get_tensor(k) for k in ("values", "score", "bias")}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} cannot be read: {error}", "pass a file that Relevance.save wrote"
            ) from None
        return cls(
            parts["values"], parts["score"], Basis.from_dict(json.loads(metadata["basis"])), parts["bias"]
        )


def colour_limit(values: np.ndarray | Tensor) -> float:
    """Value of full colour in a heatmap: 8·mean(|R|³)^⅓ (BiLRP's published drawing code)."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    limit = 8 * float(np.mean(np.abs(array) ** 3)) ** (1 / 3)
    return limit if limit > 0 else 1.0
