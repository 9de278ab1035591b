"""Operations that do not pass through the mode: recognised as elementwise, or named.

TorchScript, ``torch.vmap``, custom autograd functions and code outside PyTorch make tensors that carry
gradients but no mark. From their graph follows what they depend on, and from their derivative whether they
are elementwise.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pfungst.errors import UncoveredOperation
from pfungst.relevance.engine.folding import Folding
from pfungst.relevance.rules import _quotient

_RECENT = 8  # marked tensors, kept alive, among which the source of an unseen operation is looked for


class Unseen(Folding):
    """The part of the mode that tells what depends on the input.

    Attributes:
        stack: modules that are running, innermost last.
        level: of the transform of ``torch.func`` that a run is differentiated by.
        base: of the transforms around the run; deeper ones are the model's own.
        inputs: what is explained, and its streams.
        recent: tensors that were marked last.
        written: where the memory of tensors begins into which a visible operation wrote.
        bases: where the memory begins into which views look.
        constants: nodes of autograd that do not depend on the input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[nn.Module] = []
        self.level: int | None = None
        self.base: int | None = None
        self.inputs: list[Tensor] = []
        self.recent: deque[Tensor] = deque(maxlen=_RECENT)
        self.written: set[int] = set()
        self.bases: set[int] = set()
        self.constants: set[Any] = set()

    def place(self) -> str:
        """Where the run is, for messages."""
        return (
            f"module {self.module_name()!r} ({type(self.stack[-1]).__name__})" if self.stack else "the model"
        )

    def depends(self, t: Tensor) -> bool:
        """Whether `t` depends on the input; what depends on it through an unseen operation gets a mark or
        raises."""
        mark = self.mark_of(t)
        if self._foreign(t):
            self.unseen("torch.vmap or another transform of torch.func is used", "")
        if mark is not None:
            if version_of(t) != mark.version and mark.settled is None and storage_of(t) not in self.written:
                self.unseen("an operation wrote into a tensor", "")
            return mark.tracked
        if not self._differentiable(t) or t.grad_fn is None or t.grad_fn in self.constants:
            return False
        if not t.numel():  # nothing to carry: such as what checkpoints of older torch hang their inputs on
            return False
        sources = self._sources(t)
        if not sources:
            self.constants.add(t.grad_fn)  # computed from parameters
            return False
        x = sources[0]
        if self.transforms or len(sources) > 1 or x.shape != t.shape or not _elementwise(t, x):
            self.unseen("an operation made a tensor", t.grad_fn.name())
        value, mark = t.detach(), self.mark_of(x)
        x = self.settle(x)
        with torch.enable_grad():
            out = self.attach(value, [(x, _quotient(value, self.stop(x), 1e-12))])
        self.record(t.grad_fn.name().removesuffix("Backward"), out, "Pass()")
        self.mark(t, settled=self.mark(out, internal=True))
        return True

    def _differentiable(self, t: Tensor) -> bool:
        if self.transforms and self.level is not None:
            return torch._C._functorch.maybe_get_level(t) == self.level
        return t.requires_grad

    def _foreign(self, t: Tensor) -> bool:
        """Whether `t` is inside a transform that the model itself applies, and depends on the input."""
        inner = torch._C._functorch.maybe_current_level()
        if inner is None or inner == self.base:
            return False
        if self.tracked(t):
            return True
        while torch._C._functorch.is_functorch_wrapped_tensor(t):
            if (torch._C._functorch.maybe_get_level(t) or 0) <= (self.base or 0):
                return self.transforms
            t = torch._C._functorch.get_unwrapped(t)
        return (t.requires_grad and t.grad_fn is not None) or (
            t.requires_grad and self.mark_of(t) is not None
        )

    def _sources(self, t: Tensor) -> list[Tensor]:
        """The nearest tensors of this run from which autograd computed `t`."""
        known = {(s.grad_fn, s.output_nr): s for s in self.recent if s.grad_fn is not None}
        found: dict[int, Tensor] = {}
        nodes: list[tuple[Any, int]] = [(t.grad_fn, t.output_nr)]
        seen: set[Any] = set()
        while nodes:
            node, number = nodes.pop()
            if node is None or (node, number) in seen:
                continue
            seen.add((node, number))
            source = known.get((node, number))
            if source is None and self.tracked(getattr(node, "variable", None)):
                source = node.variable
            if source is not None:
                found[id(source)] = source
            else:
                nodes += node.next_functions
        return list(found.values())

    def unseen(self, what: str, made_by: str) -> NoReturn:
        """Raise for an operation that does not pass through the mode."""
        called = f" (autograd calls it {made_by})" if made_by else ""
        raise UncoveredOperation(
            f"{what}{called} whose inside cannot be seen, in or before {self.place()}: a TorchScript "
            "function, a "
            "custom autograd.Function that is not elementwise, torch.vmap, or code outside PyTorch",
            "write it with torch operations, or pass the original nn.Module instead of a scripted or traced "
            "one",
        )


def in_reentrant_checkpoint() -> bool:
    """Whether the caller runs inside ``torch.utils.checkpoint(..., use_reentrant=True)``."""
    import torch.utils.checkpoint as checkpoint

    code = checkpoint.CheckpointFunction.forward.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def version_of(t: Tensor) -> int:
    """How often a tensor was written into; 0 where that is not counted."""
    try:
        return t._version
    except RuntimeError:  # inference tensors do not count versions
        return 0


def storage_of(t: Tensor) -> int:
    """Where the memory of `t` begins; 0 inside a transform of torch.func."""
    try:
        return t.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _elementwise(t: Tensor, x: Tensor) -> bool:
    """Whether autograd's derivative of `t` by `x` is diagonal: Jᵀv = v ⊙ Jᵀ1 for random v."""
    ones, v = torch.ones_like(t), torch.rand_like(t) + 0.5
    try:
        diagonal, g = (torch.autograd.grad(t, x, w, retain_graph=True)[0] for w in (ones, v))
    except RuntimeError:  # a custom function without a derivative
        return False
    return bool(torch.allclose(g, v * diagonal, rtol=1e-4, atol=1e-7 + 1e-5 * float(diagonal.abs().max())))
