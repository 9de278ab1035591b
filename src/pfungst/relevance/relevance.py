"""The class of all explanations."""

from __future__ import annotations

import json
import math
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

    Every explanation conserves: ``values.sum() + bias == score`` for each input, up to float precision; where
    several inputs were explained together, ``values.sum() + elsewhere + bias == score``.

    Attributes:
        values: (N, *basis.shape(sample)), in the units of the score.
        score: (N,) the explained value of each input.
        basis: what the trailing axes of `values` mean.
        bias: (N,) the part of the score that belongs to no input feature: biases and constants.
        elsewhere: (N,) the part that the other inputs of the same call received; zero if there were none.
        composite: name of the rules that were followed, "" where it is not known.
        lost: the share of the scores that neither inputs nor additive constants received, in [0, ∞): what the
            rules lost. None where it was not measured.
    """

    def __init__(
        self,
        values: Tensor,
        score: Tensor,
        basis: Basis,
        bias: Tensor | None = None,
        *,
        composite: str = "",
        lost: float | None = None,
        elsewhere: Tensor | None = None,
    ) -> None:
        if score.ndim != 1 or values.shape[:1] != score.shape:
            raise InputError(
                f"values of shape {tuple(values.shape)} do not belong to scores of shape "
                f"{tuple(score.shape)}",
                "the first axis of both is the number of inputs",
            )
        self.values = values
        self.score = score
        self.basis = basis
        self.bias = torch.zeros_like(score) if bias is None else bias
        self.elsewhere = torch.zeros_like(score) if elsewhere is None else elsewhere
        self.composite = composite
        self.lost = lost

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: slice | Tensor | int) -> Relevance:
        if isinstance(index, int):
            index = slice(index, index + 1) if index >= 0 else slice(len(self) + index, len(self) + index + 1)
        return self._with(*(t[index] for t in (self.values, self.score, self.bias, self.elsewhere)))

    def _with(self, values: Tensor, score: Tensor, bias: Tensor, elsewhere: Tensor) -> Relevance:
        return Relevance(
            values, score, self.basis, bias, composite=self.composite, lost=self.lost, elsewhere=elsewhere
        )

    def __repr__(self) -> str:
        rules = f", {self.composite}" if self.composite else ""
        return (
            f"Relevance({tuple(self.values.shape)}, {self.basis!r}{rules}, bias share {self.bias_share:.1%})"
        )

    def sum(self) -> Tensor:
        """Total relevance of each input, (N,)."""
        return self.values.flatten(1).sum(1)

    @property
    def bias_share(self) -> float:
        """Share of the scores' magnitude that biases and constants absorbed, in [0, ∞].

        Infinite where all scores are zero and the bias is not, NaN where a score or the bias is NaN or
        infinite.
        """
        bias, total = float(self.bias.detach().abs().sum()), float(self.score.detach().abs().sum())
        if total == 0 and not math.isnan(bias):
            return math.inf if bias else 0.0
        return bias / total if math.isfinite(bias) and math.isfinite(total) else math.nan

    def conservation_error(self) -> Tensor:
        """|Σ values + elsewhere + bias − score| relative to |score|, (N,); absolute where the score is zero.

        NaN where anything is NaN or infinite.
        """
        gap = (self.sum() + self.elsewhere + self.bias - self.score).abs()
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
                f"a mask of shape {tuple(mask.shape)} does not fit relevance of shape "
                f"{tuple(self.values.shape)}",
                "resize the mask to the images that were explained",
            ) from None
        return self._with(self.values * mask, self.score, self.bias, self.elsewhere)

    def cpu(self) -> Relevance:
        """The same on the CPU, detached."""
        return self._with(*(t.detach().cpu() for t in (self.values, self.score, self.bias, self.elsewhere)))

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

    def _repr_html_(self) -> str:
        """What it is, and the first four inputs' relevance where it can be drawn, for notebooks."""
        import base64
        import io
        from html import escape

        import matplotlib.pyplot as plt

        pictures = []
        for index in range(min(4, len(self))):
            try:
                figure = self.plot(index)
            except (InputError, TypeError, ValueError):  # a basis that no picture shows
                break
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=60, bbox_inches="tight")
            plt.close(figure)
            data = base64.b64encode(stream.getvalue()).decode()
            pictures.append(f'<img alt="relevance of input {index}" src="data:image/png;base64,{data}">')
        scores = ", ".join(f"{v:.4g}" for v in self.score[:4].tolist())
        more = f", … and {len(self) - 4} more" if len(self) > 4 else ""
        return f"<div><code>{escape(repr(self))}</code><p>scores: {scores}{more}</p>{''.join(pictures)}</div>"

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file; the basis and the rules go into its metadata."""
        from safetensors.torch import save_file

        tensors = {"values": self.values, "score": self.score, "bias": self.bias, "elsewhere": self.elsewhere}
        about = {"composite": self.composite, "lost": self.lost}
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()},
            str(path),
            metadata={
                "format": _FORMAT,
                "basis": json.dumps(self.basis.to_dict()),
                "rules": json.dumps(about),
            },
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
                parts = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} cannot be read: {error}", "pass a file that Relevance.save wrote"
            ) from None
        about = json.loads(metadata.get("rules", "{}"))  # files of earlier versions do not say
        return cls(
            parts["values"],
            parts["score"],
            Basis.from_dict(json.loads(metadata["basis"])),
            parts["bias"],
            composite=about.get("composite", ""),
            lost=about.get("lost"),
            elsewhere=parts.get("elsewhere"),
        )


def colour_limit(values: np.ndarray | Tensor) -> float:
    """Value of full colour in a heatmap: 8·mean(|R|³)^⅓ (BiLRP's published drawing code)."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    limit = 8 * float(np.mean(np.abs(array) ** 3)) ** (1 / 3)
    return limit if limit > 0 else 1.0
