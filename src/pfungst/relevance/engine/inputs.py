"""What a model is called with: one tensor, several in order, or several by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError

Key = int | str


def transformed(x: Tensor) -> bool:
    """Whether `x` is inside a torch.func transform, where its values cannot be looked at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_input(x: Any, name: str = "the input") -> Tensor:
    """`x` as an input that can be explained, or an InputError that says why not."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name} is a {type(x).__name__}, not a tensor", "convert it with torch.as_tensor")
    if not x.is_floating_point():
        raise InputError(
            f"{name} has type {str(x.dtype).removeprefix('torch.')}, relevance needs real numbers",
            "convert images with x.float() / 255; embed tokens first and explain inputs_embeds",
        )
    if x.device.type == "meta":
        raise InputError(f"{name} is a meta tensor without values", "load it on a real device")
    if x.ndim < 2:
        raise InputError(
            f"{name} has shape {tuple(x.shape)}",
            "pass a batch: the first axis counts the inputs; of several tensors, leave constants out with "
            "explain=",
        )
    if not transformed(x) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise InputError(
            f"{bad} of {len(x)} rows of {name} contain NaN or infinity", "leave them out or repair them"
        )
    return x


@dataclass(frozen=True)
class Inputs:
    """The arguments of a model, and which of them are explained.

    Attributes:
        arguments: a tensor, positional arguments or keyword arguments, as the user gave them.
        explained: the keys of the explained tensors: positions in a tuple, names in a dictionary, or (0,).
    """

    arguments: Any
    explained: tuple[Key, ...] = (0,)

    @classmethod
    def read(cls, x: Any, explain: Any = None) -> Inputs:
        """What the user gave, checked.

        Args:
            x: a tensor (N, *sample), a tuple of arguments, or a dictionary of keyword arguments.
            explain: position or name of the tensor to explain, or several; by default all floating tensors.

        Raises:
            InputError: nothing to explain, unknown names, tensors that cannot be explained or that differ
                in their number of inputs.
        """
        if isinstance(x, Mapping):
            arguments: Any = dict(x)
        elif isinstance(x, list | tuple):
            arguments = tuple(x)
        else:
            if explain is not None and explain not in (0, (0,), [0]):
                raise InputError(f"explain={explain!r} for a single input", "leave explain= out")
            return cls(check_input(x))
        items: dict[Key, Any] = arguments if isinstance(arguments, dict) else dict(enumerate(arguments))
        keys = tuple(_chosen(items, explain))
        tensors = {k: check_input(items[k], f"the input {k!r}") for k in keys}
        sizes = {k: len(t) for k, t in tensors.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"the explained tensors differ in their number of inputs: {sizes}",
                "give all the same first axis: t.expand(n, …) for a tensor that all inputs share, or leave "
                "it "
                "out with explain=",
            )
        return cls(arguments, keys)

    @classmethod
    def of(cls, x: Tensor | Inputs) -> Inputs:
        """`x`, or a single tensor as one."""
        return x if isinstance(x, Inputs) else cls(x)

    @property
    def tensors(self) -> list[Tensor]:
        """The explained tensors."""
        if isinstance(self.arguments, Tensor):
            return [self.arguments]
        return [self.arguments[k] for k in self.explained]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """What `model` returns for other explained tensors; all others are constants."""
        if isinstance(self.arguments, Tensor):
            return model(tensors[0])
        given = dict(zip(self.explained, tensors, strict=True))
        if isinstance(self.arguments, dict):
            return model(**{k: given[k] if k in given else _constant(v) for k, v in self.arguments.items()})
        return model(*(given[k] if k in given else _constant(v) for k, v in enumerate(self.arguments)))

    def replace(self, tensors: Sequence[Tensor]) -> Inputs:
        """The same with other explained tensors."""
        if isinstance(self.arguments, Tensor):
            return Inputs(tensors[0])
        given = dict(zip(self.explained, tensors, strict=True))
        if isinstance(self.arguments, dict):
            return Inputs({**self.arguments, **given}, self.explained)
        return Inputs(tuple(given.get(k, v) for k, v in enumerate(self.arguments)), self.explained)

    def gather(self, values: Sequence[Any]) -> Any:
        """One value per explained tensor in the structure the user gave."""
        if isinstance(self.arguments, Tensor):
            return values[0]
        if isinstance(self.arguments, dict):
            return dict(zip(self.explained, values, strict=True))
        return tuple(values)

    def spread(self, value: Any, default: Callable[[], Any]) -> list[Any]:
        """One value per explained tensor from one for all, or from several in the structure the user gave."""
        if isinstance(value, Mapping):
            unknown = [k for k in value if k not in self.explained]
            if unknown or not isinstance(self.arguments, dict):
                raise InputError(f"basis= names {list(value)}", f"the explained inputs are {self.explained}")
            return [value[k] if value.get(k) is not None else default() for k in self.explained]
        if isinstance(value, list | tuple):
            if len(value) != len(self.explained) or isinstance(self.arguments, dict):
                raise InputError(
                    f"basis= has {len(value)} entries",
                    f"one basis for all, or one for each of the explained inputs {self.explained}",
                )
            return [default() if v is None else v for v in value]
        return [default() if value is None else value for _ in self.explained]

    def describe(self) -> str:
        """Shapes and types, for messages."""
        if isinstance(self.arguments, Tensor):
            return f"inputs of shape {_shape(self.arguments)}"
        items = self.arguments.items() if isinstance(self.arguments, dict) else enumerate(self.arguments)
        return "inputs " + ", ".join(f"{k}: {_shape(v)}" for k, v in items)


def _constant(v: Any) -> Any:
    return v.detach() if isinstance(v, Tensor) else v


def _shape(v: Any) -> str:
    if not isinstance(v, Tensor):
        return type(v).__name__
    return f"{tuple(v.shape)} and type {str(v.dtype).removeprefix('torch.')}"


def _chosen(items: dict[Key, Any], explain: Any) -> list[Key]:
    """The keys of the tensors to explain."""
    floating = [k for k, v in items.items() if isinstance(v, Tensor) and v.is_floating_point()]
    if explain is None:
        if not floating:
            raise InputError(
                "none of the inputs is a floating tensor",
                "embed tokens first and pass inputs_embeds; convert images with x.float() / 255",
            )
        return floating
    keys = list(explain) if isinstance(explain, list | tuple | set) else [explain]
    if all(isinstance(k, int) for k in items):
        keys = [k + len(items) if isinstance(k, int) and k < 0 else k for k in keys]
    unknown = [k for k in keys if k not in items]
    if unknown or not keys:
        raise InputError(f"explain={explain!r} names none of the inputs", f"choose from {list(items)}")
    return [k for k in items if k in keys]
