"""The linear map that a rewritten model is for fixed inputs."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.memory import available_memory
from pfungst.relevance import auto
from pfungst.relevance.attribute import warn_flat_spectrum
from pfungst.relevance.bases import Basis, Patches, Pixels
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.eager import eager
from pfungst.relevance.engine.inputs import Inputs
from pfungst.relevance.engine.run import Output, Run, backward, check_model, check_values, first_use
from pfungst.relevance.program.patches import patch_columns
from pfungst.relevance.program.tape import Tape

#: Bytes of one value of many vectors in reverse mode on a CPU: a few fit a last-level cache, and each is
#: below the 32 MiB from which glibc gives freed memory back to the system, so that no value costs page
#: faults.
CACHED = 13 << 20


def free_memory(device: torch.device) -> int:
    """Bytes that may be used for intermediate results on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.6)
    known = available_memory()
    return 1 << 30 if known is None else min(known // 4, 2 << 30)


class LinearizedModel:
    """The linear map Ĵ of a network at fixed inputs, under the rules of a composite.

    Attributes:
        output: (N, K) the network's output, its axes after the first made one in their order.
        shape: (N, …) that output's shape before.
        sample: shape of one input.
        rules: the composite that was followed.
    """

    def __init__(self, run: Run, rules: Composite) -> None:
        self._run = run
        self.rules = rules
        self.shape = run.shape
        self.output = run.output.detach()
        self.sample = tuple(run.streams[0].shape[1:])

    @property
    def composite(self) -> str:
        """Name of the rules that were followed."""
        return self.rules.name

    @property
    def inputs(self) -> Tensor:
        """(N, *sample)."""
        return self._run.streams[0].detach()

    @cached_property
    def tape(self) -> Tape:
        """The linear program from the input streams to the output."""
        return Tape(self._run.output, self._run.streams)

    @backward()
    def contract(self, cotangents: Tensor, basis: Basis) -> Tensor:
        """Relevance of M scores per input in a basis, summed over all input streams.

        Args:
            cotangents: (M, N, K).

        Returns:
            (N, M, *basis.shape(sample)).
        """
        warn_flat_spectrum(self.rules, [basis])
        parts = []
        cpu = self.output.device.type == "cpu"
        room = free_memory(self.output.device) if cpu else 0
        step = max(1, len(cotangents)) if cpu else self._chunk(len(cotangents))
        with torch.no_grad():
            for chunk in cotangents.split(step):
                for grads in self.tape.reverse(chunk, CACHED if cpu else None, room):
                    total = None
                    for stream, g in zip(self._run.streams, grads, strict=True):
                        if g is not None:
                            r = basis.contract(stream.detach(), g, len(self.sample))
                            total = r if total is None else total + r
                    assert total is not None
                    parts.append(total)
        return torch.cat(parts).transpose(0, 1)

    def rows(self, cotangents: Tensor, basis: Basis | None = None) -> Tensor:
        """Relevance of M scores by reverse mode.

        Args:
            cotangents: (M, K), the same scores for every input, or (N, M, K).
            basis: where to read it; by default pixels with their channels.

        Returns:
            (N, M, *basis.shape(sample)); by default (N, M, *sample).
        """
        n, k = self.output.shape
        if cotangents.shape[-1] != k or cotangents.ndim not in (2, 3):
            raise InputError(
                f"cotangents of shape {tuple(cotangents.shape)} do not fit {k} outputs",
                f"pass (M, {k}) or ({n}, M, {k})",
            )
        if cotangents.ndim == 2:
            cotangents = cotangents[:, None].expand(-1, n, -1)
        else:
            cotangents = cotangents.transpose(0, 1)
        return self.contract(cotangents.to(self.output), basis or Pixels(channels=True))

    @backward()
    def columns(self, basis: Basis) -> Tensor:
        """Relevance of every output for every component of the basis, by forward mode.

        Returns:
            (N, K, P) with P = basis.size(sample).
        """
        warn_flat_spectrum(self.rules, [basis])
        size = basis.size(self.sample)
        with torch.no_grad():
            if isinstance(basis, Patches):
                streams, room = [s.detach() for s in self._run.streams], free_memory(self.output.device)
                return patch_columns(self.tape, streams, basis, self._chunk, room)
            step = self._chunk(size)
            parts = []
            for start in range(0, size, step):
                stop = min(start + step, size)
                tangents = [basis.components(s.detach(), start, stop) for s in self._run.streams]
                part = self.tape.forward(tangents)
                assert part is not None
                parts.append(part)
        return torch.cat(parts).permute(1, 2, 0)

    @backward()
    def combined(self, basis: Basis, weights: Tensor) -> Tensor:
        """Relevance of every output for weighted sums of components, by forward mode: A · weights.

        Args:
            weights: (P, M).

        Returns:
            (N, K, M).
        """
        warn_flat_spectrum(self.rules, [basis])
        size, step = basis.size(self.sample), self._chunk(len(weights))
        with torch.no_grad():
            tangents = []
            for stream in (s.detach() for s in self._run.streams):
                total = stream.new_zeros((weights.shape[1], *stream.shape))
                for start in range(0, size, step):
                    stop = min(start + step, size)
                    part = basis.components(stream, start, stop)
                    total += torch.tensordot(weights[start:stop].T.to(part), part, 1)
                tangents.append(total)
            step = self._chunk(weights.shape[1])
            parts = [
                self.tape.forward([t[i : i + step] for t in tangents])
                for i in range(0, weights.shape[1], step)
            ]
        return torch.cat([p for p in parts if p is not None]).permute(1, 2, 0)

    def factor(self, basis: Basis) -> Tensor:
        """A (N, K, P): relevance of each output in each component, by the direction with fewer passes."""
        n, k = self.output.shape
        if basis.size(self.sample) < k:
            return self.columns(basis)
        eye = torch.eye(k, dtype=self.output.dtype, device=self.output.device)
        return self.rows(eye, basis).reshape(n, k, -1)

    def _chunk(self, count: int, start: int = 0, stop: int | None = None) -> int:
        """How many vectors to run at once through ops `start` … `stop`."""
        tape = self.tape
        each = 6 * self.output.element_size() * tape.width(start, len(tape.ops) if stop is None else stop)
        room = int(free_memory(self.output.device) // max(each, 1))
        most = max(1, min(32 if self.output.device.type == "cpu" else 1024, room))
        return -(-count // -(-count // most)) if count > 0 else 1  # chunks of equal size


@eager
def linearize(
    model: nn.Module,
    x: Any,
    composite: str | Composite = "auto",
    output: Output | None = None,
    explain: int | str | None = None,
) -> LinearizedModel:
    """The rewritten network as a linear map at the inputs `x`.

    Args:
        model: any module in evaluation mode; it is not changed.
        x: inputs (N, *sample), floating point, finite; or a tuple or dictionary of arguments as in
            :func:`attribute`, one of which is explained.
        composite: the rules, by object or name; "auto" chooses those that conserve on this network.
        output: picks the explained tensor where the model returns several, and the outputs of interest where
            it returns more than (N, K): outputs (N, C, H, W) become C·H·W outputs in this order.
        explain: which of several inputs; by default the only floating tensor.

    Raises:
        InputError: inputs or model that cannot be explained, several inputs to explain, or values that are
            not those of the plain forward pass.
        UncoveredOperation: the network uses an operation without a rule.
    """
    if output is not None and not callable(output):
        raise InputError(
            f"linearize explains all outputs at once; output={output!r} is no callable",
            "leave it out, or write output=lambda out: out[:, [0, 3]]; for one score use attribute",
        )
    model, given = check_model(model), Inputs.read(x, explain)
    if len(given.explained) > 1:
        raise InputError(
            f"linearize explains one input at a time, not {given.explained}",
            f"choose it with explain=, for example explain={given.explained[0]!r}; the others are constants",
        )
    with torch.inference_mode(False):
        run, rules = auto.run(model, given, _composite(composite), output)
        if first_use(model, given, rules, "linearize"):
            check_values(model, given, run, output)
        return LinearizedModel(run, rules)
