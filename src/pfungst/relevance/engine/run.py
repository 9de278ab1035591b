"""One run of a model, rewritten by a composite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError, PfungstError
from pfungst.relevance.composites import Composite
from pfungst.relevance.composites import composite as _composite
from pfungst.relevance.engine.dispatch import dispatch
from pfungst.relevance.engine.mode import Record, RelevanceMode

Output = Callable[[Any], Tensor]


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
        with mode.active():
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
