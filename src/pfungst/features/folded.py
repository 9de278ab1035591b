"""The same network, faster: BatchNorms folded into the convolutions before them, channels last."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TOLERANCE = 1e-4  # of the largest output; float32 rounds some 1e-6 of it otherwise


def folded(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network in evaluation mode that computes the same with fewer passes over memory.

    A BatchNorm is folded into a convolution where, in a run on the example, it is all that reads the
    convolution's output. Where nothing can be folded, or the copy does not compute the same on the example,
    the network itself is returned.

    Args:
        model: images (N, C, H, W) → outputs.
        example: images to run it with.
    """
    try:
        if not (pairs := _pairs(model, example)):
            return model
        fast: Any = copy.deepcopy(model)
        for conv, norm in pairs:
            own = fast.get_submodule(norm)
            rest = nn.Identity() if type(own) is nn.BatchNorm2d else nn.Sequential(own.drop, own.act)
            _put(fast, conv, fuse_conv_bn_eval(fast.get_submodule(conv), own))
            _put(fast, norm, rest)
        fast = fast.requires_grad_(False).to(memory_format=torch.channels_last)
        with torch.no_grad():
            ours, theirs = (_tensors(net(example)) for net in (fast, model))
    except (RuntimeError, TypeError, AttributeError):  # it cannot be copied, or is not what it looks like
        return model
    same = len(ours) == len(theirs) and all(map(_close, ours, theirs))
    return fast if same else model


class _Readers(TorchDispatchMode):
    """Counts the operations that read some tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # kept, so that no other tensor gets their identity
        self.count = Counter[int]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not: torch would import its compiler (seconds) to keep it out of a mode that it never enters."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.count.update(read & self.watched.keys())
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the BatchNorms that alone read their outputs."""
    readers, made, found = _Readers(), dict[int, str](), list[tuple[str, str, int]]()
    runs = Counter[str]()

    def watch(name: str, module: nn.Module) -> Any:
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            runs[name] += 1
            readers.watched[id(output)], made[id(output)] = output, name

        def before(module: nn.Module, args: Any) -> None:
            runs[name] += 1
            if id(args[0]) in made:
                found.append((made[id(args[0])], name, id(args[0])))

        if isinstance(module, nn.Conv2d):
            return module.register_forward_hook(after)
        return module.register_forward_pre_hook(before)

    layers = [(name, m) for name, m in model.named_modules() if _plain(m)]
    shared = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    hooks = [watch(name, m) for name, m in layers]
    try:
        with torch.no_grad(), readers:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    alone = {n for n, m in layers if all(shared[id(p)] == 1 for p in m._parameters.values() if p is not None)}
    return [
        (conv, norm)
        for conv, norm, output in found
        if readers.count[output] == 1 and runs[conv] == runs[norm] == 1 and {conv, norm} <= alone
    ]


def _plain(module: nn.Module) -> bool:
    """A convolution with weights of its own, or a BatchNorm with statistics, that nobody watches."""
    if module._forward_hooks or module._forward_pre_hooks or module.training:
        return False
    if isinstance(module, nn.Conv2d):
        return module._parameters.get("weight") is not None
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"  # timm's
    return known and module.running_mean is not None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor)]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
