"""The program of a rewritten forward pass, read off autograd's graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.relevance.program.generic import Generic
from pfungst.relevance.program.ops import Combine, GlobalMean, Op, Reshape, Scale, Spread, layout
from pfungst.relevance.program.windows import Convolution, MaxPool


class Graph:
    """The nodes between the input streams and the output as ops, which read and write numbered values.

    Args:
        output: (N, K) with its graph.
        streams: leaves, (N, *sample) each.

    Attributes:
        ops: in the order of execution.
        shapes: of each value.
        kinds: shape and type of each value.
        streams: number of each stream's value, None where the output does not depend on it.
        output: number of the output's value.
    """

    def __init__(self, output: Tensor, streams: list[Tensor]) -> None:
        self.ops: list[Op] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.kinds: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}
        self.streams: list[int | None] = [None] * len(streams)
        self.device = output.device
        self._numbers: dict[tuple[Any, int], int] = {}
        leaves = {id(s): i for i, s in enumerate(streams)}
        order = _reachable(output.grad_fn, leaves)
        for node in order:
            self._add(node, order, leaves)
        self.output = self._value(output.grad_fn, output.output_nr)
        self.shapes[self.output] = tuple(output.shape)

    def _value(self, node: Any, nr: int) -> int:
        return self._numbers.setdefault((node, nr), len(self._numbers))

    def _add(self, node: Any, order: dict[Any, None], leaves: dict[int, int]) -> None:
        if hasattr(node, "variable"):  # a leaf
            i = leaves[id(node.variable)]
            self.streams[i] = self._value(node, 0)
            self.shapes[self._value(node, 0)] = tuple(node.variable.shape)
            self.kinds[self._value(node, 0)] = (tuple(node.variable.shape), node.variable.dtype)
            return
        slots = [i for i, (n, _) in enumerate(node.next_functions) if n in order]
        ins = [self._value(*node.next_functions[i]) for i in slots]
        for i, m in enumerate(node._input_metadata):
            self.shapes[self._value(node, i)] = tuple(m.shape)
            self.kinds[self._value(node, i)] = (tuple(m.shape), m.dtype)
        op = None
        if len(node._input_metadata) == 1 or node.name() == "NativeBatchNormBackward0":
            try:
                op = self._known(node, slots, ins, self._value(node, 0))
            except (AttributeError, NotImplementedError, RuntimeError):
                op = None
        if op is None:
            numbers = list(range(len(node._input_metadata)))
            generic = Generic(ins, [self._value(node, i) for i in numbers], node, slots, self.device)
            generic.numbers = numbers
            generic.sources = [self.kinds[i] for i in ins]
            op = generic
        self.ops.append(op)

    def _known(self, node: Any, slots: list[int], ins: list[int], out: int) -> Op | None:
        """The op of a node that has a kernel of its own."""
        name = node.name()
        shape, before = self.shapes[out], [self.shapes[i] for i in ins]
        same = all(b == shape for b in before)
        if name == "AttachBackward" and same:
            cs = node.saved_tensors
            # edges of each term: its map and its constant, which has none where it is 1
            terms = [c for c in cs for _ in range(1 if c is None else 2)]
            if len(node.next_functions) == len(terms):
                return Combine(
                    ins,
                    [out],
                    [1.0 if c is None else layout(c.detach()) for c in map(terms.__getitem__, slots)],
                )
        if any(self.kinds[i][1].is_complex for i in (*ins, out)):
            return None  # the products below do not conjugate
        if name == "ConvolutionBackward0" and slots == [0] and len(shape) == 4 and not node._saved_transposed:
            return Convolution(ins, [out], node)
        if name == "ReluBackward0":
            mask = node._saved_result > 0
            return Scale(ins, [out], layout(mask.to(node._saved_result.dtype)))
        if name == "MulBackward0" and len(ins) == 1 and same:
            c = node._saved_other if slots == [0] else node._saved_self
            if isinstance(c, Tensor):  # a copy of a Python number is a tensor of its own type
                return Scale(ins, [out], layout(c.detach() if c.ndim else c.detach().clone()))
        if name == "NativeBatchNormBackward0" and slots == [0] and not node._saved_training:
            c = torch.rsqrt(node._saved_running_var + node._saved_eps)
            c = c if node._saved_weight is None else c * node._saved_weight.detach()
            return Scale(ins, [out], c.to(self.kinds[out][1]).reshape(1, -1, *[1] * (len(shape) - 2)))
        if name == "AddBackward0" and same and node._saved_alpha == 1:
            return Combine(ins, [out], [1.0] * len(ins))
        if name == "SubBackward0" and same and node._saved_alpha == 1:
            return Combine(ins, [out], [1.0 if i == 0 else -1.0 for i in slots])
        if name == "ExpandBackward0" and len(shape) == 4 and before[0] == (shape[0], 1, *shape[2:]):
            return Spread(ins, [out], shape[1])
        if (
            name in ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
            and shape[0] == before[0][0]
        ):
            return Reshape(ins, [out], before[0], shape)
        if name == "MaxPool2DWithIndicesBackward0":
            return MaxPool(ins, [out], node)
        if name == "MeanBackward1" and len(before[0]) == 4:
            dims = sorted(d % 4 if d < 4 else d - 2**64 + 4 for d in node._saved_dim)
            if dims == [2, 3]:
                return GlobalMean(ins, [out], before[0], node._saved_keepdim)
        return None


def _reachable(root: Any, leaves: dict[int, int]) -> dict[Any, None]:
    """Nodes between the root and the leaves, leaves first."""
    order: dict[Any, None] = {}
    useful: dict[Any, bool] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            reached = hasattr(node, "variable") and id(node.variable) in leaves
            useful[node] = reached or any(useful.get(n, False) for n, _ in node.next_functions)
            if useful[node]:
                order[node] = None
        elif node not in useful:
            useful[node] = False
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None and n not in useful]
    return order
