"""Many inputs of one shape on a GPU: the explanation is recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.relevance import auto
from pfungst.relevance.attribute import _check_finite, _weights, attribute
from pfungst.relevance.bases import Basis, Pixels
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.eager import eager
from pfungst.relevance.engine.inputs import Inputs, check_input
from pfungst.relevance.engine.run import Output, Run, check_model, execute
from pfungst.relevance.relevance import Relevance

_WARM = 3  # runs before recording, in which libraries choose their algorithms
#: Relative difference between a replay and a plain explanation that rounding may make; 10 % for half types.
_SAME: dict[torch.dtype, float] = {torch.float64: 1e-6, torch.float32: 2e-2}


@dataclass
class _Recorded:
    """A graph with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    weights: Tensor
    out: Tensor
    shape: tuple[int, ...]
    streams: list[Tensor]
    grads: list[Tensor | None]
    state: tuple[Any, ...]
    other: bool = False  # the weights are those of another score than the constructor's


class Replay:
    """:func:`attribute` for many inputs of one shape.

    Explaining one image launches about a thousand small kernels, which on a GPU takes longer than their work.
    Here they are recorded for the shape of `example` and launched together. Without a GPU every call is a
    plain :func:`attribute`.

    A replay repeats the operations that ran for `example`. A model whose forward pass decides by the values
    of its input which operations to run (early exits, routing in Python) must not be replayed: where the
    decision is read back to Python recording raises; the first replays, of `example` and of another input,
    are compared with plain explanations. The values of the weights are read anew by each replay, so training
    and ``load_state_dict`` need no care; where weights moved in memory or modules changed their mode the
    graph is recorded again.

    Args:
        model: any module in evaluation mode; it is not changed.
        example: inputs (N, *sample), floating point, finite.
        output: which score, as for :func:`attribute`. A callable is recorded too.
        composite: the rules, by object or name.
        basis: in which the relevance is read; pixels by default.

    Raises:
        InputError: what :func:`attribute` raises; a model that cannot be recorded or replays to other values.
        UncoveredOperation: the network uses an operation without a rule.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        output: Any = None,
        composite: str | Composite = "auto",
        basis: Basis | None = None,
    ) -> None:
        self.model = check_model(model)
        self.output = output
        self.basis = basis or Pixels()
        self.kind = tuple(example.shape), example.dtype, example.device
        self._pick: Output | None = output if callable(output) else None
        self._lock = threading.Lock()
        check_input(example)
        with torch.inference_mode(False):
            _, self.composite = auto.run(
                self.model, Inputs(example), _composite(composite), self._pick, auto.spectral(self.basis)
            )
        self._recorded: _Recorded | None = None
        if example.device.type == "cuda":
            self._recorded = self._record(example)

    @eager
    def __call__(self, x: Tensor, output: Any = None) -> Relevance:
        """Relevance of each input.

        Args:
            x: inputs of the shape, type and device of the example, finite.
            output: which score, if another than that of the constructor; no callable.
        """
        if (tuple(x.shape), x.dtype, x.device) != self.kind:
            raise InputError(
                f"an input of shape {tuple(x.shape)}, {x.dtype} on {x.device} does not fit what was "
                "recorded: "
                f"{self.kind[0]}, {self.kind[1]} on {self.kind[2]}",
                "make a Replay for it, or use attribute",
            )
        if output is not None and (callable(output) or self._pick is not None):
            raise InputError("a callable is recorded with the graph", "make a Replay for another score")
        if self._recorded is None:
            return self._plain(x, output)
        check_input(x)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self._recorded.state != self._state():
                self._recorded = self._record(x)
            return self._run(self._recorded, x, output)

    def _plain(self, x: Tensor, output: Any = None) -> Relevance:
        output = self.output if output is None else output
        result: Relevance = attribute(self.model, x, output, self.composite, self.basis, measure=False)
        return result

    def _state(self) -> tuple[Any, ...]:
        """Where the graph's weights lie, and the mode of every module."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return (
            *((t.data_ptr(), t.dtype, t.shape) for t in tensors),
            *(m.training for m in self.model.modules()),
        )

    def _explain(self, x: Tensor, weights: Tensor | None) -> tuple[Run, Tensor, list[Tensor | None]]:
        run = execute(self.model, x, self.composite, self._pick)
        if weights is None:
            weights = _weights(run.output.detach(), run.shape, self.output, self._pick)
        grads = torch.autograd.grad(run.output, run.streams, weights, allow_unused=True)
        return run, weights, list(grads)

    def _record(self, example: Tensor) -> _Recorded:
        x = example.detach().clone()
        device = x.device
        with torch.inference_mode(False), torch.enable_grad(), torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                weights = None
                for _ in range(_WARM):
                    weights = self._explain(x, weights)[1]
            torch.cuda.current_stream().wait_stream(side)
            assert weights is not None
            weights = weights.clone()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    run, _, grads = self._explain(x, weights)
            except (RuntimeError, InputError) as error:
                raise InputError(
                    f"the model {type(self.model).__name__} cannot be recorded as a CUDA graph: {error}",
                    "its forward pass waits for the device, as by .item(), a copy from the CPU or an if on a "
                    "tensor: use attribute",
                ) from error
            found = _Recorded(
                graph,
                x,
                weights,
                run.output.detach(),
                run.shape,
                [s.detach() for s in run.streams],
                grads,
                self._state(),
            )
        for other in (example, example.flip(-1) * 0.5):
            self._compare(found, other)
        return found

    def _compare(self, recorded: _Recorded, x: Tensor) -> None:
        """Raise unless a replay gives what a plain explanation gives."""
        with torch.no_grad():
            got = self._run(recorded, x, None)
        expected = self._plain(x)
        rough = _SAME.get(got.values.dtype, 0.1)
        for a, b in ((got.score, expected.score), (got.values, expected.values)):
            error = float((a - b).abs().sum() / b.abs().sum().clamp(min=1e-30))
            if not error <= rough:
                raise InputError(
                    f"a replay differs from a plain explanation by {error:.1e} of it",
                    "the model's operations depend on the values of its input: use attribute",
                )

    def _run(self, recorded: _Recorded, x: Tensor, output: Any) -> Relevance:
        recorded.x.copy_(x)
        if output is not None or recorded.other:
            chosen = self.output if output is None else output
            recorded.weights.copy_(_weights(recorded.out, recorded.shape, chosen, None))
            recorded.other = output is not None
        recorded.graph.replay()
        total: Tensor | None = None
        for stream, g in zip(recorded.streams, recorded.grads, strict=True):
            if g is not None:
                r = self.basis.contract(stream, g, x.ndim - 1)
                total = r if total is None else total + r
        assert total is not None
        weights = recorded.weights
        score = torch.where(weights == 0, 0.0, recorded.out * weights).sum(1)
        _check_finite(score, [total], (0,), self.composite)
        bias = score - total.flatten(1).sum(1)
        return Relevance(total, score, self.basis, bias, composite=self.composite.name)


__all__ = ["Replay"]
