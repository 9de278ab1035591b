"""One run of a model, rewritten by a composite."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError, PfungstError, UncoveredOperation
from pfungst.relevance.composites import Composite
from pfungst.relevance.engine.dispatch import dispatch
from pfungst.relevance.engine.inputs import Inputs
from pfungst.relevance.engine.mode import Record, RelevanceMode

Output = Callable[[Any], Tensor]


@dataclass
class Run:
    """One rewritten forward pass.

    Attributes:
        output: (N, K) with the graph of the rewritten pass.
        shape: (N, …) the shape of the explained tensor before its axes were made one.
        streams: the tensors whose relevances add up; first the explained inputs themselves.
        owners: which of the explained inputs each stream belongs to.
        records: what each operation got.
        biases: named additive constants (only when they were asked for).
    """

    output: Tensor
    shape: tuple[int, ...]
    streams: list[Tensor]
    owners: list[int]
    records: list[Record]
    biases: list[tuple[str, Tensor]]


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
        raise _several(out)
    if out.ndim == 0:
        raise InputError("the explained output is a single number for the whole batch", "keep the batch axis")
    return out


def _several(out: Any) -> InputError:
    """What to write where a model returns several things."""
    keys: list[Any] = list(out) if isinstance(out, Mapping) else []
    if not keys and isinstance(out, list | tuple):
        keys = list(range(len(out)))
    what = f"a {type(out).__name__}" + (f" with keys {keys}" if isinstance(out, Mapping) else "")
    found = [(k, out[k]) for k in keys if isinstance(out[k], Tensor) and out[k].is_floating_point()]
    if not found:
        return InputError(
            f"the model returns {what}, not one tensor", "choose a tensor with output=lambda out: …"
        )
    key, t = found[0]
    return InputError(
        f"the model returns {what}, not one tensor",
        f"choose one score, for example output={written(tuple(t.shape), f'out[{key!r}]')}; out[{key!r}] has "
        "shape "
        f"{tuple(t.shape)}",
    )


def written(shape: tuple[int, ...], name: str = "out") -> str:
    """A callable that picks one score per input from a tensor `name` of this shape."""
    if len(shape) == 1:
        return f"lambda out: {name}"
    axes = tuple(range(1, len(shape) - 1))
    sums = f".sum({axes if len(axes) > 1 else 1})" if axes else ""
    return f"lambda out: {name}[:, {min(2, shape[1] - 1)}]{sums}"


def execute(
    model: nn.Module,
    x: Tensor | Inputs,
    rules: Composite,
    output: Output | None = None,
    streams: list[Tensor] | None = None,
    transforms: bool = False,
    biases: bool = False,
) -> Run:
    """Run `model` rewritten by `rules`.

    Args:
        x: inputs (N, *sample), or several, with gradients where the explanation shall be differentiable.
        output: picks the explained tensor from what the model returns; runs under the rules too.
        streams: values of the streams beside the inputs, when they are arguments of a transformed function.
        transforms: run under torch.func transforms.
        biases: account for additive constants.
    """
    mode = RelevanceMode(dispatch, rules, model, transforms, streams, biases)
    given = Inputs.of(x)
    inputs = [mode.entry(t, i) for i, t in enumerate(given.tensors)]
    try:
        with mode.active():
            out = select(given.call(model, inputs), output)
            shape = tuple(out.shape)
            out = out[:, None] if out.ndim == 1 else out.flatten(1)
            dependent = mode.tracked(out)
            out = mode.settle(out)
    except PfungstError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        _blame_input(model, given, output, error)
        raise UncoveredOperation(
            f"the model runs, but its rewritten forward pass fails in {mode.where}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
            "replace that operation by ones in the table of docs/relevance.md, or explain a part of the "
            "model that "
            "does without it",
        ) from error
    if not rules.plain and not dependent:
        raise InputError(
            "the explained output is a constant of the explanation: it depends on the input only through "
            "softmax "
            "or ignored operations",
            "explain logits instead of probabilities",
        )
    if len(out) != len(given):
        raise InputError(
            f"the model turns {len(given)} inputs into {len(out)} outputs",
            "the first axis must count the inputs",
        )
    owners = [*range(len(inputs)), *mode.owners]
    run = Run(out, shape, [*inputs, *mode.streams], owners, mode.records, mode.biases or [])
    mode.forget()
    return run


#: How far the explained values may be from those of the plain forward pass, relative to the largest.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


_USED: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def first_use(model: nn.Module, given: Inputs, rules: Composite, purpose: str = "") -> bool:
    """Whether a model is explained under these rules, with inputs of this type, for the first time."""
    used = _USED.setdefault(model, set())
    key = f"{purpose} {rules.name} {rules.entries!r} {[t.dtype for t in given.tensors]}"
    if key in used:
        return False
    used.add(key)
    return True


def check_values(model: nn.Module, x: Tensor | Inputs, run: Run, output: Output | None = None) -> None:
    """Compare the values of a run with those of the plain model; costs one forward pass.

    Raises:
        InputError: they differ, because the model is random or because the engine rewrote an operation
            wrongly.
    """
    given = Inputs.of(x)
    with torch.no_grad():
        # clones, as some models write into their input
        plain = select(given.call(model, [t.detach().clone() for t in given.tensors]), output)
    plain = plain.reshape(run.output.shape)
    found = run.output.detach()
    scale = float(torch.nan_to_num(plain, posinf=0.0, neginf=0.0).abs().max()) if plain.numel() else 0.0
    tolerance = _TOLERANCE.get(plain.dtype, 0.1)
    if torch.allclose(
        found, plain.to(found.dtype), rtol=tolerance, atol=tolerance * scale + 1e-12, equal_nan=True
    ):
        return
    gap = float((found - plain).abs().nan_to_num(nan=torch.inf).max())
    raise InputError(
        f"the explained values differ from those of the plain forward pass by {gap:.3g} (largest value "
        f"{scale:.3g})",
        "if the model draws random numbers in evaluation mode, fix or remove them; otherwise an operation is "
        "rewritten wrongly: describe(model, x) lists them all, please report it",
    )


@contextmanager
def backward() -> Iterator[None]:
    """Where the derivative of a run is read: an InputError where the model has overwritten what it needs."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise InputError(
            "the model overwrites, in place, a tensor that it has computed with before",
            "overwrite a clone of it; a language model that keeps its state does not with "
            "model.config.use_cache = "
            "False",
        ) from error


def _blame_input(model: nn.Module, given: Inputs, output: Output | None, error: Exception) -> None:
    """Raise an InputError if the plain model cannot process the input either."""
    try:
        with torch.no_grad():
            out = given.call(model, [t.detach() for t in given.tensors])
    except Exception as cause:
        raise InputError(
            f"the model {type(model).__name__} cannot process {given.describe()}: {cause}",
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
