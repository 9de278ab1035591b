"""Nodes of autograd's graph that have no kernel of their own: their derivative under vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.program.ops import Box, Op, union
from pfungst.relevance.program.parts import Part


def _cast(g: Tensor, dtype: torch.dtype) -> Tensor:
    return g.real.to(dtype) if g.is_complex() and not dtype.is_complex else g.to(dtype)


class Generic(Op):
    """Any other node, by its own derivative."""

    def __init__(
        self, ins: list[int], outs: list[int], node: Any, slots: list[int], device: torch.device
    ) -> None:
        super().__init__(ins, outs)
        self.node, self.slots = node, slots
        self.meta = [(tuple(m.shape), m.dtype) for m in node._input_metadata]
        self.device = device
        self.numbers: list[int] = []  # output number of each of `outs`
        self.sources: list[tuple[tuple[int, ...], torch.dtype]] = []  # shape and type of each input

    def _all(self, grads: Sequence[Tensor | None], lead: tuple[int, ...]) -> list[Tensor]:
        given = dict(zip(self.numbers, grads, strict=True))
        out = []
        for i, (shape, dtype) in enumerate(self.meta):
            g = given.get(i)
            if g is None:
                g = torch.zeros((*lead, *shape), dtype=dtype, device=self.device)
            out.append(g)
        return out

    def _call(self, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out = self.node(*grads)
        out = out if isinstance(out, tuple) else (out,)
        # the engine of autograd sums over broadcast axes after the node has run; so must we
        return tuple(
            g if g is None else _cast(g.sum_to_size(shape), dtype)
            for g, (shape, dtype) in zip((out[i] for i in self.slots), self.sources, strict=True)
        )

    def reverse(self, grads: list[Tensor | None], owned: bool) -> list[tuple[Part | None, bool]]:
        lead = next(g.shape[0] for g in grads if g is not None)
        parts = torch.vmap(self._call)(*self._all(grads, (lead,)))
        return [(None if p is None else p.resolve_conj().resolve_neg(), False) for p in parts]

    def forward(self, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        with torch.enable_grad():
            u = [z.requires_grad_() for z in self._all([None] * len(self.numbers), ())]
            g = self._call(*u)
        # what is overwritten passes nothing on, whatever the cotangent
        pairs = [
            (a, t)
            for a, t in zip(g, tangents, strict=True)
            if t is not None and a is not None and a.requires_grad
        ]
        if not pairs:
            return [None for _ in self.outs]
        out = torch.autograd.grad(
            [a for a, _ in pairs],
            u,
            [t for _, t in pairs],
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        return [out[i] for i in self.numbers]

    def box(self, boxes: list[Box | None], shape: tuple[int, ...]) -> Box | None:
        along_channels = self.node.name() == "CatBackward0" and self.node._saved_dim in (1, 2**64 - 3)
        return union(boxes) if along_channels and len(shape) == 4 else None
