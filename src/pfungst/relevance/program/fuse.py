"""Fewer passes over memory: products with constants become part of the product or sum before or after
them."""

from __future__ import annotations

import torch
from torch import Tensor

from pfungst.relevance.program.ops import Combine, Op, Scale, layout


def fuse(given: list[Op], output: int) -> list[Op]:
    """Merge products with constants into the product or sum before or after them, and sums into sums: mask
    · c is one constant.

    Args:
        given: the ops, in the order of execution.
        output: number of the last value.
    """
    readers: dict[int, int] = {}
    for op in given:
        for i in op.ins:
            readers[i] = readers.get(i, 0) + 1
    made: dict[int, Op] = {}
    ops: list[Op] = []

    def maker(i: int) -> Op | None:
        return made.get(i) if readers[i] == 1 and i != output else None

    for op in given:
        if isinstance(op, Combine) and len(op.ins) == 1 and isinstance(op.cs[0], Tensor):
            op = Scale(op.ins, op.outs, op.cs[0])
        first = maker(op.ins[0]) if op.ins else None
        if isinstance(op, Scale) and isinstance(first, Scale | Combine):
            merged: Op
            if isinstance(first, Scale):
                merged = Scale(first.ins, op.outs, _product(first.c, op.c))
            else:
                c = op.c
                merged = Combine(first.ins, op.outs, [_times(b, c) for b in first.cs])
            ops[ops.index(first)] = merged
            op = merged
        else:
            if isinstance(op, Combine):
                ins, cs = list[int](), list[Tensor | float]()
                for i, factor in zip(op.ins, op.cs, strict=True):
                    source = maker(i)
                    if isinstance(source, Scale | Combine):
                        ops.remove(source)
                        ins += source.ins
                        inner = source.cs if isinstance(source, Combine) else [source.c]
                        cs += [_times(b, factor) for b in inner]
                    else:
                        ins.append(i)
                        cs.append(factor)
                op.ins, op.cs = ins, cs
            ops.append(op)
        for o in op.outs:
            made[o] = op
    return ops


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a · b, where 0 · inf stays zero: where one factor vanishes the product does."""
    return layout(torch.where((a == 0) | (b == 0), 0.0, a * b))


def _times(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _product(a, b)
    if isinstance(a, Tensor):
        return a if b == 1 else a * b
    return b if a == 1 else a * b
