"""What stored numbers depend on: a model with all its weights and its code, and each image."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import os
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.files import stamp

_INTERNAL = {*vars(nn.Module()), "training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size, enum.Enum, Path)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def model_key(model: nn.Module, *more: object) -> str:
    """24 hexadecimal digits that name a model's function in evaluation mode.

    They depend on every parameter and every buffer (also those that are not saved), on the tree of modules,
    on their settings (attributes that `forward` does not write), hooks and parametrisations, and on the code
    of modules that are not torch's. They do not depend on the device, on file names or on the process.

    Args:
        model: any module.
        more: what else numbers depend on, such as the preprocessing: plain values, containers, tensors.
    """
    digest = _Digest()
    for value in (model, *more):
        digest.add(value)
    return digest.state.hexdigest()


def content_key(image: Tensor | np.ndarray) -> bytes:
    """16 bytes that identify the values, the type and the shape of one tensor."""
    digest = _Digest(16)
    digest.add(image)
    return digest.state.digest()


def file_key(path: str | os.PathLike[str]) -> str:
    """Names a file as it is now: its path, its size and its times. Raises OSError if there is none."""
    return f"{os.path.abspath(path)}:{stamp(path)}"


def combined(*parts: object) -> str:
    """24 hexadecimal digits for keys, plain values, arrays and containers of them, in their order."""
    digest = _Digest()
    digest.add(parts)
    return digest.state.hexdigest()


class _Digest:
    """BLAKE2 of nested Python values; each value is framed by its kind, so that no two run into one
    another."""

    def __init__(self, size: int = 12) -> None:
        self.state = hashlib.blake2b(digest_size=size)
        self._seen: dict[int, int] = {}
        self._held: list[object] = []  # ids stay taken

    def _text(self, *texts: object) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode()
            self.state.update(b"%d:" % len(data) + data)

    def add(self, value: object) -> None:
        if isinstance(value, _PLAIN):
            self._text(type(value).__name__, repr(value) if not isinstance(value, bytes) else value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            array = np.ascontiguousarray(value)
            self._text("array", array.dtype.str, np.shape(value))
            self.state.update(
                array.tobytes() if array.dtype.hasobject else array.reshape(-1).view(np.uint8).data
            )
        elif id(value) in self._seen:
            self._text("again", self._seen[id(value)])
        else:
            self._seen[id(value)] = len(self._seen)
            self._held.append(value)
            self._compound(value)

    def _tensor(self, value: Tensor) -> None:
        self._text("tensor", value.dtype, tuple(value.shape))
        if value.is_meta:
            return
        if value.is_quantized:
            value = torch.cat([value.int_repr().flatten().double(), value.dequantize().flatten().double()])
        plain = value.detach()
        plain = plain.to_dense() if plain.layout is not torch.strided else plain
        plain = plain.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        self.state.update(plain.view(torch.uint8).numpy().data)

    def _compound(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._text("method")
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, functools.partial):
            self._text("partial")
            self._each([value.func, value.args, value.keywords])
        elif isinstance(value, Mapping):
            self._text("mapping", len(value))
            self._each(part for pair in value.items() for part in pair)
        elif isinstance(value, set | frozenset):
            self._text("set", sorted(map(repr, value)))
        elif isinstance(value, list | tuple):
            self._text(type(value).__name__, len(value))
            self._each(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._text("builtin", value.__qualname__)
        else:  # settings in an object of their own; of libraries the public plain ones, others by their type
            self._class(type(value))
            strange = _foreign(type(value)) and not type(value).__module__.startswith("pfungst.")
            for name, setting in sorted(getattr(value, "__dict__", {}).items()):
                if not strange or (isinstance(setting, (*_PLAIN, list, tuple)) and name[0] != "_"):
                    self._text(name)
                    self.add(setting)

    def _each(self, values: Iterable[object]) -> None:
        for value in values:
            self.add(value)

    def _module(self, module: nn.Module) -> None:
        self._class(type(module))
        if isinstance(code := getattr(module, "code", None), str):  # TorchScript, torch.fx
            self._text("code", code)
        for name, parts in (("p", module._parameters), ("b", module._buffers), ("m", module._modules)):
            self._text(name, len(parts))
            for key, part in parts.items():
                self._text(key)
                self.add(part)
        if not isinstance(module, torch.jit.ScriptModule):
            kind: Any = type(module)
            for key in sorted(set(vars(module)) - _INTERNAL - _written(kind)):
                self._text("a", key)
                self.add(vars(module)[key])
            for name in _HOOKS:
                self._text(name)
                self._each(vars(module)[name].values())
        own: dict[str, Any] = {}  # packed weights of quantised layers, and other extra state
        module._save_to_state_dict(own, "", True)
        self.add({k: v for k, v in own.items() if k not in module._parameters and k not in module._buffers})

    def _class(self, kind: type) -> None:
        self._text("class", kind.__qualname__)
        if _foreign(kind) or id(kind) in self._seen:
            return
        self._seen[id(kind)] = len(self._seen)
        for base in kind.__mro__:
            if not _foreign(base):
                for name, member in sorted(vars(base).items()):
                    function = getattr(member, "__func__", getattr(member, "fget", member))
                    if isinstance(function, types.FunctionType):
                        self._text(name)
                        self.add(function)
                    elif isinstance(member, (*_PLAIN, Tensor)) and not name.startswith("__"):
                        self._text(name)
                        self.add(member)

    def _function(self, function: types.FunctionType) -> None:
        """Code, defaults and closure, and what it calls of its own module."""
        self._text("function", function.__name__)
        if _foreign(function):
            return
        names = self._code(function.__code__)
        self._each([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self._text("empty")
        for name in sorted(names):
            other = function.__globals__.get(name)
            near = getattr(other, "__module__", None) == function.__module__
            if (isinstance(other, types.FunctionType | type) and near) or isinstance(
                other, (*_PLAIN, Tensor)
            ):
                self._text(name)
                self.add(other)

    def _code(self, code: types.CodeType) -> set[str]:
        self._text("code", code.co_code, code.co_names, code.co_varnames)
        names = set(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names |= self._code(constant)
            elif isinstance(constant, frozenset):
                self._text(sorted(map(repr, constant)))
            else:
                self._text(repr(constant))
        return names


@functools.cache
def _written(kind: Any) -> frozenset[str]:
    """Attributes that `forward`, or a method it calls, writes: state of a module and no setting."""
    written: set[str] = set()
    todo, seen = ["forward"], {"forward"}
    while todo:
        name = todo.pop()
        for function in (vars(base).get(name) for base in kind.__mro__):
            if isinstance(function, types.FunctionType):
                written |= {i.argval for i in dis.get_instructions(function) if i.opname == "STORE_ATTR"}
                todo += [n for n in function.__code__.co_names if n not in seen]
                seen |= set(todo)
    return frozenset(written)


def _foreign(value: Any) -> bool:
    """Of Python or of a library, whose code is taken as fixed."""
    return bool(_LIBRARIES.fullmatch(str(getattr(value, "__module__", "")).partition(".")[0]))


_LIBRARIES = re.compile(
    "(builtins|collections|functools|numpy|open_clip|pfungst|sentence_transformers|timm|torch|torchvision|transformers)"
)
