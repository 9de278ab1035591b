"""Running a model under a composite, and the linear map that results for fixed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError, PfungstError
from pfungst.relevance import layers  # noqa: F401  (registers what layers get)
from pfungst.relevance.bases import Basis, Patches, Pixels
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.mode import Record, RelevanceMode
from pfungst.relevance.operations import dispatch
from pfungst.relevance.patches import patch_columns
from pfungst.relevance.tape import Tape

Output = Callable[[Any], Tensor]

#: Bytes of one value of many vectors in reverse mode on a CPU: a few fit a last-level cache, and each is below the
#: 32 MiB from which glibc gives freed memory back to the system, so that no value costs page faults.
CACHED = 13 << 20


@dataclass
class Run:
    """One rewritten forward pass.

    Attributes:
        output: (N, K) with the graph of the rewritten pass.
        streams: the inputs whose relevances add up; the first is the input itself.
        records: what each operation got.
        biases: named additive constants (only when they were asked for).
    """

    output: Tensor
    streams: list[Tensor]
    records: list[Record]
    biases: list[tuple[str, Tensor]]


def check_input(x: Any) -> Tensor:
    """`x` as an input that can be explained, or an InputError that says why not."""
    if not isinstance(x, Tensor):
        raise InputError(
            f"the input is a {type(x).__name__}, not a tensor", "convert it with torch.as_tensor"
        )
    if not x.is_floating_point():
        raise InputError(
            f"the input has type {str(x.dtype).removeprefix('torch.')}, relevance needs real numbers",
            "convert images with x.float() / 255; embed tokens first and explain inputs_embeds",
        )
    if x.device.type == "meta":
        raise InputError("the input is a meta tensor without values", "load it on a real device")
    if x.ndim < 2:
        raise InputError(
            f"the input has shape {tuple(x.shape)}", "pass a batch: the first axis counts the inputs"
        )
    if not transformed(x) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise InputError(f"{bad} of {len(x)} inputs contain NaN or infinity", "leave them out or repair them")
    return x


def transformed(x: Tensor) -> bool:
    """Whether `x` is inside a torch.func transform, where its values cannot be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_model(model: Any) -> nn.Module:
    """`model` without its torch.compile wrapper, or an InputError that says why it cannot be explained."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is a {type(model).__name__}, not an nn.Module",
            "wrap it in a module with a forward method",
        )
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript module hides its operations", "explain the original nn.Module")
    if any(p.device.type == "meta" for p in model.parameters()):
        raise InputError("the model has parameters on the meta device", "load its weights first")
    return model


def select(out: Any, output: Output | None) -> Tensor:
    """The tensor (N, K) to be explained from what the model returned."""
    if output is not None:
        out = output(out)
    if not isinstance(out, Tensor):
        keys = list(out) if isinstance(out, Mapping) else None
        what = f"a {type(out).__name__} with keys {keys}" if keys else f"a {type(out).__name__}"
        example = f"output=lambda out: out[{keys[0]!r}]" if keys else "output=lambda out: out[0]"
        raise InputError(f"the model returns {what}, not one tensor", f"choose a tensor with {example}")
    if out.ndim == 0:
        raise InputError("the explained output is a single number for the whole batch", "keep the batch axis")
    return out


def execute(
    model: nn.Module,
    x: Tensor,
    rules: Composite,
    output: Output | None = None,
    streams: list[Tensor] | None = None,
    transforms: bool = False,
    biases: bool = False,
) -> Run:
    """Run `model` rewritten by `rules`.

    Args:
        x: inputs (N, *sample), with gradients where the explanation shall be differentiable.
        output: picks the explained tensor from what the model returns; runs under the rules too.
        streams: values of the streams beside `x`, when they are arguments of a transformed function.
        transforms: run under torch.func transforms.
        biases: account for additive constants.
    """
    mode = RelevanceMode(dispatch, rules, model, transforms, streams, biases)
    if not transforms:
        x = x.detach().clone() if x.is_inference() else x.detach().view_as(x)
        x.requires_grad_()
    else:
        x = x.view_as(x)
    mode.mark(x, anchor=(x, lambda t: t))
    try:
        with mode.active(model):
            out = select(model(x), output)
            out = out[:, None] if out.ndim == 1 else out.flatten(1)
            dependent = mode.tracked(out)
            out = mode.settle(out)
    except (PfungstError, NotImplementedError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        _blame_input(model, x, output, error)
        raise
    if not rules.plain and not dependent:
        raise InputError(
            "the explained output is a constant of the explanation: it depends on the input only through softmax "
            "or ignored operations",
            "explain logits instead of probabilities",
        )
    if len(out) != len(x):
        raise InputError(
            f"the model turns {len(x)} inputs into {len(out)} outputs", "the first axis must count the inputs"
        )
    return Run(out, [x, *mode.streams], mode.records, mode.biases or [])


def _blame_input(model: nn.Module, x: Tensor, output: Output | None, error: Exception) -> None:
    """Raise an InputError if the plain model cannot process the input either."""
    try:
        with torch.no_grad():
            out = model(x.detach())
    except Exception as cause:
        raise InputError(
            f"the model {type(model).__name__} cannot process inputs of shape {tuple(x.shape)} and type "
            f"{str(x.dtype).removeprefix('torch.')}: {cause}",
            "check the number of channels, the size, the type and the device of the inputs",
        ) from error
    try:
        select(out, output)
    except PfungstError:
        raise
    except Exception as cause:
        raise InputError(
            f"output= fails on what the model returns: {cause}", "check the selection"
        ) from error


def trace(model: nn.Module, x: Tensor, rules: Composite | str, output: Output | None = None) -> list[Record]:
    """What each operation of `model` gets for the input `x`, in the order of execution."""
    with torch.inference_mode(False):
        return execute(check_model(model), check_input(x), _composite(rules), output).records


def free_memory(device: torch.device) -> int:
    """Bytes that may be used for intermediate results on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.6)
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return min(int(line.split()[1]) * 1024 // 4, 2 << 30)
    except OSError:
        pass
    return 1 << 30


class LinearizedModel:
    """The linear map Ĵ of a network at fixed inputs, under the rules of a composite.

    Attributes:
        output: (N, K) the network's output.
        sample: shape of one input.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.output = run.output.detach()
        self.sample = tuple(run.streams[0].shape[1:])

    @property
    def inputs(self) -> Tensor:
        """(N, *sample)."""
        return self._run.streams[0].detach()

    @cached_property
    def tape(self) -> Tape:
        """The linear program from the input streams to the output."""
        return Tape(self._run.output, self._run.streams)

    def contract(self, cotangents: Tensor, basis: Basis) -> Tensor:
        """Relevance of M scores per input in a basis, summed over all input streams.

        Args:
            cotangents: (M, N, K).

        Returns:
            (N, M, *basis.shape(sample)).
        """
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

    def columns(self, basis: Basis) -> Tensor:
        """Relevance of every output for every component of the basis, by forward mode.

        Returns:
            (N, K, P) with P = basis.size(sample).
        """
        size = basis.size(self.sample)
        with torch.no_grad():
            if isinstance(basis, Patches):
                return patch_columns(self.tape, [s.detach() for s in self._run.streams], basis, self._chunk)
            step = self._chunk(size)
            parts = []
            for start in range(0, size, step):
                stop = min(start + step, size)
                tangents = [basis.components(s.detach(), start, stop) for s in self._run.streams]
                part = self.tape.forward(tangents)
                assert part is not None
                parts.append(part)
        return torch.cat(parts).permute(1, 2, 0)

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
        most = 32 if self.output.device.type == "cpu" else 512
        return max(1, min(count, most, room))


@torch.compiler.disable  # the rewriting happens in the dispatcher, which a compiled caller would only trace at length
def linearize(
    model: nn.Module,
    x: Tensor,
    composite: str | Composite = "epsilon_plus_flat",
    output: Output | None = None,
) -> LinearizedModel:
    """The rewritten network as a linear map at the inputs `x`.

    Args:
        model: any module in evaluation mode; it is not changed.
        x: inputs (N, *sample), floating point, finite.
        composite: the rules, by object or name.
        output: picks the explained tensor where the model returns several.

    Raises:
        InputError: inputs or model that cannot be explained.
        UncoveredOperation: the network uses an operation without a rule.
    """
    with torch.inference_mode(False):
        return LinearizedModel(execute(check_model(model), check_input(x), _composite(composite), output))
